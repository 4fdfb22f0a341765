"""Vision encoders for videos: frame by frame, or Video Swin over space and time.

`build_video_encoder(config)` picks by `config.name`: a timm resnet* or swin_* name sees each frame by itself (the
weights, and for one frame the numbers, are those of the image encoder); `swin3d_*` is torchvision's Video Swin with
patches of 1x4x4, so that time is never downsampled. All give a pyramid of (B, T, C, h, w), finest level first.

Videos of a batch may differ in length: `lengths` (B,) says how many frames of each are not padding, `content` (B, 2)
how many rows and columns. What an encoder gives inside is then what it gives for that video alone.
"""

from collections.abc import Sequence

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model_weights
from torchvision.models.video.swin_transformer import PatchMerging, ShiftedWindowAttention3d, SwinTransformer3d

from .configuration_ris import VisionEncoderConfig
from .vision_encoders import CnnEncoder, SwinEncoder, VisionEncoder


# embed_dim, depths, num_heads, window_size, stochastic_depth_prob of torchvision's builders
_SWIN3D = {
    "swin3d_t": (96, [2, 2, 6, 2], [3, 6, 12, 24], [8, 7, 7], 0.1),
    "swin3d_s": (96, [2, 2, 18, 2], [3, 6, 12, 24], [8, 7, 7], 0.1),
    "swin3d_b": (128, [2, 2, 18, 2], [4, 8, 16, 32], [8, 7, 7], 0.1),
}
_WINDOWS = 64  # whose attention is computed at a time
_SWIN3D_ARGUMENTS = ("embed_dim", "depths", "num_heads", "window_size", "stochastic_depth_prob")


class FrameCnnEncoder(CnnEncoder):
    """A ResNet that sees each frame by itself, or, with a temporal shift, its neighbours too.

    Args:
        shift: of the channels that enter each residual block's first convolution, so large a share comes from the frame
            before and as large a one from the frame after (Lin, Gan, Han: TSM, ICCV 2019); at the video's ends from the
            frame itself, so that a video of one frame, and with it the image encoder, stays as it is. 0 is none.
    """

    def __init__(self, config: VisionEncoderConfig, shift: float = 0.0):
        super().__init__(config)
        self.shift = shift
        self._lengths: Tensor | None = None
        self._frames = 1
        if shift:
            for module in self.backbone.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    module.conv1.register_forward_pre_hook(self._shift_frames)

    def forward(self, videos: Tensor, content: Tensor | None = None, lengths: Tensor | None = None) -> list[Tensor]:
        """(B, T, 3, H, W) -> (B, T, channels[i], H / strides[i], W / strides[i])."""
        self._frames, self._lengths = videos.shape[1], lengths
        return _frame_by_frame(super().forward, videos, content)

    def _shift_frames(self, convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        count = self._frames
        if count == 1:
            return None
        x = inputs[0].unflatten(0, (-1, count))
        width = max(1, int(x.shape[2] * self.shift))
        before = torch.cat([x[:, :1, :width], x[:, :-1, :width]], 1)
        after = torch.cat([x[:, 1:, width : 2 * width], x[:, -1:, width : 2 * width]], 1)
        if self._lengths is not None:  # the last frame that counts has none after it
            last = torch.arange(count, device=x.device) >= self._lengths[:, None] - 1
            after = torch.where(last[:, :, None, None, None], x[:, :, width : 2 * width], after)
        return (torch.cat([before, after, x[:, :, 2 * width :]], 2).flatten(0, 1),)


class FrameSwinEncoder(SwinEncoder):
    """A Swin that sees each frame by itself."""

    def forward(self, videos: Tensor, content: Tensor | None = None, lengths: Tensor | None = None) -> list[Tensor]:
        """(B, T, 3, H, W) -> (B, T, channels[i], H / strides[i], W / strides[i])."""
        return _frame_by_frame(super().forward, videos, content)


def _frame_by_frame(encode, videos: Tensor, content: Tensor | None) -> list[Tensor]:
    frames = videos.shape[1]
    content = None if content is None else content.repeat_interleave(frames, 0)
    return [level.unflatten(0, (-1, frames)) for level in encode(videos.flatten(0, 1), content)]


class _WindowAttention3d(ShiftedWindowAttention3d):
    """torchvision's weights and numbers, some windows at a time: the scores of all, of eight frames of 480p, take
    gigabytes. Its raw parameter can be drawn anew by the name that `RisPreTrainedModel` knows."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, h, w, C) -> the same."""
        size = x.shape[1:4]
        window = [min(pair) for pair in zip(self.window_size, size)]
        shift = [0 if side <= wide else by for side, wide, by in zip(size, self.window_size, self.shift_size)]
        t, h, w = (-side % wide for side, wide in zip(size, window))
        x = F.pad(x, (0, 0, 0, w, 0, h, 0, t))
        padded = x.shape[1:4]
        bias = self.get_relative_position_bias(window)
        regions = None
        if any(shift):
            x = torch.roll(x, [-by for by in shift], (1, 2, 3))
            regions = _partition(_regions(padded, window, shift, x.device)[None, ..., None], window)[..., 0]
            regions = regions.repeat(len(x), 1).split(_WINDOWS)
        parts = _partition(x, window).split(_WINDOWS)
        answers = [self._attend(part, bias, regions and regions[number]) for number, part in enumerate(parts)]
        x = _unite(torch.cat(answers), window, padded)
        x = torch.roll(x, shift, (1, 2, 3)) if any(shift) else x
        return x[:, : size[0], : size[1], : size[2]].contiguous()

    def _attend(self, x: Tensor, bias: Tensor, regions: Tensor | None) -> Tensor:
        """Windows (n, L, C), bias (1, heads, L, L); of shifted ones the region (n, L) of each position, which reads its
        own region alone."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = bias.to(query.dtype)
        if regions is not None:
            bias = bias.masked_fill((regions[:, :, None] != regions[:, None])[:, None], -torch.inf)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(read.transpose(1, 2).flatten(2))


def _partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, T, h, w, C), multiples of the window -> (B * windows, positions, C)."""
    for axis, side in zip((1, 3, 5), window):
        x = x.unflatten(axis, (-1, side))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3).flatten(1, 3)


def _unite(x: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of `_partition`, to (B, *size, C)."""
    counts = [side // wide for side, wide in zip(size, window)]
    x = x.unflatten(1, tuple(window)).unflatten(0, (-1, *counts))
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *size, x.shape[-1])


def _regions(size: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """(T, h, w) long: positions that lay side by side before a cyclic shift share a number in their window."""
    numbers = torch.zeros(tuple(size), dtype=torch.long, device=device)
    for axis, (side, wide, by) in enumerate(zip(size, window, shift)):
        if by:
            places = torch.arange(side, device=device)
            own = (places >= side - wide).long() + (places >= side - by).long()
            numbers = 3 * numbers + own.view([-1 if other == axis else 1 for other in range(3)])
    return numbers


class VideoSwinEncoder(VisionEncoder):
    """Video Swin (Liu et al., CVPR 2022) by torchvision, patches of 1x4x4; a level is a stage's output before it is
    downsampled, without a norm of its own."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__(config)
        if config.name not in _SWIN3D:
            raise ValueError(f"There is no video encoder {config.name!r}; there are {', '.join(_SWIN3D)}.")
        arguments = dict(zip(_SWIN3D_ARGUMENTS, _SWIN3D[config.name])) | (config.arguments or {})
        unknown = sorted(set(arguments) - set(_SWIN3D_ARGUMENTS))
        if unknown:
            raise ValueError(f"{config.name} takes the arguments {', '.join(_SWIN3D_ARGUMENTS)}, not {unknown[0]!r}.")
        self.backbone = SwinTransformer3d(patch_size=[1, 4, 4], **arguments)
        del self.backbone.norm, self.backbone.avgpool, self.backbone.head  # the classifier's
        for module in self.backbone.modules():
            if isinstance(module, ShiftedWindowAttention3d):
                module.__class__ = _WindowAttention3d
        widths = [arguments["embed_dim"] * 2**index for index in range(len(arguments["depths"]))]
        self.channels = [widths[stage - 2] for stage in config.output_stages]
        self.finer_channels = []

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.gradient_checkpointing = enable

    def forward(self, videos: Tensor, content: Tensor | None = None, lengths: Tensor | None = None) -> list[Tensor]:
        """(B, T, 3, H, W) -> (B, T, channels[i], H / strides[i], W / strides[i]).

        Windows reach over time and to the edges, so videos of other lengths or contents go one by one, without their
        padding.
        """
        if content is None and lengths is None:
            return self._encode(videos)
        count, frames, _, height, width = videos.shape
        levels = [
            videos.new_zeros(count, frames, channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, self.strides)
        ]
        parts = []
        for index in range(count):
            rows, columns = (height, width) if content is None else content[index].tolist()
            length = frames if lengths is None else int(lengths[index])
            parts.append(self._encode(videos[index : index + 1, :length, :, :rows, :columns]))
        filled = []
        for level, of_videos in zip(levels, zip(*parts)):
            for index, part in enumerate(of_videos):
                level[index, : part.shape[1], :, : part.shape[3], : part.shape[4]] = part[0]
            filled.append(level)
        return filled

    def _encode(self, videos: Tensor) -> list[Tensor]:
        x = self.backbone.pos_drop(self.backbone.patch_embed(videos.transpose(1, 2)))  # (B, T, h, w, C)
        levels = []
        for part in self.backbone.features:
            if isinstance(part, PatchMerging):
                x = part(x)
                continue
            for block in part:
                if self.gradient_checkpointing and self.training:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            levels.append(x.permute(0, 1, 4, 2, 3))
        return [levels[stage - 2] for stage in self.config.output_stages]

    def load_pretrained(self) -> None:
        """torchvision's weights `pretrained_tag` (KINETICS400_V1 by default); patches of 2x4x4 are summed over time.

        Raises:
            ValueError: a config that changed the architecture. OSError: weights that are neither there nor reachable.
        """
        if set(self.config.arguments or ()) - {"stochastic_depth_prob"}:
            raise ValueError(f"No public weights fit {self.config.name} with arguments={self.config.arguments}.")
        tag = self.config.pretrained_tag or "KINETICS400_V1"
        weights = get_model_weights(self.config.name)
        if tag not in weights.__members__:
            raise ValueError(
                f"torchvision has no weights {tag!r} of {self.config.name}, only {', '.join(weights.__members__)}."
            )
        try:
            state = weights[tag].get_state_dict(progress=False)
        except OSError as error:
            raise OSError(
                f"The public weights {tag} of torchvision's {self.config.name} could not be loaded ({error}). Connect "
                "once, or build the model from its config alone, which needs no download."
            ) from error
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(2, keepdim=True)
        own = self.backbone.state_dict()
        self.backbone.load_state_dict({key: value for key, value in state.items() if key in own})


def build_video_encoder(config: VisionEncoderConfig, shift: float = 0.0) -> VisionEncoder:
    """The encoder for `config.name`; `shift` is for ResNets. Raises ValueError for a family that is not known."""
    if config.name.startswith("swin3d_"):
        return VideoSwinEncoder(config)
    if config.name.startswith("swin_"):
        return FrameSwinEncoder(config)
    return FrameCnnEncoder(config, shift)
