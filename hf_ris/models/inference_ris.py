"""The recommended way to run a model for answers alone, on the machine at hand."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers.utils import logging

from .winograd import WinogradConv2d


logger = logging.get_logger(__name__)

# Architectures whose convolutions a CPU runs faster in this memory order; the others' maps change order too often.
CHANNELS_LAST = frozenset(("cris", "lts", "segvlm", "lavt", "mpg_lqgnet"))


@dataclass(frozen=True)
class Optimization:
    """What `optimize_for_inference` did.

    Args:
        batch_norms: folded into the convolutions before them.
        channels_last: the memory order of convolutions is NHWC.
        dtype: that matrix products and convolutions are computed in; weights and all else keep their own.
    """

    batch_norms: int
    channels_last: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        order = "channels last" if self.channels_last else "channels first"
        return f"{self.batch_norms} batch norms folded, {order}, products in {str(self.dtype).removeprefix('torch.')}"


def optimize_for_inference(model: nn.Module, dtype: torch.dtype | str = "auto") -> Optimization:
    """Change a loaded model, in place, into what gives its answers fastest, and say what was done.

    Batch norms go into the convolutions before them, convolutions get the memory order that suits the architecture,
    matrix products and convolutions are computed in bfloat16 where the machine has it, and no parameter asks for
    gradients any more. Weights are not narrowed, and logits stay float32. Call it on the device that the model is to
    run on. What it makes is not saved: `save_pretrained` refuses, and the checkpoint that was loaded stays as it is.

    Args:
        model: a model of this zoo, whole on one device. A second call changes nothing.
        dtype: of products; "auto" is `recommended_dtype`. A model in half precision keeps it, and its batch norms.

    Raises:
        ValueError: a dtype that is none, or a model whose parts are kept elsewhere (`device_map`).
    """
    if "hf_device_map" in model.__dict__:
        raise ValueError("A model that device_map has spread cannot be optimized: load it without, on one device.")
    if dtype != "auto" and dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is 'auto', torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}.")
    if model.optimization is not None:
        return model.optimization
    own, device = model.dtype, model.device
    if own != torch.float32:
        dtype = own
    elif dtype == "auto":
        dtype = recommended_dtype(device)
    model.eval().requires_grad_(False)
    folded = 0
    if own == torch.float32:
        folded = sum(_fold_batch_norms(module) for module in list(model.modules()))
    channels_last = device.type == "cuda" or model.config.model_type in CHANNELS_LAST
    if channels_last:
        model.to(memory_format=torch.channels_last)
    model.optimization = Optimization(folded, channels_last, dtype)
    logger.info(f"{type(model).__name__}: {model.optimization}")
    return model.optimization


def recommended_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products of it have a unit of their own: recent GPUs, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = any(torch.cpu.get_capabilities().get(unit, False) for unit in ("avx512_bf16", "amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _fold_batch_norms(parent: nn.Module) -> int:
    """Fold the batch norms that follow a convolution among a module's own parts; returns how many.

    A norm's convolution is the one of its name (`norm1` of `conv1`), or in a sequence the part before it.
    """
    parts, folded = dict(parent.named_children()), 0
    previous = {name: before for before, name in zip(parts, list(parts)[1:])}
    for name, norm in parts.items():
        if not isinstance(norm, nn.BatchNorm2d) or not norm.track_running_stats:
            continue
        of_name = name.replace("norm", "conv").replace("bn", "conv")
        conv = parts.get(previous.get(name) if isinstance(parent, nn.Sequential) else of_name)
        if type(conv) not in (nn.Conv2d, WinogradConv2d) or conv.out_channels != norm.num_features:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's norms hold their activation
        setattr(parent, name, norm.act if type(norm) is not nn.BatchNorm2d else nn.Identity())
        folded += 1
    return folded
