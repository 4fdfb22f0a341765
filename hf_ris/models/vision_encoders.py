"""Vision encoders from timm, each giving a pyramid of NCHW maps.

`build_vision_encoder(config)` picks by the family of the timm name. Construction never downloads;
`encoder.load_pretrained()` does. An encoder knows its `channels` and `strides`, finest level first.

Swin is timm's with one change that published detection-style weights (LAVT, EAVL, MPG-LQGNet) expect: a block pads
its map before it rolls it, never shrinks its window and never drops its shift (timm rolls first, and shrinks on small
maps).

A batch of images of different shapes is padded right and below; `content` (B, 2) long says how many rows and columns of
each image are not padding (VATEX). What an encoder gives there is then what it gives for that image alone, whatever the
padding holds; what it gives in the padding means nothing.
"""

import timm
import torch
from timm.models.cspnet import CspModelCfg, CspNet, CspStagesCfg, CspStemCfg
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_ris import VisionEncoderConfig


class Encoder(nn.Module):
    """Base of the encoders that other libraries build; the model's gradient checkpointing reaches them through it."""

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False  # transformers' `is_activation_checkpointing` reads it

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.gradient_checkpointing = enable


def inside(content: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool: the first rows and columns, as many as `content` (B, 2) says."""
    rows = torch.arange(height, device=content.device) < content[:, :1]
    columns = torch.arange(width, device=content.device) < content[:, 1:]
    return rows[:, :, None] & columns[:, None]


def cells(content: Tensor, stride: int) -> Tensor:
    """`content` in pixels to that of a map of this stride: what a pixel of the content touches."""
    return (content + stride - 1) // stride


def repeat_edges(x: Tensor, content: Tensor) -> Tensor:
    """(N, K, h, w) whose last row and column of the content (N, 2) fill the padding."""
    for axis in (2, 3):
        places = torch.arange(x.shape[axis], device=x.device).minimum(content[:, axis - 2, None] - 1)
        shape = [len(x), 1, 1, 1]
        shape[axis] = -1
        x = x.gather(axis, places.view(shape).expand_as(x))
    return x


class VisionEncoder(Encoder):
    """Base: `forward(pixel_values (B, 3, H, W)) -> list of (B, channels[i], H / strides[i], W / strides[i])`.

    `pyramid`, which a subclass has, gives the same and before it, as a list of its own, the levels that lie between the
    stride `finest` and the finest of `config.output_stages` and that the backbone has, of `finer_channels`. They have
    no norms.

    Images of different shapes are padded and come with `content` (B, 2), see the head of this file.

    Every encoder has `load_pretrained()`, which raises ValueError when `arguments` changed the architecture so that no
    public weights fit, and OSError when the weights are neither in the cache nor reachable.
    """

    first_stage = 1  # of the backbone

    def __init__(self, config: VisionEncoderConfig, finest: int | None = None):
        super().__init__()
        self.config = config
        self.strides = [2**stage for stage in config.output_stages]
        stages = range(self.first_stage, min(config.output_stages))
        self.finer_stages = [stage for stage in stages if finest is not None and 2**stage >= finest]

    def forward(self, pixel_values: Tensor, content: Tensor | None = None) -> list[Tensor]:
        return self.pyramid(pixel_values, content)[1]

    def timm_name(self) -> str:
        tag = self.config.pretrained_tag
        return f"{self.config.name}.{tag}" if tag else self.config.name

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.backbone.set_grad_checkpointing(enable)


def _pretrained_state_dict(name: str, **kwargs) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, **kwargs).state_dict()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"The public weights of timm's {name} could not be loaded ({error}). Connect to the Hub once, or build the "
            "model from its config alone, which needs no download."
        ) from error


def _build(name: str, **arguments) -> nn.Module:
    """timm's model without weights. Raises ValueError where timm cannot build it, with timm's reason."""
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"VisionEncoderConfig: timm builds no {name!r} with these arguments ({type(error).__name__}: "
            f"{error!s:.200})."
        ) from error


class CnnEncoder(VisionEncoder):
    """Darknet and ResNet through timm's `features_only` interface."""

    def __init__(self, config: VisionEncoderConfig, finest: int | None = None):
        super().__init__(config, finest)
        arguments = dict(config.arguments or {})
        stages = [*self.finer_stages, *config.output_stages]
        # timm counts feature levels from stride 2, so stage 3 (stride 8) is its index 2 for ResNet; Darknet's levels
        # start at stride 1 (its stem does not downsample).
        if config.name.startswith("darknet"):
            unknown = sorted(arguments.keys() - {"depths", "widths", "stem_width"})
            if unknown:
                raise ValueError(
                    f"VisionEncoderConfig: the arguments of {config.name} are depths, widths and stem_width, got "
                    f"{', '.join(unknown)[:200]}."
                )
            self.out_indices = stages
            self.backbone = _darknet(config.name, self.out_indices, **arguments)
        else:
            self.out_indices = [stage - 1 for stage in stages]
            self.backbone = _build(config.name, features_only=True, out_indices=self.out_indices, **arguments)
        finer, channels = len(self.finer_stages), self.backbone.feature_info.channels()
        self.finer_channels, self.channels = channels[:finer], channels[finer:]
        if self.backbone.feature_info.reduction()[finer:] != self.strides:
            raise ValueError(f"{config.name} has no levels of stride {self.strides}; check output_stages.")
        self._content: tuple[Tensor, int] | None = None
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                module.register_forward_pre_hook(self._hide_padding)

    def pyramid(self, pixel_values: Tensor, content: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        self._content = None if content is None else (content, pixel_values.shape[-2])
        levels = self.backbone(pixel_values)
        return levels[: len(self.finer_stages)], levels[len(self.finer_stages) :]

    def _hide_padding(self, convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """What lies beyond the content is what a convolution pads with, 0. (Max pooling comes after a ReLU.)"""
        if self._content is None:
            return None
        content, height = self._content
        x = inputs[0]
        mask = inside(cells(content, -(-height // x.shape[-2])), *x.shape[-2:])
        return (x * mask[:, None],)

    def load_pretrained(self) -> None:
        if self.config.arguments:
            raise ValueError(f"No public weights fit {self.config.name} with arguments={self.config.arguments}.")
        self.backbone.load_state_dict(
            _pretrained_state_dict(self.timm_name(), features_only=True, out_indices=self.out_indices)
        )


def _darknet(name: str, out_indices: list[int], depths=None, widths=None, stem_width: int = 32) -> nn.Module:
    """timm's Darknet as a pyramid; `depths` and `widths` (five numbers each) make a smaller one of the same design."""
    if depths is None and widths is None:
        return _build(name, features_only=True, out_indices=out_indices)
    if depths is None or widths is None or len(depths) != 5 or len(widths) != 5:
        raise ValueError(f"A custom {name} takes depths and widths of five stages, got {depths} and {widths}.")
    design = CspModelCfg(
        stem=CspStemCfg(out_chs=stem_width, kernel_size=3, stride=1, pool=""),
        stages=CspStagesCfg(
            depth=tuple(depths),
            out_chs=tuple(widths),
            stride=2,
            bottle_ratio=0.5,
            block_ratio=1.0,
            stage_type="dark",
            block_type="dark",
        ),
    )
    return timm.models.FeatureListNet(CspNet(design), out_indices=out_indices, flatten_sequential=True)


# Added to the scores of windows' foreign positions. Its exponential is an exact 0: timm's -100 leaves 4e-44, a denormal
# number, which slows the products that it enters many times over.
FOREIGN = -1e4


class PadFirstWindowAttention(WindowAttention):
    """Attention in the windows of a map (B, H, W, C) that is padded with zeros to whole windows, then rolled.

    Only the map's own positions go through the linear layers: what these make of a zero is the same everywhere, and
    what padding answers is cut off.
    """

    def forward(self, x: Tensor, shift: tuple[int, int], mask: Tensor | None) -> Tensor:
        """mask: (windows of the batch or of one image, area, area), added to the scores -> (B, H, W, C)."""
        batch, height, width = x.shape[:3]
        win_h, win_w = self.window_size
        projected = self.qkv(x)
        below, right = -height % win_h, -width % win_w
        if below or right:
            nothing = self.qkv(x.new_zeros(batch, 1, 1, x.shape[-1]))  # one for each map: a map's cost is its own
            projected = torch.cat([projected, nothing.expand(-1, height, right, -1)], 2)
            projected = torch.cat([projected, nothing.expand(-1, below, width + right, -1)], 1)
        if any(shift):
            projected = torch.roll(projected, (-shift[0], -shift[1]), (1, 2))
        rows, columns = (height + below) // win_h, (width + right) // win_w
        parts = projected.view(batch, rows, win_h, columns, win_w, 3, self.num_heads, -1)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.num_heads, self.window_area, parts.shape[-1])
        bias = self._get_rel_pos_bias()
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(parts.shape[1] // mask.shape[0], 1, 1, 1)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(*parts.unbind(0), attn_mask=bias, dropout_p=dropout)
        x = x.unflatten(0, (batch, rows, columns)).unflatten(4, (win_h, win_w))
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height + below, width + right, -1)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        # of a cut-out map, torch would make a product for each of its rows, with a copy of the weights for each
        return self.proj_drop(self.proj(x[:, :height, :width].contiguous()))


class PadFirstSwinBlock(SwinTransformerBlock):
    """A Swin block whose map (B, H, W, C) is padded to whole windows first and rolled after."""

    def forward(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        """x (B, H, W, C); `content` (B, 2) in its positions, or None where all of it is."""
        x = x + self.drop_path1(self._attn(self.norm1(x), content))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attn(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        height, width = x.shape[1:3]
        win_h, win_w = self.window_size
        if content is not None:
            x = x * inside(content, height, width)[..., None]
        mask = None
        if any(self.shift_size):
            padded_h, padded_w = height + -height % win_h, width + -width % win_w
            mask = self.get_attn_mask(x.new_empty(1, padded_h, padded_w, 1)) * (FOREIGN / -100)
            if content is not None:
                mask = mask + self._foreign(content, padded_h, padded_w).to(mask.dtype)
                mask = mask.flatten(0, 1)
        return self.attn(x, tuple(self.shift_size), mask)

    def _foreign(self, content: Tensor, height: int, width: int) -> Tensor:
        """(B, windows, area, area): FOREIGN between what lies in the image's own whole windows and what lies beyond.

        Alone, an image is padded to whole windows, and what is rolled in from its other side is masked. In a larger
        map that place is taken by more padding.
        """
        window = content.new_tensor(self.window_size)
        own = inside(cells(content, window) * window, height, width)
        own = torch.roll(own, shifts=tuple(-shift for shift in self.shift_size), dims=(1, 2))
        own = window_partition(own[..., None], self.window_size).view(len(content), -1, self.window_area)
        return FOREIGN * (own[:, :, :, None] != own[:, :, None, :])


class SwinEncoder(VisionEncoder):
    """Swin whose stages can be run one by one, so that a fusion module may stand between them.

    `embed` then `stage(0..3)` is the whole encoder; maps inside are channels-last (B, H, W, C). `forward` gives the
    plain pyramid as NCHW maps through the `norms` (one LayerNorm per level, as in detection-style Swin).
    """

    first_stage = 2

    def __init__(self, config: VisionEncoderConfig, finest: int | None = None):
        super().__init__(config, finest)
        self.backbone = _build(
            config.name,
            num_classes=0,
            always_partition=True,
            strict_img_size=False,
            **(config.arguments or {}),
        )
        del self.backbone.norm  # the classifier's norm: a pyramid has one per level
        self.backbone.layers = self.backbone.layers[: max(config.output_stages) - 1]  # the rest would get no gradient
        for module in self.backbone.modules():
            if isinstance(module, SwinTransformerBlock):
                module.__class__ = PadFirstSwinBlock  # same state, other `_attn`
                module.attn.__class__ = PadFirstWindowAttention
                module.dynamic_mask = True  # the mask follows the padded map, whatever the input size
                module.attn_mask = None
        self.stage_channels = [layer.blocks[0].dim for layer in self.backbone.layers]
        self.strides = [stride * self.backbone.patch_embed.patch_size[0] // 4 for stride in self.strides]
        self.channels = [self.stage_channels[stage - 2] for stage in config.output_stages]
        self.finer_channels = [self.stage_channels[stage - 2] for stage in self.finer_stages]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, C); sides that the patch (4) does not divide are zero-padded right, below."""
        height, width = pixel_values.shape[-2:]
        patch_h, patch_w = self.backbone.patch_embed.patch_size
        return self.backbone.patch_embed(F.pad(pixel_values, (0, -width % patch_w, 0, -height % patch_h)))

    def stage(self, index: int, x: Tensor, content: Tensor | None = None) -> Tensor:
        """Stage `index` (0-3), patch merging first: (B, h, w, C) -> (B, ceil(h/2), ceil(w/2), 2C); stage 0 keeps."""
        layer = self.backbone.layers[index]
        if content is None:
            return layer(x)
        stride = self.backbone.patch_embed.patch_size[0] * 2**index
        if index:  # an odd side is padded with 0 before four positions are merged
            x = x * inside(cells(content, stride // 2), *x.shape[1:3])[..., None]
        x = layer.downsample(x)
        for block in layer.blocks:
            if layer.grad_checkpointing:
                x = checkpoint(block, x, cells(content, stride), use_reentrant=False)
            else:
                x = block(x, cells(content, stride))
        return x

    def pyramid(self, pixel_values: Tensor, content: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        x = self.embed(pixel_values)
        finer, levels = [], []
        for index in range(max(self.config.output_stages) - 1):
            x = self.stage(index, x, content)
            if index + 2 in self.config.output_stages:
                levels.append(self.norms[len(levels)](x).permute(0, 3, 1, 2))
            elif index + 2 in self.finer_stages:
                finer.append(x.permute(0, 3, 1, 2))
        return finer, levels

    def load_pretrained(self) -> None:
        arguments = dict(self.config.arguments or {})
        free = {"img_size", "window_size", "drop_path_rate", "drop_rate", "attn_drop_rate", "proj_drop_rate"}
        if set(arguments) - free:
            raise ValueError(f"No public weights fit {self.config.name} with arguments={arguments}.")
        # timm itself resizes the relative-position tables to another window
        state = _pretrained_state_dict(self.timm_name(), num_classes=0, always_partition=True, **arguments)
        self.backbone.load_state_dict({key: state[key] for key in self.backbone.state_dict()})


def build_vision_encoder(config: VisionEncoderConfig, finest: int | None = None) -> VisionEncoder:
    """The encoder for `config.name`; `finest` is the stride that its `pyramid` reaches, None its levels' own.

    Raises:
        ValueError: a family that no architecture here uses.
    """
    if config.name.startswith("swin_"):
        return SwinEncoder(config, finest)
    if config.name.startswith(("darknet", "resnet")):
        return CnnEncoder(config, finest)
    raise ValueError(f"Vision encoder {config.name!r} is not known; choose a timm darknet*, resnet* or swin_* name.")


def restore_buffers(module: nn.Module) -> None:
    """Refill the buffers that no checkpoint holds: after loading on the meta device they are uninitialised memory."""
    if isinstance(module, WindowAttention):
        module.init_non_persistent_buffers()
