"""SegVLM: CRIS with a deformable, channel-weighing, residual projector and the referring-aware fusion (RAF) loss.

Paper: Dalaq and Behzad, "Deformable Attentive Visual Enhancement for Referring Segmentation Using Vision-Language
Model" (King Fahd University of Petroleum and Minerals). Original repository: none was published; written from the
paper. Licence of this file: Apache-2.0.

The paper's baseline is CRIS (modeling_cris.py, whose deviations and readings hold here too). Two things are SegVLM's
own: the projector's second convolution becomes the enhancement block of section 3.3, and the loss is that of section
3.4. With both switched off this is CRIS, parameter names included.

Size. `SegvlmConfig()` has 161.47 million parameters: image encoder 56.26 (its attention pool 13.74), the convolution
beside the pool 1.05, text encoder 63.43, neck 23.09, decoder 12.63, projector 5.01; the block adds 0.22 to CRIS. The
paper says "approximately 63 million", with a ResNet-101. To come to 63 one would have to leave out 98: image encoder,
neck, decoder and projector, which leaves CLIP's text encoder alone (63.43, the number that CLIP's paper gives it); or
text encoder, neck and decoder, which leaves image encoder and projector (62.32). No count of the whole gives it.

Deviations and readings:
- Eq. 1-3 do not say where the block lies. Here it takes the place of the 3x3 convolution after the projector's last
  upsampling: x of Eq. 1 is that upsampled map U(x) of Eq. 3, so that both branches of the sum are at stride 4. It keeps
  that convolution's batch norm and ReLU, which the equations do not name, before the channels are weighed.
- The residual branch is a 1x1 convolution with neither norm nor activation.
- Section 4.2 initialises all convolutions by Kaiming's method: normal, of He et al.'s standard deviation for a ReLU, in
  everything but CLIP. Those that give the offsets start at zero instead, so that the block starts as its ordinary twin.
- Labels become the logits' size by area shares; CRIS's nearest pixel lies up to three quarters of a cell aside.
- Masks are enlarged as probabilities, bicubically, as CRIS's.
- Eq. 4, 5 and 8 sum over pixels, which would drown the Dice term: cross-entropy and focal loss are means over pixels,
  Dice is taken for each expression.
- The paper publishes no lambda, alpha, gamma, epsilon and squeeze ratio: 1, 1 and 1, 0.25, 2, 1 (pixel) and 16 are
  ours. Of the two pixel weights of Eq. 7 the first is the default. The weight carries no gradient: through it, |p - y|
  would push confident foreground down, and (1 - p)^gamma would push background up.
- "Clip-norm 0" means no clipping. The threshold and the preprocessing are CRIS's; so is the rate of CLIP's parameters,
  a tenth.
- Table 1 (Prec@50, 70, 90: 58.23, 40.81, 12.64) and Table 2 (57.10, 36.00, 10.30) disagree about the same model, whose
  IoU is 53.87 in both.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from .configuration_segvlm import SegvlmConfig
from .losses import adaptive_dice_loss, binary_cross_entropy, focal_loss
from .modeling_cris import ConvNormReLU, CrisForReferringSegmentation, Projector


class OffsetConv(nn.Conv2d):
    """F_offset of Eq. 1: dy and dx, in cells, of each of the nine taps at each place. Zero until it is trained."""

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 2 * 9, 3, padding=1)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class DeformableConv(nn.Conv2d):
    """Eq. 1."""

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        return deformable_convolution(x, offsets, self.weight)


def deformable_convolution(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution, zero-padded, whose taps are moved and read bilinearly (Eq. 1).

    x (N, C, h, w), offsets (N, 18, h, w) as dy, dx of the nine taps row by row, weight (D, C, 3, 3) -> (N, D, h, w) of
    x's dtype. On CUDA it is torchvision's operator, which has no bfloat16. On the CPU that is several times slower than
    `sampled_convolution`, which gives the same and is also what `torch.export` and other devices take.
    """
    if x.is_cuda:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return deform_conv2d(x.to(dtype), offsets.to(dtype), weight.to(dtype), padding=1).to(x.dtype)
    if torch.compiler.is_compiling():
        return sampled_convolution(x, offsets, weight)
    parts = zip(x.split(1), offsets.split(1))  # one map's nine samples fit in a cache, those of 16 maps do not
    return torch.cat([sampled_convolution(x, offsets, weight) for x, offsets in parts])


def sampled_convolution(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """`deformable_convolution` as one matrix product for all taps, each of whose maps is then read at its places.

    Reading is linear, so it may come after the weights. It is then done for D channels instead of C, by an operator
    that vector units speed up; the nine maps of D channels are what it costs in memory.
    """
    count, _, height, width = x.shape
    maps = torch.matmul(weight.permute(2, 3, 0, 1).flatten(0, 2), x.flatten(2))  # (N, 9 D, hw)
    dtype = torch.promote_types(x.dtype, torch.float32)  # places need more digits than bfloat16 has
    dy, dx = offsets.to(dtype).unflatten(1, (9, 2)).unbind(2)
    tap = torch.arange(9, device=x.device)[:, None, None]
    rows = torch.arange(height, device=x.device)[:, None] + tap // 3 - 1 + dy
    columns = torch.arange(width, device=x.device) + tap % 3 - 1 + dx
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)  # as grid_sample counts cells
    maps = maps.view(count * 9, -1, height, width).to(dtype)
    return F.grid_sample(maps, grid.flatten(0, 1), align_corners=False).unflatten(0, (count, 9)).sum(1).to(x.dtype)


class SqueezeAndExcitation(nn.Module):
    """Weighs each channel by what all channels hold on average (Eq. 2)."""

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // ratio)  # W_1
        self.excite = nn.Linear(channels // ratio, channels)  # W_2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        weights = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return weights[..., None, None] * x


class DeformableAttentiveEnhancement(ConvNormReLU):
    """The visual enhancement block (Eq. 1-3), in the place of the convolution whose weights and batch norm it has."""

    def __init__(self, config: SegvlmConfig, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3)
        self.offsets = OffsetConv(in_channels) if config.deformable else None
        if config.deformable:
            self.conv.__class__ = DeformableConv  # same state, other forward
        se = config.squeeze_excitation
        self.attention = SqueezeAndExcitation(out_channels, config.squeeze_ratio) if se else None
        self.residual = nn.Conv2d(in_channels, out_channels, 1) if config.residual else None

    def forward(self, x: Tensor) -> Tensor:
        """The upsampled input U(x) (N, in_channels, h, w) -> x_fused (N, out_channels, h, w)."""
        if self.offsets is None:
            y = self.conv(x)
        else:
            y = self.conv(x, self.offsets(x))
        y = F.relu(self.norm(y))
        if self.attention is not None:
            y = self.attention(y)
        return y if self.residual is None else y + self.residual(x)


class MultimodalProjector(Projector):
    """Section 3.2: CRIS's projector, its second convolution replaced by the enhancement block.

    The language-modulated dynamic convolution is CRIS's: the sentence becomes a 3x3 kernel and a bias.
    """

    def __init__(self, config: SegvlmConfig, text_channels: int):
        super().__init__(config, text_channels)
        self.visual2 = DeformableAttentiveEnhancement(config, config.neck_dims[1], self.channels)


class SegvlmForReferringSegmentation(CrisForReferringSegmentation):
    """SegVLM for N expressions over B images. Logits are at a quarter of the input's sides."""

    config_class = SegvlmConfig
    projector_class = MultimodalProjector
    own_weights = tuple(f"projector.visual2.{part}." for part in ("offsets", "attention", "residual"))

    def __init__(self, config: SegvlmConfig):
        super().__init__(config)
        own = [
            part for name, part in self.named_children() if name not in ("vision_encoder", "text_encoder", "refinement")
        ]
        for module in (module for part in own for module in part.modules()):
            if isinstance(module, nn.Conv2d) and not isinstance(module, OffsetConv):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def compute_losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, h, w), labels of any size -> the RAF loss (Eq. 8), and its terms by name, unweighted."""
        config = self.config
        logits, labels = self.at_loss_size(logits, labels)
        weights = {
            "cross_entropy": config.cross_entropy_weight,
            "focal": config.focal_weight,
            "dice": config.dice_weight,
        }
        losses = {}
        if weights["cross_entropy"]:
            losses["cross_entropy"] = binary_cross_entropy(logits, labels)
        if weights["focal"]:
            losses["focal"] = focal_loss(logits, labels, config.focal_alpha, config.focal_gamma)
        if weights["dice"]:
            choice, gamma, epsilon = config.dice_pixel_weight, config.focal_gamma, config.dice_epsilon
            losses["dice"] = adaptive_dice_loss(logits, labels, choice, gamma, epsilon)
        return sum(weights[name] * loss for name, loss in losses.items()), losses


SegvlmForReferringSegmentation.register_for_auto_class("AutoModel")
