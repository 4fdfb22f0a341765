"""VATEX: Vision-Aware Text Features for referring image segmentation.

Paper: Nguyen-Truong, Nguyen, Vu, Tran, Hua, Yeung. "Improving Referring Image Segmentation using Vision-Aware Text
Features" (with its supplementary), https://arxiv.org/abs/2404.08590. Original repository: to be found from
https://nero1342.github.io/VATEX_RIS, without a licence; this file holds no code of it and is written from the paper and
from facts about it. Licence of this file: Apache-2.0.

CLIP, frozen, says where in the image the expression's object may be (CLIP prior); that and the sentence are where five
queries begin. In the Contextual Multimodal Decoder (CMD) words and pixels read each other, from the coarsest level to
the finest. A masked-attention decoder lets the queries read the pixels; each gives a mask and a probability, and the
most probable is the answer. A loss pulls together what the words have become of expressions that mean one object
(meaning consistency constraint, MCC).

What depends on the image alone runs once for each image (`encode_image`): both image encoders, the levels' projections
and the image's side of every attention in CMD.

Deviations and readings:
- Words are CLIP's, after its last norm, start and end token among them, through one linear layer to C. CLIP runs
  without gradient and always in eval mode, whatever the recipe says; `train_text_encoder` (ours) lets its text encoder
  learn, by the words and by the prior's prompt.
- Eq. 1: CLIP's token for the whole image is part of the vector; the image is squashed to 224x224. A ResNet of CLIP
  gives the prior as well, by its attention pool. "80 prompts": the mean of the sentences, which the cosine normalises.
- The prior is added to the mean of the expression's words. Queries that begin alike would stay alike: learned positions
  of the queries are added in every layer, as in Mask2Former.
- Eq. 2-4: level 1 is the coarsest. V_i goes through a 1x1 convolution to C; the dots are elementwise; no residual, no
  norm; the convolution is 3x3 and linear. 2-D sine positions are added to pixels as queries and keys.
- The output biases of CMD's attentions start at 1, so that its products start near the identity. With 0, four products
  in a row would start the words of level 4 at less than a hundredth of their size (the sentence's cosine hides it).
- Without CMD, Eq. 3 reads f_w at every level, and MCC looks at f_w.
- Eq. 6 has no temperature and no positive in the denominator; it can be negative. It counts all triplets of a batch;
  the collator draws one per image.
- Matching has one target for each expression, so it is an argmin over the queries. Unmatched queries have target 0. The
  losses of all layers' predictions are added up.
- The masked-attention decoder is written here: transformers' has no place for a mask of the padding. Its parts that fit
  are used (the mask head, the deformable pixel encoder); a test holds the rest against it.
- An image's answer does not depend on how the batch is padded: neither does any pixel read padding, nor do positions
  count it. Sides are padded to multiples of the coarsest stride first.
- Mask and Dice losses, and so the matching, look at every pixel of the logits, whose labels are read bilinearly; the
  published program's are means over 12,544 points, most of them uncertain (`loss_points`).
- Masks are enlarged as logits, bilinearly, and cut at 0, as in the published program.
- Video: `modeling_vatex_video.py`.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMLPPredictionHead,
    Mask2FormerPixelDecoderEncoderOnly,
)

from .attention import MultiHeadAttention, attend
from .clip_encoders import ClipTextEncoder, build_clip_image_encoder, load_clip_weights
from .configuration_vatex import VatexConfig
from .input_checks import Condition, can_be_looked_at, check_pixels, check_shape, check_words, word_conditions
from .losses import (
    binary_cross_entropy,
    dice_loss,
    info_nce_consistency,
    pixel_centres,
    point_sample,
    triplet_consistency,
    uncertain_points,
)
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import LearnedRows, sine_positions
from .vision_encoders import build_vision_encoder, cells, inside, repeat_edges


class Side(NamedTuple):
    """A level's pixels as CMD's attentions read them, for B images or N expressions."""

    visual: Tensor  # V_i (n, C, h, w)
    query: Tensor  # of Eq. 3, (n, hw, C)
    key: Tensor | None  # of Eq. 2, (n, hw, C)
    value: Tensor | None

    def of(self, image_index: Tensor) -> "Side":
        """Of each expression's image; index_select is deterministic, unlike indexing."""
        return Side(*(None if x is None else x.index_select(0, image_index) for x in self))


class EncodedImage(NamedTuple):
    """What an image gives without any expression, for B images."""

    levels: list[Tensor]  # V_1 to V_4 (B, C, h, w), coarsest first
    sides: list[Side] | None  # None where words change the levels first (early fusion, pixel encoder)
    prior: tuple[Tensor, Tensor] | None  # CLIP's patches (B, E, h, w) and whole image (B, E)
    fine: Tensor | None = None  # the refinement's part


class CrossAttention(nn.Module):
    """Multi-head attention whose two sides are projected apart, so that one can be shared; its output starts near 1."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        nn.init.ones_(self.output.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Projected (N, Q, C), (N, K, C), (N, K, C) and mask (N, 1, 1, K), True = may be read -> (N, Q, C)."""
        return self.output(attend(query, key, value, self.heads, mask))


class BidirectionalAttention(nn.Module):
    """Words read pixels (Eq. 2), then pixels read those words (Eq. 3)."""

    def __init__(self, dim: int, heads: int, to_text: bool):
        super().__init__()
        self.to_text = CrossAttention(dim, heads) if to_text else None
        self.to_visual = CrossAttention(dim, heads)

    def side(self, visual: Tensor, content: Tensor | None) -> Side:
        """V_i (n, C, h, w) with `content` (n, 2) in its cells -> the pixels' side."""
        pixels = visual.flatten(2).transpose(1, 2)
        placed = pixels + sine_positions(visual, content)
        key = value = None
        if self.to_text is not None:
            key, value = self.to_text.key(placed), self.to_text.value(pixels)
        return Side(visual, self.to_visual.query(placed), key, value)

    def forward(self, side: Side, words: Tensor, word_mask: Tensor, content: Tensor | None) -> tuple[Tensor, Tensor]:
        """F_{i-1}^w (N, L, C) and mask (N, 1, 1, L), True = word -> V'_i (N, C, h, w), F_i^w (N, L, C)."""
        height, width = side.visual.shape[-2:]
        if self.to_text is not None:
            pixel_mask = None if content is None else inside(content, height, width).flatten(1)[:, None, None]
            words = words * self.to_text(self.to_text.query(words), side.key, side.value, pixel_mask)
        attention = self.to_visual
        read = attention(side.query, attention.key(words), attention.value(words), word_mask)
        return side.visual * read.transpose(1, 2).unflatten(2, (height, width)), words


class ContextualMultimodalDecoder(nn.Module):
    """Pixels and words through four levels, coarsest first (Eq. 2-4).

    Args:
        channels: of the encoder's levels, coarsest first.
    """

    def __init__(self, config: VatexConfig, channels: list[int]):
        super().__init__()
        dim, heads = config.hidden_dim, config.num_heads
        self.projections = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        self.attentions = nn.ModuleList(BidirectionalAttention(dim, heads, config.cmd) for _ in channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in channels)

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        """The encoder's levels, coarsest first -> V_1 to V_4, each (B, C, h, w)."""
        return [projection(level) for projection, level in zip(self.projections, maps, strict=True)]

    def sides(self, levels: list[Tensor], content: list[Tensor | None]) -> list[Side]:
        return [block.side(*one) for block, *one in zip(self.attentions, levels, content, strict=True)]

    def forward(
        self, sides: list[Side], words: Tensor, word_mask: Tensor, content: list[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """f_w (N, L, C), mask (N, 1, 1, L) -> F_1^v to F_4^v, each (N, C, h, w), and f_w with each new F_i^w."""
        maps, states = [], [words]
        for side, block, convolution, own in zip(sides, self.attentions, self.convolutions, content, strict=True):
            x, words = block(side, words, word_mask, own)
            if maps:
                x = x + upsample(maps[-1], content[len(maps) - 1])
            if own is not None:  # beyond the content lies what a convolution pads with
                x = x * inside(own, *x.shape[-2:])[:, None]
            maps.append(convolution(x))
            if block.to_text is not None:
                states.append(words)
        return maps, states


def upsample(x: Tensor, content: Tensor | None) -> Tensor:
    """(N, C, h, w) to twice its sides; beyond `content` (N, 2) its edge is repeated, as beyond the map's."""
    if content is not None:
        x = repeat_edges(x, content)
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ClipPrior(nn.Module):
    """Similarities of CLIP's image tokens and prompt, as a vector (Eq. 1) and embedded into C.

    Args:
        positions: of CLIP's map.
    """

    def __init__(self, config: VatexConfig, positions: int):
        super().__init__()
        self.class_token, self.norm = config.prior_class_token, config.prior_norm
        size, dim = positions + self.class_token, config.hidden_dim
        self.embedding = nn.Linear(size, dim)
        self.output = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim)) if config.prior_ffn else nn.Identity()

    def forward(self, heatmap: Tensor, whole: Tensor) -> Tensor:
        """Cosines of the patches (N, h, w) and of the whole image (N,) -> (N, C)."""
        similarities = heatmap.flatten(1)
        if self.class_token:
            similarities = torch.cat([whole[:, None], similarities], 1)
        if self.norm:
            similarities = F.normalize(similarities, dim=1)
        return self.output(self.embedding(similarities.to(self.embedding.weight.dtype)))  # cosines are float32


class PixelEncoder(nn.Module):
    """Mask2Former's multi-scale deformable attention over the three coarsest levels (published program)."""

    def __init__(self, config: VatexConfig):
        super().__init__()
        dim, heads = config.hidden_dim, config.num_heads
        settings = Mask2FormerConfig(
            feature_size=dim,
            num_attention_heads=heads,
            encoder_layers=config.pixel_encoder_layers,
            encoder_feedforward_dim=4 * dim,
            dropout=0.0,
        )
        self.encoder = Mask2FormerPixelDecoderEncoderOnly(settings)
        self.level_embeddings = LearnedRows(3, dim)
        for layer in self.encoder.layers:
            attention = layer.self_attn
            for linear in (attention.sampling_offsets, attention.attention_weights):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            # each head looks in a direction of its own, point k at k cells' distance
            angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
            directions = torch.stack([angles.cos(), angles.sin()], 1)
            directions = directions / directions.abs().amax(1, keepdim=True)
            steps = torch.arange(1, attention.n_points + 1, dtype=torch.float32)
            offsets = (directions[:, None, None] * steps[:, None]).expand(-1, attention.n_levels, -1, -1)
            with torch.no_grad():
                attention.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, maps: list[Tensor], content: list[Tensor | None]) -> list[Tensor]:
        """V_1, V_2, V_3 (N, C, h, w) -> the same shapes."""
        shapes = [tuple(level.shape[-2:]) for level in maps]
        pixels = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        places, padding, ratios = [], [], []
        for level, own, embedding in zip(maps, content, self.level_embeddings(), strict=True):
            places.append((sine_positions(level, own) + embedding).expand(len(level), -1, -1))
            sides = level.new_tensor(level.shape[-2:])
            ratios.append((sides.expand(len(level), 2) if own is None else own.to(level.dtype)) / sides)
            if own is not None:
                padding.append(~inside(own, *level.shape[-2:]).flatten(1))
        encoded = self.encoder(
            inputs_embeds=pixels,
            attention_mask=torch.cat(padding, 1) if padding else None,
            position_embeddings=torch.cat(places, 1),
            spatial_shapes_list=shapes,
            valid_ratios=torch.stack(ratios, 1).flip(-1),  # x, y
            return_dict=True,
        ).last_hidden_state
        parts = encoded.split([height * width for height, width in shapes], 1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes)]


class MaskedAttentionLayer(nn.Module):
    """Queries read the pixels that their masks admit, then each other, then a feed-forward part; norms behind each."""

    def __init__(self, dim: int, heads: int, ffn_dim: int):
        super().__init__()
        self.cross_attention, self.cross_norm = MultiHeadAttention(dim, heads), nn.LayerNorm(dim)
        self.self_attention, self.self_norm = MultiHeadAttention(dim, heads), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Queries (N, Q, C), their positions (Q, C), pixels (N, K, C), mask (N, 1, Q, K), True = may be read."""
        x = self.cross_norm(x + self.cross_attention(x + positions, keys, values, attn_mask=mask)[0])
        placed = x + positions
        x = self.self_norm(x + self.self_attention(placed, placed, x)[0])
        return self.ffn_norm(x + self.ffn(x))


class Prediction(NamedTuple):
    """Of one layer: class logits (N, Q, 1 or 2) and mask logits (N, Q, h, w)."""

    classes: Tensor
    masks: Tensor


class MaskedAttentionDecoder(nn.Module):
    """Mask2Former's decoder: each layer reads one of F_1^v to F_3^v in turn, within the mask that the last one gave."""

    def __init__(self, config: VatexConfig):
        super().__init__()
        dim = config.hidden_dim
        self.layers = nn.ModuleList(
            MaskedAttentionLayer(dim, config.num_heads, config.ffn_dim) for _ in range(config.decoder_layers)
        )
        self.query_positions = LearnedRows(config.num_queries, dim)
        self.level_embeddings = LearnedRows(3, dim)
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, 1 if config.class_loss == "binary" else 2)
        self.mask_head = Mask2FormerMLPPredictionHead(dim, dim, dim)

    def forward(self, start: Tensor, maps: list[Tensor], content: list[Tensor | None]) -> list[Prediction]:
        """f_o (N, C), F_1^v to F_4^v -> predictions before the first and after each layer."""
        values = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(maps[:3], self.level_embeddings(), strict=True)
        ]
        keys = [value + sine_positions(level, own) for value, level, own in zip(values, maps, content)]
        positions = self.query_positions()
        x = start[:, None].expand(-1, len(positions), -1)
        predictions = [self.predict(x, maps[3])]
        for index, layer in enumerate(self.layers):
            level = index % 3
            mask = attention_mask(predictions[-1].masks, maps[level].shape[-2:], content[level])
            x = layer(x, positions, keys[level], values[level], mask)
            predictions.append(self.predict(x, maps[3]))
        return predictions

    def predict(self, x: Tensor, pixels: Tensor) -> Prediction:
        """Queries (N, Q, C), F_4^v (N, C, h, w) -> Eq. 7 without its sigmoid, and the classes."""
        x = self.norm(x)
        return Prediction(self.class_head(x), torch.einsum("nqc,nchw->nqhw", self.mask_head(x), pixels))


def attention_mask(mask_logits: Tensor, size: tuple[int, int], content: Tensor | None) -> Tensor:
    """Masks (N, Q, H, W) -> pixels of a level that a query may read, (N, 1, Q, hw): all where its mask is empty."""
    logits = F.interpolate(mask_logits.detach(), size=tuple(size), mode="bilinear", align_corners=False)
    mask = (logits >= 0).flatten(2)
    real = torch.ones_like(mask) if content is None else inside(content, *size).flatten(1)[:, None].expand_as(mask)
    mask = mask & real
    return (mask | (real & ~mask.any(-1, keepdim=True)))[:, None]  # a `where` of truth values, which ONNX Runtime lacks


class VatexForReferringSegmentation(RisPreTrainedModel):
    """VATEX. Logits are those of the most probable query, at stride 4 of the padded input."""

    config_class = VatexConfig
    # what differs where the input is a video (`modeling_vatex_video.py`)
    attention_class: ClassVar[type[nn.Module]] = BidirectionalAttention
    cmd_class: ClassVar[type[nn.Module]] = ContextualMultimodalDecoder
    decoder_class: ClassVar[type[nn.Module]] = MaskedAttentionDecoder
    takes_pixel_mask = True
    _keys_without_gradient: ClassVar[list[str]] = [r"^clip_image_encoder\.", r"^text_encoder\."]  # CLIP is frozen

    def __init__(self, config: VatexConfig):
        super().__init__(config)
        dim, side = config.hidden_dim, config.clip_image_size
        self.vision_encoder = self.build_vision_encoder(config)
        self.text_encoder = ClipTextEncoder(config.clip_config)
        if config.train_text_encoder:
            self._keys_without_gradient = [r"^clip_image_encoder\."]
            if not config.clip_prior:  # then none reads a sentence
                self._keys_without_gradient.append(r"^text_encoder\.tower\.text_projection$")
        if config.max_text_length > self.text_encoder.max_length:
            raise ValueError(
                f"max_text_length is {config.max_text_length}, but CLIP's text encoder has "
                f"{self.text_encoder.max_length} positions."
            )
        self.text_projection = nn.Linear(self.text_encoder.channels, dim)
        self.clip_image_encoder, self.clip_prior = None, None
        if config.clip_prior:
            self.clip_image_encoder = build_clip_image_encoder(config.clip_config)
            stride = self.clip_image_encoder.strides[-1]
            if side % stride:
                raise ValueError(f"clip_image_size must be a multiple of {stride}, CLIP's stride, got {side}.")
            self.clip_prior = ClipPrior(config, (side // stride) ** 2)
        fused = config.early_fusion
        self.early_fusion = (
            nn.ModuleList(self.attention_class(dim, config.num_heads, True) for _ in range(4)) if fused else None
        )
        self.pixel_encoder = PixelEncoder(config) if config.pixel_encoder_layers else None
        self.cmd = self.cmd_class(config, self.vision_encoder.channels[::-1])
        self.decoder = self.decoder_class(config)
        self.refinement = self.build_refinement([*self.vision_encoder.finer_channels, self.vision_encoder.channels[0]])
        self.post_init()

    @staticmethod
    def build_vision_encoder(config: VatexConfig) -> nn.Module:
        return build_vision_encoder(config.vision_config, finest=config.refinement)

    def train(self, mode: bool = True) -> "VatexForReferringSegmentation":
        """CLIP stays in eval mode."""
        super().train(mode)
        self.text_encoder.eval()
        if self.clip_image_encoder is not None:
            self.clip_image_encoder.eval()
        return self

    def load_pretrained_encoders(self) -> None:
        """The vision encoder's weights from timm, CLIP's from open_clip or from the file of `clip_config.pretrained`.

        Raises:
            OSError: weights that are neither there nor reachable; the message names them.
            ValueError: a config whose encoders the public weights do not fit.
        """
        self.vision_encoder.load_pretrained()
        load_clip_weights(self.config.clip_config, self.clip_image_encoder, self.text_encoder)

    def encode_image(
        self, pixel_values: Tensor, content: Tensor | None = None, clip_pixel_values: Tensor | None = None
    ) -> EncodedImage:
        """All that does not depend on text.

        Args:
            pixel_values: (B, 3, H, W), sides multiples of the coarsest stride. content: (B, 2) long, as well: rows and
                columns that are not padding; None is all.
            clip_pixel_values: (B, 3, S, S); None leaves the prior out.
        """
        finer, pyramid = self.vision_encoder.pyramid(pixel_values, content)
        levels = self.cmd.project(pyramid[::-1])
        sides = None
        if self.early_fusion is None and self.pixel_encoder is None:
            sides = self.cmd.sides(levels, self.content_of_levels(content))
        prior = None
        if clip_pixel_values is not None:
            with torch.no_grad():
                prior = self.clip_image_encoder.joint(clip_pixel_values.to(self.dtype))
        image = self.with_refinement((levels, sides, prior), pixel_values, [*finer, pyramid[0]], content)
        return EncodedImage(*image)

    def content_of_levels(self, content: Tensor | None) -> list[Tensor | None]:
        """`content` (n, 2) in pixels to that of V_1 to V_4 in cells."""
        strides = self.vision_encoder.strides[::-1]
        return [None if content is None else cells(content, stride) for stride in strides]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and 0/1 mask -> f_w (N, L, C): CLIP's words, projected."""
        return self.text_projection(self.read_with_clip(input_ids, attention_mask)[0])

    def encode_prompts(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """(N, P, L) ids and 0/1 mask -> F_text (N, E), the mean over the prompts."""
        _, sentences = self.read_with_clip(prompt_ids.flatten(0, 1), prompt_mask.long().flatten(0, 1))
        return sentences.unflatten(0, prompt_ids.shape[:2]).mean(1)

    def read_with_clip(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask -> CLIP's words (N, L, W) and sentences (N, E), as a rule without gradient."""
        with nullcontext() if self.config.train_text_encoder else torch.no_grad():
            return self.text_encoder(input_ids, attention_mask)

    def clip_heatmap(self, clip_pixel_values: Tensor, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Cosines (N, h, w) of Eq. 1 for one image each, at any size: 960x960 gives 60x60 with patches of 16.

        Raises:
            ValueError: a model without prior.
        """
        if self.clip_image_encoder is None:
            raise ValueError("This VATEX has clip_prior=False, so there is no heatmap.")
        with torch.no_grad():
            patches, whole = self.clip_image_encoder.joint(clip_pixel_values.to(self.dtype))
        return cosines(patches, whole, self.encode_prompts(prompt_ids, prompt_mask))[0]

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        object_index: Tensor | None = None,
        labels: Tensor | None = None,
        clip_pixel_values: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> RisOutput:
        """Segment N expressions over B images.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded right and below.
            input_ids, attention_mask: (N, L), padding at the end.
            image_index: (N,) long, the image of each expression; None is one expression per image.
            pixel_mask: (B, H, W), 1 = image, 0 = padding, a rectangle from the upper left; None is no padding.
            object_index: (N,) long, expressions of one object share a number; None leaves the consistency loss out.
            labels: (N, H, W) masks in [0, 1].
            clip_pixel_values: (B, 3, S, S), CLIP's view of the images; as the next two, for a model with prior.
            prompt_ids, prompt_mask: (N, P, L), P prompts for each expression.

        Returns:
            `RisOutput` with logits (N, h, w), query_logits (N, Q, h, w), query_scores (N, Q), text_states (level 0 is
            f_w), input_size, with prior heatmap (N, h', w') over CLIP's view, and with labels `loss` and `losses`
            (class, mask and dice, summed over layers, and mcc).

        Raises:
            ValueError: CLIP's view or prompts missing, or an image_index that does not fit.
        """
        further = self.check_prior_inputs(
            pixel_values, input_ids, attention_mask, clip_pixel_values, prompt_ids, prompt_mask
        )
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels, further
        )
        size = pixel_values.shape[-2:]
        pixel_values = F.pad(pixel_values, (0, -size[1] % self.config.stride, 0, -size[0] % self.config.stride))
        content = self.content_of(pixel_mask, pixel_values.shape[-2:])
        image = self.encode_image(pixel_values, content, clip_pixel_values if self.clip_prior is not None else None)
        content = None if content is None else content.index_select(0, image_index)
        words = self.encode_text(input_ids, attention_mask)
        maps, states = self.fuse(image, words, attention_mask, image_index, content)
        states = [self.sentence(state, attention_mask) for state in states]
        start, heatmap = states[0], None
        if self.clip_prior is not None:
            prior = (x.index_select(0, image_index) for x in image.prior)
            heatmap, whole = cosines(*prior, self.encode_prompts(prompt_ids, prompt_mask))
            start = start + self.clip_prior(heatmap, whole)
        predictions = self.decoder(start, maps, self.content_of_levels(content))
        query_logits, scores = self.answers(predictions[-1], content)
        best = scores.argmax(1)[:, None, None, None].expand(-1, 1, *query_logits.shape[-2:])
        output = RisOutput(
            logits=self.refine(query_logits.gather(1, best)[:, 0], image.fine, image_index, content),
            heatmap=heatmap,
            query_logits=query_logits,
            query_scores=scores,
            text_states=tuple(states),
            input_size=tuple(pixel_values.shape[-2:]),
        )
        if labels is not None:
            extents = self.extents(content, size, pixel_values.shape[-2:], labels)
            refine = partial(self.refine, image=image.fine, image_index=image_index, content=content)
            losses = self.mask_losses(predictions, labels, *extents, refine)
            output.loss, output.losses = self.weighed(losses, states[-1], object_index, image_index)
        return output

    def check_prior_inputs(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        clip_pixel_values: Tensor | None,
        prompt_ids: Tensor | None,
        prompt_mask: Tensor | None,
    ) -> list[Condition]:
        """What must be true of the prior's inputs; none without a prior, which then are not read.

        Raises:
            ValueError: a prior whose inputs are missing or of other shapes.
        """
        if self.clip_prior is None:
            return []
        if clip_pixel_values is None or prompt_ids is None or prompt_mask is None:
            raise ValueError(
                "VATEX with its prior takes clip_pixel_values, prompt_ids and prompt_mask, as its processor makes them."
            )
        if not can_be_looked_at(pixel_values):
            return []
        check_pixels(pixel_values)
        check_words("input_ids", input_ids, attention_mask, "attention_mask")
        side, (expressions, *_) = self.config.clip_image_size, input_ids.shape
        check_shape("clip_pixel_values", clip_pixel_values, (len(pixel_values), 3, side, side), "CLIP's views")
        check_words("prompt_ids", prompt_ids, prompt_mask, "prompt_mask")
        shape = (expressions, *prompt_ids.shape[1:]) if prompt_ids.ndim == 3 else (expressions, 1, prompt_ids.shape[-1])
        check_shape("prompt_ids", prompt_ids, shape, "(expressions, prompts, tokens)")
        return list(word_conditions("prompt_ids", prompt_ids, prompt_mask, "prompt_mask", self.text_limits[0]))

    def content_of(self, pixel_mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """(B, 2): rows and columns that are not padding, up to a multiple of the coarsest stride; None: all are."""
        if pixel_mask is None:
            return None
        stride = self.config.stride
        content = torch.stack([pixel_mask.bool().any(2).sum(1), pixel_mask.bool().any(1).sum(1)], 1)
        content = cells(content, stride) * stride
        # the shorter way gives the same; a compiled graph need not break for it
        if not torch.compiler.is_compiling() and bool((content == content.new_tensor(tuple(size))).all()):
            return None
        return content

    def fuse(
        self, image: EncodedImage, words: Tensor, attention_mask: Tensor, image_index: Tensor, content: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """f_w (N, L, C) and the images -> F_1^v to F_4^v, and f_w with each F_i^w."""
        word_mask, contents = attention_mask.bool()[:, None, None], self.content_of_levels(content)
        if image.sides is not None:
            return self.cmd([side.of(image_index) for side in image.sides], words, word_mask, contents)
        levels = [level.index_select(0, image_index) for level in image.levels]
        if self.early_fusion is not None:
            for index, (block, own) in enumerate(zip(self.early_fusion, contents, strict=True)):
                levels[index], _ = block(block.side(levels[index], own), words, word_mask, own)
        if self.pixel_encoder is not None:
            levels[:3] = self.pixel_encoder(levels[:3], contents[:3])
        return self.cmd(self.cmd.sides(levels, contents), words, word_mask, contents)

    def sentence(self, words: Tensor, attention_mask: Tensor) -> Tensor:
        """F_s (N, C): the mean over an expression's words (N, L, C) (Eq. 5)."""
        mask = attention_mask.to(words.dtype)[..., None]
        count = mask.sum() if self.config.sentence == "batch" else mask.sum(1)
        return (words * mask).sum(1) / count

    def answers(self, prediction: Prediction, content: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mask logits (N, Q, h, w), whose edges are repeated in the padding, and probabilities (N, Q)."""
        classes, masks = prediction
        if content is not None:
            masks = repeat_edges(masks, cells(content, self.vision_encoder.strides[0]))
        if self.config.class_loss == "softmax":
            return masks, classes[..., 0].float().softmax(1)
        return masks, classes[..., 0].float().sigmoid()

    @staticmethod
    def extents(
        content: Tensor | None, size: tuple[int, int], padded: tuple[int, int], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, 2) each, x before y: the share of the mask logits' and of the labels' sides that the images cover."""
        sides = labels.new_tensor(tuple(size), dtype=torch.float32).expand(len(labels), 2)
        covered = sides if content is None else torch.minimum(content.to(sides.dtype), sides)
        return (covered / covered.new_tensor(tuple(padded))).flip(1), (covered / sides).flip(1)

    def mask_losses(
        self,
        predictions: list[Prediction],
        labels: Tensor,
        extent: Tensor,
        label_extent: Tensor,
        refine: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Class, mask and Dice losses of every prediction against its cheapest query, summed over predictions.

        The last prediction is refined, and with `loss_size="full"` it answers for every pixel of the labels.
        """
        losses = dict.fromkeys(("class", "mask", "dice"), labels.new_zeros(()))
        labels = labels[:, None].float()
        to_labels = label_extent / extent
        for index, (classes, masks) in enumerate(predictions):
            chosen = self.match(classes, masks, labels, extent, to_labels)
            mask = masks.gather(1, chosen[:, None, None, None].expand(-1, 1, *masks.shape[-2:]))
            last = index + 1 == len(predictions)
            if last:
                mask = refine(mask[:, 0])[:, None]
            if last and self.config.loss_size == "full":
                points = pixel_centres(labels) * extent[:, None]
            else:
                points = self.places(mask, extent, uncertain=True)
            logits = point_sample(mask, points)[:, 0]
            targets = point_sample(labels, points * to_labels[:, None])[:, 0]
            losses["class"] = losses["class"] + self.class_loss(classes, chosen)
            losses["mask"] = losses["mask"] + binary_cross_entropy(logits, targets)
            losses["dice"] = losses["dice"] + dice_loss(logits, targets).mean()
        return losses

    def places(self, masks: Tensor, extent: Tensor, uncertain: bool = False) -> Tensor:
        """Points (N, P, 2) of masks (N, K, h, w): every pixel, or random ones, `uncertain` ones of a single mask."""
        count = self.config.loss_points
        if count is None:
            return pixel_centres(masks) * extent[:, None]
        if uncertain:
            return uncertain_points(masks[:, 0], count, extent)
        return torch.rand(len(masks), count, 2, device=masks.device) * extent[:, None]

    @torch.no_grad()
    def match(self, classes: Tensor, masks: Tensor, labels: Tensor, extent: Tensor, to_labels: Tensor) -> Tensor:
        """The query (N,) that costs least: by its probability and, at `places`, by its mask."""
        class_weight, mask_weight, dice_weight, _ = self.config.loss_weights
        points = self.places(masks, extent)
        logits = point_sample(masks, points)
        targets = point_sample(labels, points * to_labels[:, None]).expand_as(logits)
        if self.config.class_loss == "softmax":
            probability = classes.float().softmax(-1)[..., 0]
        else:
            probability = classes[..., 0].float().sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
        cost = mask_weight * entropy + dice_weight * dice_loss(logits, targets) - class_weight * probability
        return cost.argmin(1)

    def class_loss(self, classes: Tensor, chosen: Tensor) -> Tensor:
        """Class logits (N, Q, 1 or 2) against the chosen query (N,) of each expression."""
        target = F.one_hot(chosen, classes.shape[1])
        if self.config.class_loss == "binary":
            return binary_cross_entropy(classes[..., 0], target)
        weight = torch.tensor([1.0, 0.1], device=classes.device)  # object, no object
        return F.cross_entropy(classes.float().flatten(0, 1), 1 - target.flatten(), weight=weight)

    def weighed(
        self, losses: dict[str, Tensor], sentences: Tensor, object_index: Tensor | None, image_index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses by `loss_weights`, and all losses: those given and, where objects are told, the meaning
        consistency of F_s (N, C)."""
        if self.config.mcc and object_index is not None:
            losses = losses | {"mcc": self.consistency(sentences, object_index, image_index)}
        weights = dict(zip(("class", "mask", "dice", "mcc"), self.config.loss_weights, strict=True))
        return sum(weights[name] * term for name, term in losses.items()), losses

    def consistency(self, sentences: Tensor, object_index: Tensor, image_index: Tensor) -> Tensor:
        """Meaning consistency of F_s (N, C)."""
        if self.config.mcc_loss == "triplet":
            return triplet_consistency(sentences, object_index, image_index)
        return info_nce_consistency(sentences, object_index, self.config.mcc_temperature)


def cosines(patches: Tensor, whole: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's patches (N, E, h, w), whole image (N, E) and text (N, E) -> their cosines (N, h, w) and (N,), float32."""
    text = F.normalize(text.float(), dim=1)
    heatmap = (F.normalize(patches.float(), dim=1) * text[:, :, None, None]).sum(1)
    return heatmap, (F.normalize(whole.float(), dim=1) * text).sum(1)


VatexForReferringSegmentation.register_for_auto_class("AutoModel")
