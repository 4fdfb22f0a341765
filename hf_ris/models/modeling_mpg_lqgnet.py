"""MPG-LQGNet: mask prior generation with language queries guided network.

Paper: Zhou, Xiao, Lew, Wu. "Mask prior generation with language queries guided networks for referring image
segmentation", Computer Vision and Image Understanding 253 (2025), https://doi.org/10.1016/j.cviu.2025.104296. Original
repository: https://github.com/SWU-CS-MediaLab/MPG-LQNet; not consulted. Licence of this file: Apache-2.0.

Words enter inside the image encoder, as in LAVT: Swin stage i gives V_i; bidirectional spatial alignment makes of V_i
and the words a fused map F_i and one language query Q_i; a gate lets F_i pass to stage i + 1. A pixel decoder reads
F_1 ... F_4. The language queries attend to its maps, layer after layer, and each layer's attention scores give a mask
prior. The last prior, the finest decoded map and coordinates give the mask.

What depends on the image alone is the patch embedding and stage 1, and this `encode_image` runs once for each image,
however many expressions it has. Everything from the first fusion on depends on the expression and is run for each.

Deviations and readings
- The paper does not say which Swin-B. Window 7: it divides all four maps of 448x448, and with it LAVT has the 118.71M
  parameters that the paper's Table 7 counts (118.85M with window 12). Stochastic depth 0.3, LAVT's. Swin pads its map
  before it rolls it and never shrinks its window (`vision_encoders.py`).
- Eq. 1 and 3: the instance norm has no affine parameters; the projections before it have no bias: it would cancel.
- Eq. 7: the softmax runs over pixels. Padded words leave Eq. 6 and the average of Eq. 9; `[CLS]` and `[SEP]` are words.
- Eq. 11 lacks a parenthesis: F_G = F * sigmoid(CA_1(F + V) + CA_2(F + V)). Reduction 4; the paper prints none. The
  spatial paths of Table 4 are the same layers without the pooling, so maps of C channels. Without the gate V' = V + F.
- Eq. 12: the decoder reads LayerNorm(F_i), taken before the gate, as LAVT's published program, which this decoder
  follows. The upsampling stands inside: W([Up(F'); F]). Hidden width 512, LAVT's.
- Eq. 13: one projection per level, GroupNorm of 32 groups.
- Eq. 14: positions are 2-D sines per level, and as the equation stands they are in keys and values.
- Eq. 15: the maps are scores before the softmax (over 4,116 positions it would leave about 2e-4), scaled by
  d_head^-0.5, channels ordered level, query, head. Each layer has a fully connected layer of its own, 3 levels x
  4 queries x 8 heads = 96 -> 2; it narrows with Table 3's selections. The attention has residual and LayerNorm
  (`prior_residual`), though the text names those of the feed-forward network only, whose width, 2,048, is ours. The
  queries do not attend to each other.
- The last layer ends at its scores: nothing reads the queries that it would refine (1.18M parameters).
- Masks are enlarged as probabilities; the paper says nothing of it (`enlarges` of the processor).
- The coordinate map holds x and y of the cell centres in [-1, 1].
- Bilinear resizing has align_corners=True, LAVT's. The loss is taken at the input size, of the priors too.
- Tile and concatenate (Table 2): ReLU(W[V; mean word]); the mean leaves padding out.

Parameters without BERT: 124.92M (the paper: 125.75M): Swin 86.75, alignment 9.80, gates 0.35, decoder 21.31, generator
6.71, mask head 522 parameters. With the 1.18M that the last layer lacks it would be 126.10M.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from .configuration_mpg_lqgnet import MpgLqgnetConfig
from .fusion_layers import LanguageGate, TopDownLevel, instance_norm
from .losses import weighted_cross_entropy
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import coordinates_like, sine_positions
from .refinement import enlarge
from .text_encoders import load_bert, mean_of_words
from .vision_encoders import build_vision_encoder


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class BidirectionalSpatialAlignment(nn.Module):
    """BSAM (Eq. 1-9): every pixel gathers words, and every word pixels; the words' mean is the language query.

    Args:
        query_dim: C_q of the language query; None makes none.
    """

    def __init__(self, dim: int, text_dim: int, query_dim: int | None):
        super().__init__()
        self.visual_query = nn.Linear(dim, dim, bias=False)  # W_vq
        self.word_key = nn.Linear(text_dim, dim)  # W_lk
        self.word_value = nn.Linear(text_dim, dim)  # W_lv
        self.visual_output = nn.Linear(2 * dim, dim)  # W_ov
        self.makes_query = query_dim is not None
        if self.makes_query:
            self.visual_value = nn.Linear(dim, dim, bias=False)  # W_vv
            self.word_output = nn.Linear(text_dim + dim, query_dim)  # W_ol

    def attention(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 5: weights over words for each pixel (N, T, L), 0 on padding, and over pixels for each word (N, L, T)."""
        query = instance_norm(self.visual_query(visual))
        scores = query @ self.word_key(words).transpose(1, 2) * visual.shape[-1] ** -0.5
        padding = attention_mask[:, None] == 0
        over_words = scores.masked_fill(padding, torch.finfo(scores.dtype).min).softmax(-1)
        return over_words, scores.softmax(1).transpose(1, 2)

    def forward(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """V (N, T, C), L (N, L, D), mask (N, L) -> F (N, T, C) and Q (N, C_q), or None."""
        over_words, over_pixels = self.attention(visual, words, attention_mask)
        fused = F.relu(self.visual_output(torch.cat([visual, over_words @ self.word_value(words)], -1)))  # Eq. 6, 8
        if not self.makes_query:
            return fused, None
        seen = over_pixels @ instance_norm(self.visual_value(visual))
        words = F.relu(self.word_output(torch.cat([words, seen], -1)))  # Eq. 7, 9
        return fused, mean_of_words(words, attention_mask)


class TileAndConcatenate(nn.Module):
    """The baseline of Table 2 in place of the alignment: ReLU(W[V; mean word]) at every pixel, and no query."""

    def __init__(self, dim: int, text_dim: int):
        super().__init__()
        self.visual = nn.Linear(dim, dim)
        self.sentence = nn.Linear(text_dim, dim, bias=False)

    def forward(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        """V (N, T, C), L (N, L, D), mask (N, L) -> F (N, T, C)."""
        sentence = self.sentence(mean_of_words(words, attention_mask))
        return F.relu(self.visual(visual) + sentence[:, None]), None


class AttentionPath(nn.Module):
    """CA of Eq. 10: norm(Conv_2(ReLU(norm(Conv_1(GAP(X)))))); a spatial path (Table 4) has no GAP."""

    def __init__(self, dim: int, config: MpgLqgnetConfig, spatial: bool):
        super().__init__()
        if dim % config.gate_reduction:
            raise ValueError(f"gate_reduction={config.gate_reduction} does not divide a stage of width {dim}.")
        norm = nn.BatchNorm1d if config.gate_norm == "batch" else nn.LayerNorm
        hidden = dim // config.gate_reduction
        self.spatial = spatial
        self.conv1 = nn.Linear(dim, hidden, bias=False)
        self.norm1 = norm(hidden)
        self.conv2 = nn.Linear(hidden, dim, bias=False)
        self.norm2 = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C), or (N, 1, C) of a channel path.

        Raises:
            ValueError: one expression in training: batch norm has one value per channel and makes it 0.
        """
        x = x if self.spatial else x.mean(1, keepdim=True)
        samples = x.shape[:2]
        x = x.flatten(0, 1)
        if self.training and len(x) == 1 and isinstance(self.norm1, nn.BatchNorm1d):
            raise ValueError(
                "One expression cannot train the fusion gate's batch norm (Eq. 10); give at least two, or set "
                "gate_norm='layer'."
            )
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))).unflatten(0, samples)


class ChannelAttentionFusionGate(nn.Module):
    """CAFG (Eq. 11) and its variants of Table 4: sigmoid of the sum of one or two paths, weights in (0, 1).

    Args:
        spatial: for each path whether it weighs every position (True) or whole channels (False).
    """

    def __init__(self, dim: int, config: MpgLqgnetConfig, spatial: tuple[bool, ...]):
        super().__init__()
        self.paths = nn.ModuleList(AttentionPath(dim, config, path) for path in spatial)

    def forward(self, x: Tensor) -> Tensor:
        """F + V (N, T, C) -> weights of F, (N, T, C) or (N, 1, C)."""
        return sum(path(x) for path in self.paths).sigmoid()


# spatial paths of the gates of Eq. 11 and Table 4
_GATE_PATHS = {
    "channel_channel": (False, False),
    "single_channel": (False,),
    "spatial_channel": (True, False),
    "spatial_spatial": (True, True),
}


class PixelDecoder(nn.Module):
    """F_1 ... F_4 from coarse to fine (Eq. 12), each level then projected to C_q (Eq. 13).

    Args:
        num_levels: how many levels are projected, finest first: all for the generator, else the mask head's one.
    """

    def __init__(self, widths: list[int], dim: int, query_dim: int, num_levels: int):
        super().__init__()
        coarse = [dim, dim, widths[3]]
        self.levels = nn.ModuleList(TopDownLevel(c, fine, dim) for c, fine in zip(coarse, widths[:3], strict=True))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, query_dim, 1), nn.GroupNorm(32, query_dim))
            for width in [dim, dim, dim, widths[3]][:num_levels]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """F_1 ... F_4 (N, C_i, h_i, w_i) -> F_D1, F_D2, ... (N, C_q, h_i, w_i)."""
        decoded = [maps[3]]
        for level, fine in zip(reversed(self.levels), maps[2::-1], strict=True):
            decoded.insert(0, level(decoded[0], fine))
        return [projection(x) for projection, x in zip(self.projections, decoded)]


class MaskPriorLayer(nn.Module):
    """Queries attend to the pixels; the scores of that attention give a mask prior (Eq. 15), its result new queries.

    Args:
        refines: False for the last layer, which ends at its scores.
    """

    def __init__(self, config: MpgLqgnetConfig, refines: bool):
        super().__init__()
        dim, self.heads = config.query_dim, config.prior_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.prior = nn.Linear(3 * len(config.query_stages) * self.heads, 2)
        self.refines = refines
        if refines:
            self.value = nn.Linear(dim, dim)
            self.output = nn.Linear(dim, dim)
            self.attention_norm = nn.LayerNorm(dim) if config.prior_residual else None
            self.ffn = nn.Sequential(
                nn.Linear(dim, config.prior_ffn_dim), nn.ReLU(), nn.Linear(config.prior_ffn_dim, dim)
            )
            self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, pixels: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor | None]:
        """Q (N, Q, C), F_k (N, P, C) of three levels of these sizes -> prior scores (N, 2, *sizes[0]), refined Q."""
        query, key = self._heads(self.query(queries)), self._heads(self.key(pixels))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (N, heads, Q, P)
        prior = self._prior(scores.transpose(1, 2).flatten(1, 2), sizes)
        if not self.refines:
            return prior, None
        attended = scores.softmax(-1) @ self._heads(self.value(pixels))
        attended = self.output(attended.transpose(1, 2).flatten(2))
        queries = attended if self.attention_norm is None else self.attention_norm(queries + attended)
        return prior, self.ffn_norm(queries + self.ffn(queries))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, positions, width)

    def _prior(self, scores: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """A (N, Q x heads, P) -> (N, 2, *sizes[0]): levels brought to the finest and weighed together."""
        parts = scores.split([height * width for height, width in sizes], -1)
        maps = [resize(part.unflatten(-1, size), sizes[0]) for part, size in zip(parts, sizes)]
        return self.prior(torch.cat(maps, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LanguageQueryGuidedMaskPriorGenerator(nn.Module):
    """LQPG (Eq. 14-15): the language queries, refined layer after layer, each layer with a mask prior of its own."""

    def __init__(self, config: MpgLqgnetConfig):
        super().__init__()
        count = config.num_prior_layers
        self.layers = nn.ModuleList(MaskPriorLayer(config, refines=index + 1 < count) for index in range(count))

    def forward(self, queries: Tensor, levels: list[Tensor]) -> Tensor:
        """Q (N, Q, C), F_D1 ... F_D4 (N, C, h_i, w_i) -> m_p of every layer, (N, layers, 2, h_1, w_1)."""
        finest, *levels = levels
        pixels = torch.cat([level.flatten(2).transpose(1, 2) + sine_positions(level) for level in levels], 1)  # Eq. 14
        sizes = [tuple(level.shape[-2:]) for level in levels]
        priors = []
        for layer in self.layers:
            prior, queries = layer(queries, pixels, sizes)
            priors.append(resize(prior, finest.shape[-2:]))
        return torch.stack(priors, 1)


class MaskHead(nn.Module):
    """Eq. 16: a 1x1 convolution over F_D1, the mask prior and coordinates."""

    def __init__(self, config: MpgLqgnetConfig):
        super().__init__()
        self.coordinates = config.coordinates
        extra = 2 * (config.num_prior_layers > 0) + 2 * config.coordinates
        self.classifier = nn.Conv2d(config.query_dim + extra, 2, 1)

    def forward(self, decoded: Tensor, prior: Tensor | None) -> Tensor:
        """F_D1 (N, C_q, h, w) and m_p (N, 2, h, w) or None -> scores of background and foreground (N, 2, h, w)."""
        parts = [decoded]
        if prior is not None:
            parts.append(prior)
        if self.coordinates:
            parts.append(coordinates_like(decoded))
        return self.classifier(torch.cat(parts, 1))


class MpgLqgnetForReferringSegmentation(RisPreTrainedModel):
    """MPG-LQGNet. Logits are foreground minus background score at the input size, so 0.5 is the threshold."""

    config_class = MpgLqgnetConfig

    def __init__(self, config: MpgLqgnetConfig):
        super().__init__(config)
        self.vision_encoder = build_vision_encoder(config.vision_config)
        self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
        widths = self.vision_encoder.stage_channels
        self.fusions = nn.ModuleList(self._fusion(config, index, width) for index, width in enumerate(widths))
        self.gates = None if config.gate == "none" else nn.ModuleList(self._gate(config, w) for w in widths[:3])
        guided = config.num_prior_layers > 0
        self.pixel_decoder = PixelDecoder(widths, config.decoder_dim, config.query_dim, num_levels=4 if guided else 1)
        self.prior_generator = LanguageQueryGuidedMaskPriorGenerator(config) if guided else None
        self.mask_head = MaskHead(config)
        self.refinement = self.build_refinement(widths[:1])
        if not config.prior_loss_weight:  # then the mask alone teaches, and it reads the last prior
            self._keys_without_gradient = [
                rf"^prior_generator\.layers\.{index}\.prior\." for index in range(config.num_prior_layers - 1)
            ]
        self.post_init()

    @staticmethod
    def _fusion(config: MpgLqgnetConfig, index: int, width: int) -> nn.Module:
        text_dim = config.text_config.hidden_size
        if config.fusion == "tile":
            return TileAndConcatenate(width, text_dim)
        asked = config.num_prior_layers > 0 and index + 1 in config.query_stages
        return BidirectionalSpatialAlignment(width, text_dim, config.query_dim if asked else None)

    @staticmethod
    def _gate(config: MpgLqgnetConfig, width: int) -> nn.Module:
        if config.gate == "language":
            return LanguageGate(width)
        return ChannelAttentionFusionGate(width, config, _GATE_PATHS[config.gate])

    def load_pretrained_encoders(self) -> None:
        """Swin from timm (ImageNet-22K) and BERT from the Hub.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config whose encoders the public weights do not fit.
        """
        self.vision_encoder.load_pretrained()
        load_bert(self.text_encoder, self.config.text_pretrained)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (V_1 (B, ceil(H/4), ceil(W/4), C_1),): all that the expression does not touch."""
        visual = self.vision_encoder.stage(0, self.vision_encoder.embed(pixel_values))
        return self.with_refinement((visual,), pixel_values, [visual.permute(0, 3, 1, 2)])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and 0/1 mask -> BERT's last hidden states (N, L, D)."""
        return self.text_encoder(input_ids, attention_mask, use_cache=False).last_hidden_state

    def fuse(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder from the first fusion on.

        Args:
            visual, words, attention_mask: V_1 (N, h, w, C_1), L (N, L, D), its 0/1 mask (N, L).

        Returns:
            Normalised F_1 ... F_4, each (N, C_i, h_i, w_i), and Q_i (N, C_q) of the stages in `query_stages`.
        """
        maps, queries = [], []
        for index, (fusion, norm) in enumerate(zip(self.fusions, self.vision_encoder.norms)):
            if index > 0:
                visual = self.vision_encoder.stage(index, visual)
            size, visual = visual.shape[1:3], visual.flatten(1, 2)
            fused, query = fusion(visual, words, attention_mask)
            maps.append(norm(fused).unflatten(1, size).permute(0, 3, 1, 2))
            if query is not None:
                queries.append(query)
            if index < 3:
                visual = (visual + self.gated(index, fused, visual)).unflatten(1, size)
        return maps, queries

    def gated(self, index: int, fused: Tensor, visual: Tensor) -> Tensor:
        """F_G (Eq. 11) of a stage: F and V (N, T, C) -> (N, T, C). The language gate looks at F alone."""
        if self.gates is None:
            return fused
        return fused * self.gates[index](fused if self.config.gate == "language" else fused + visual)

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
            pixel_values: (B, 3, H, W), normalised.
            input_ids, attention_mask: (N, L); mask 1 = token, 0 = padding.
            image_index: (N,) long, the image of each expression; None is one expression per image.
            pixel_mask: not supported: MPG-LQGNet squashes its images, so nothing is padding.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1]; nearest-resized to (H, W) where they differ.

        Returns:
            `RisOutput`: logits (N, H, W); prior_logits (N, layers, H/4, W/4), None without the generator; with labels,
            loss (Eq. 17) and losses `mask` and, where it has a weight, `prior`.

        Raises:
            ValueError: a pixel_mask, an image_index that does not fit, or a single expression in training where the
                gate's batch norm needs two.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        (visual,), fine = self.split_refinement(self.encode_image(pixel_values))
        visual = visual.index_select(0, image_index)
        maps, queries = self.fuse(visual, self.encode_text(input_ids, attention_mask), attention_mask)
        levels = self.pixel_decoder(maps)
        priors = None if self.prior_generator is None else self.prior_generator(torch.stack(queries, 1), levels)
        scores = self.mask_head(levels[0], None if priors is None else priors[:, -1])
        if fine is None:
            scores = resize(scores, pixel_values.shape[-2:])
        else:
            foreground = self.refine(scores[:, 1] - scores[:, 0], fine, image_index)
            scores = enlarge(torch.stack([torch.zeros_like(foreground), foreground], 1), pixel_values.shape[-2:])
        output = RisOutput(logits=scores[:, 1] - scores[:, 0])
        if priors is not None:
            output.prior_logits = priors[:, :, 1] - priors[:, :, 0]
        if labels is not None:
            output.losses = self.losses(scores, priors, labels)
            output.loss = output.losses["mask"]
            if "prior" in output.losses:
                output.loss = output.loss + self.config.prior_loss_weight * output.losses["prior"]
            self.add_overlap_loss(output, labels)
        return output

    def losses(self, scores: Tensor, priors: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """Terms of Eq. 17: L_mask of scores (N, 2, H, W), mean L_prior of all layers' priors (N, layers, 2, h, w)."""
        scores, labels = self.at_loss_size(scores, labels, mode="nearest")
        size, weights = scores.shape[-2:], self.config.loss_weights
        losses = {"mask": weighted_cross_entropy(scores, labels, weights)}
        if self.config.prior_loss_weight:
            each = [weighted_cross_entropy(resize(prior, size), labels, weights) for prior in priors.unbind(1)]
            losses["prior"] = torch.stack(each).mean()
        return losses


MpgLqgnetForReferringSegmentation.register_for_auto_class("AutoModel")
