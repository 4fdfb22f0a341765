"""LTS: Locate then Segment.

Paper: "Locate then Segment: A Strong Pipeline for Referring Image Segmentation", Jing, Kong, Wang, Wang, Li and Tan,
CVPR 2021. Original repository: none was published; written from the paper. Licence of this file: Apache-2.0.

Deviations and readings
- The paper's Darknet-53 is pretrained on COCO detection without the evaluation images; the public weights here are
  timm's, from ImageNet (a deviation).
- g in Eq. 5-7 is Leaky ReLU of slope 0.1 (Darknet's). Convolutions carry batch norm before it, as Darknet's do; the
  text's linear map and the ASPP's pooled branch do not, so that a single expression can train.
- F_m1, F_m2 and F_m3 have d_k = 1024 channels, the latter two as halves of 512 (Eq. 7). "A 1024-dimensional bi-GRU" is
  512 per direction.
- Eq. 8's response is the plain dot product over d_k channels, not scaled. H_mask enters Eq. 10 and the next filtering
  as that response; its sigmoid is taken in the loss.
- n filterings: a cascade, each sees the previous response map as an extra channel. L_loc is the mean over the n maps;
  the segmentation module sees the last.
- Word filter: one response map per word, combined by learned word weights. A plain mean would by linearity be the
  sentence filter.
- Transformer: one post-norm decoder layer without dropout per filtering; a linear layer, shared by the layers, gives
  each one's map. Attention over a memory of one token weighs it by one whatever the query, so the attention to f_text
  is its value and output projections alone.
- ASPP has DeepLabv3's form: a 1x1 branch, three 3x3 branches, global pooling. Rates 6, 12, 18 (the paper gives none):
  on a map of 52x52 the larger rates that DeepLab uses at stride 8 mostly meet the border. The deconvolution (4x4,
  stride 2) halves the channels and a 1x1 convolution gives the mask.
- Masks are enlarged as probabilities and then cut at 0.25 (section 3.4).
- Eq. 11 and 12 lack the minus sign of a cross-entropy. Targets are down-sampled by area averaging.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_lts import LtsConfig
from .losses import binary_cross_entropy, resize_labels
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import coordinates_like, sine_positions
from .text_encoders import BiGru
from .vision_encoders import build_vision_encoder


LEAKY_SLOPE = 0.1


class ConvNormAct(nn.Module):
    """Convolution, batch norm, Leaky ReLU: the g(F W) of Eq. 5-7 on maps; keeps the map's size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, h, w) -> (N, C', h, w), or bilinearly upsampled to `size` right after the convolution.

        A 1x1 convolution and interpolation commute, so this is g(UpSample(F) W) at a quarter of the multiplications.
        """
        x = self.conv(x)
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return F.leaky_relu(self.norm(x), LEAKY_SLOPE)


class MultiModalFusion(nn.Module):
    """Text and pyramid to the cross-modal feature F_m3 (Eq. 5-7).

    Args:
        vision_channels: of F_v3, F_v2, F_v1 (strides 8, 16, 32).
    """

    def __init__(self, config: LtsConfig, vision_channels: list[int], text_channels: int):
        super().__init__()
        dim, half = config.fusion_dim, config.fusion_dim // 2
        self.coordinate_features = config.coordinate_features
        c3, c2, c1 = (channels + 2 * config.coordinate_features for channels in vision_channels)
        self.visual1 = ConvNormAct(c1, dim)  # W_v1
        self.visual2 = ConvNormAct(c2, half)  # W_v2
        self.visual3 = ConvNormAct(c3, half)  # W_v3
        self.text = nn.Linear(text_channels, dim) if config.use_fusion else None  # W_t
        self.multimodal1 = ConvNormAct(dim, half)  # W_m1
        self.multimodal2 = ConvNormAct(dim, half)  # W_m2

    def project(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The half without text: F_v3, F_v2, F_v1 of B images -> g(F_vi W_vi), i = 1, 2, 3."""
        if self.coordinate_features:
            levels = [torch.cat([level, coordinates_like(level)], 1) for level in levels]
        f_v3, f_v2, f_v1 = levels
        return self.visual1(f_v1), self.visual2(f_v2), self.visual3(f_v3)

    def forward(self, visual: tuple[Tensor, Tensor, Tensor], sentence: Tensor, image_index: Tensor) -> Tensor:
        """g(F_vi W_vi) of B images and f_text (N, C) of N expressions -> F_m3 (N, fusion_dim, H/8, W/8)."""
        v1, v2, v3 = (level.index_select(0, image_index) for level in visual)  # unlike level[...], deterministic
        m1 = v1
        if self.text is not None:
            m1 = v1 * F.leaky_relu(self.text(sentence), LEAKY_SLOPE)[..., None, None]  # Eq. 5
        m2 = torch.cat([self.multimodal1(m1, v2.shape[-2:]), v2], 1)  # Eq. 6-7
        return torch.cat([self.multimodal2(m2, v3.shape[-2:]), v3], 1)


class RelevanceFiltering(nn.Module):
    """Response of F_m3 to kernels made from the sentence, n times in a cascade (Eq. 8)."""

    def __init__(self, config: LtsConfig, text_channels: int):
        super().__init__()
        # from the second on, the previous response map is one more channel
        sizes = [config.fusion_dim + (index > 0) for index in range(config.num_filterings)]
        self.kernels = nn.ModuleList(nn.Linear(text_channels, size) for size in sizes)  # W_k

    def forward(self, fused: Tensor, words: Tensor, attention_mask: Tensor, sentence: Tensor) -> Tensor:
        """F_m3 (N, d_k, h, w), h_t (N, L, C), its 0/1 mask (N, L), f_text (N, C) -> H_mask (N, n, h, w) as logits."""
        responses: list[Tensor] = []
        for index in range(len(self.kernels)):
            features = torch.cat([fused, responses[-1]], 1) if responses else fused
            kernel = self.kernel(index, words, attention_mask, sentence)
            responses.append(torch.einsum("nc,nchw->nhw", kernel, features)[:, None])
        return torch.cat(responses, 1)

    def kernel(self, index: int, words: Tensor, attention_mask: Tensor, sentence: Tensor) -> Tensor:
        """K = f_text W_k, (N, d_k), one 1x1 filter for each expression."""
        return self.kernels[index](sentence)


class WordFiltering(RelevanceFiltering):
    """One kernel, so one response map, per word; the maps are summed with learned word weights (Table 5).

    The sum is taken over the kernels: filtering is linear in them, so the result is the same.
    """

    def __init__(self, config: LtsConfig, text_channels: int):
        super().__init__(config, text_channels)
        self.word_scores = nn.ModuleList(nn.Linear(text_channels, 1) for _ in self.kernels)

    def kernel(self, index: int, words: Tensor, attention_mask: Tensor, sentence: Tensor) -> Tensor:
        scores = self.word_scores[index](words)[..., 0].masked_fill(attention_mask == 0, float("-inf"))
        return torch.einsum("nl,nlc->nc", scores.softmax(-1), self.kernels[index](words))


class TransformerLocalization(nn.Module):
    """The pixels of F_m3 as queries of a transformer decoder whose memory is f_text (Eq. 9)."""

    def __init__(self, config: LtsConfig, text_channels: int):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(config, text_channels) for _ in range(config.num_filterings)
        )
        self.response = nn.Linear(config.fusion_dim, 1)

    def forward(self, fused: Tensor, words: Tensor, attention_mask: Tensor, sentence: Tensor) -> Tensor:
        """As `RelevanceFiltering.forward`; the maps are those of the n layers."""
        height, width = fused.shape[-2:]
        positions = sine_positions(fused)
        x = fused.flatten(2).transpose(1, 2)
        responses = []
        for layer in self.layers:
            x = layer(x, positions, sentence)
            responses.append(self.response(x)[..., 0])
        return torch.stack(responses, 1).unflatten(2, (height, width))


class TransformerDecoderLayer(nn.Module):
    """Self-attention of the pixels, attention to the one text token, feed-forward; each with residual and LayerNorm."""

    def __init__(self, config: LtsConfig, text_channels: int):
        super().__init__()
        dim = config.fusion_dim
        self.heads = config.decoder_heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.text_value = nn.Linear(text_channels, dim)
        self.text_output = nn.Linear(dim, dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.decoder_ffn_dim), nn.ReLU(), nn.Linear(config.decoder_ffn_dim, dim)
        )
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, sentence: Tensor) -> Tensor:
        """x (N, hw, d), positions (hw, d), f_text (N, C) -> (N, hw, d)."""
        query, key, value = self.query(x + positions), self.key(x + positions), self.value(x)
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.output(attended))
        x = self.norm2(x + self.text_output(self.text_value(sentence))[:, None])
        return self.norm3(x + self.ffn(x))


class AtrousSpatialPyramidPooling(nn.Module):
    """1x1, dilated 3x3 and globally pooled branches side by side, mixed by a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, rates: list[int]):
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels)])
        self.branches.extend(ConvNormAct(in_channels, channels, 3, rate) for rate in rates)
        self.pooled = nn.Conv2d(in_channels, channels, 1)
        self.project = ConvNormAct(channels * (len(rates) + 2), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        x = x.contiguous(memory_format=torch.channels_last)  # once, or every branch's convolution would do it again
        pooled = F.leaky_relu(self.pooled(x.mean((2, 3), keepdim=True)), LEAKY_SLOPE)
        maps = [branch(x) for branch in self.branches]
        pooled = pooled.expand_as(maps[0]).contiguous(memory_format=torch.channels_last)
        return self.project(torch.cat([*maps, pooled], 1))


class SegmentationModule(nn.Module):
    """P_mask = Seg(concat(F_m3, H_mask)) (Eq. 10): ASPP, deconvolution by 2, mask."""

    def __init__(self, config: LtsConfig, in_channels: int):
        super().__init__()
        dim = config.segmentation_dim
        self.aspp = AtrousSpatialPyramidPooling(in_channels, dim, config.aspp_rates)
        self.deconv = nn.ConvTranspose2d(dim, max(dim // 2, 1), 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(max(dim // 2, 1))
        self.mask = nn.Conv2d(max(dim // 2, 1), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H/8, W/8) -> logits (N, H/4, W/4)."""
        x = F.leaky_relu(self.norm(self.deconv(self.aspp(x))), LEAKY_SLOPE)
        return self.mask(x)[:, 0]


class LtsForReferringSegmentation(RisPreTrainedModel):
    """LTS for N expressions over B images.

    `torch.export` takes any number of images and expressions but fixes the padded text length, over which it unrolls
    the GRU; `torch.compile` breaks its graph there.
    """

    config_class = LtsConfig

    def __init__(self, config: LtsConfig):
        super().__init__(config)
        self.vision_encoder = build_vision_encoder(config.vision_config, finest=config.refinement)
        self.text_encoder = BiGru(config.vocab_size, config.embedding_dim, config.hidden_size)
        text_channels = self.text_encoder.channels
        self.fusion = MultiModalFusion(config, self.vision_encoder.channels, text_channels)
        localizations = {
            "filter": RelevanceFiltering,
            "word_filter": WordFiltering,
            "transformer": TransformerLocalization,
        }
        located = config.localization != "none"
        self.localization = localizations[config.localization](config, text_channels) if located else None
        self.segmentation = SegmentationModule(config, config.fusion_dim + located) if config.use_segmentation else None
        # neither localization nor segmentation (row "Fusion" of Table 2): the mask is read off F_m3
        self.mask = None if located or config.use_segmentation else nn.Conv2d(config.fusion_dim, 1, 1)
        encoder = self.vision_encoder
        self.refinement = self.build_refinement([*encoder.finer_channels, encoder.channels[0]])
        self.post_init()

    def load_pretrained_encoders(self) -> None:
        """Load the backbone's public weights. GloVe is a file of yours: `text_encoder.load_glove(path, tokenizer)`."""
        self.vision_encoder.load_pretrained()

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """All that does not depend on text: (B, 3, H, W) -> g(F_vi W_vi) at H/32, H/16 and H/8 (Eq. 5, 7)."""
        finer, levels = self.vision_encoder.pyramid(pixel_values)
        return self.with_refinement(self.fusion.project(levels), pixel_values, [*finer, levels[0]])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask -> h_t (N, L, 2 * hidden_size), zero on padding, and f_text (N, 2 * hidden_size)."""
        return self.text_encoder(input_ids, attention_mask)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        object_index: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> RisOutput:
        """Segment N expressions over B images.

        Args:
            pixel_values: (B, 3, H, W) normalised images.
            input_ids, attention_mask: (N, L), padding at the end.
            image_index: (N,) long in [0, B); None is one expression per image.
            pixel_mask: not supported: LTS squashes its images, so nothing is padding.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1] of any resolution.

        Returns:
            `RisOutput`: logits (N, H/4, W/4), or at H/8 without the segmentation module, or at the refinement's stride;
            prior_logits (N, n, H/8, W/8), None without localization; with labels, loss (Eq. 13) and losses
            `segmentation` and, where it has a weight, `location`.

        Raises:
            ValueError: a pixel_mask, or inputs that `check_inputs` refuses.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        visual, fine = self.split_refinement(self.encode_image(pixel_values))
        words, sentence = self.encode_text(input_ids, attention_mask)
        fused = self.fusion(visual, sentence, image_index)
        prior = None if self.localization is None else self.localization(fused, words, attention_mask, sentence)
        if self.segmentation is not None:
            logits = self.segmentation(fused if prior is None else torch.cat([fused, prior[:, -1:]], 1))
        elif prior is not None:
            logits = prior[:, -1]
        else:
            logits = self.mask(fused)[:, 0]
        output = RisOutput(logits=self.refine(logits, fine, image_index), prior_logits=prior)
        if labels is not None:
            output.losses = self.losses(output.logits, prior, labels)
            output.loss = output.losses["segmentation"]
            if "location" in output.losses:
                output.loss = output.loss + self.config.locating_loss_weight * output.losses["location"]
            self.add_overlap_loss(output, labels)
        return output

    def losses(self, logits: Tensor, prior: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """L_seg (Eq. 11) and, if it has a weight, L_loc (Eq. 12), the mean over the n response maps."""
        reduction = self.config.loss_reduction
        losses = {"segmentation": binary_cross_entropy(*self.at_loss_size(logits, labels), reduction)}
        if self.config.locating_loss_weight:
            target = resize_labels(labels, prior.shape[-2:])
            each = [binary_cross_entropy(response, target, reduction) for response in prior.unbind(1)]
            losses["location"] = torch.stack(each).mean()
        return losses


LtsForReferringSegmentation.register_for_auto_class("AutoModel")
