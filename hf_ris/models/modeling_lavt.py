"""LAVT: Language-Aware Vision Transformer for referring image segmentation.

Paper: Yang, Wang, Tang, Chen, Zhao, Torr. "LAVT: Language-Aware Vision Transformer for Referring Image Segmentation",
CVPR 2022, https://arxiv.org/abs/2112.02244. Original repository: https://github.com/yz93/LAVT-RIS (GPL-3). This file
holds no code of it: it is written from the paper and from measured facts about the published program, whose logits it
reproduces with converted checkpoints (`python -m hf_ris.conversion lavt`).

Words enter inside the image encoder (early fusion). Swin stage i gives V_i; the pixel-word attention module makes F_i
of V_i and the words; the language gate S_i lets V_i + S_i * F_i pass to stage i + 1; the decoder reads F_1 ... F_4.

What depends on the image alone is the patch embedding and stage 1, and this `encode_image` runs once for each image,
however many expressions it has. Everything from the first fusion on depends on the expression and is run for each.

Deviations and readings:
- The decoder reads LayerNorm(F_i), taken before the gate; the paper does not mention the norm.
- Attention scores are scaled by the full width C_i^-0.5, with several heads too, as in the published program.
- Swin pads its map before it rolls it and never shrinks its window (`vision_encoders.py`); padded positions are not
  masked. Inputs whose sides 4 does not divide are zero-padded right and below.
- Bilinear interpolation has align_corners=True, in the decoder and from stride 4 to the input size.
- Masks are enlarged as probabilities. The published program enlarges both scores and takes the greater; that is
  `enlarges="logits"` of the processor.
- The gate of stage 4 has no successor. Its parameters exist, as in published checkpoints; it is not computed.
- By instance norm and softmax, the biases of the query, key, value and output projections of the attention have no
  effect; they are kept for parameter equality.
- The paper trains with plain cross-entropy; the published program weighs it 0.9 / 1.1 (`loss_weights`). The released
  `lavt_one` weights are said to come from a Dice loss that was never published.
- With EAVL's aligner (`aligner=True`; EAVL, Table V) kernels made from queries replace the last convolution. The
  queries read F_2 ... F_4 and the words; there is no global vision feature, and the size of the input is fixed.
- CLIP's text encoder in place of BERT (`text_encoder="clip"`) is VATEX's, supplementary Table 1; its words are not
  projected.
- Which BERT layers are trained is the recipe's matter (the published program leaves out layers 10, 11 and embeddings).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from .aligner import MultiQueryGenerator, VisionLanguageAligner, map_side
from .clip_encoders import ClipTextEncoder, load_clip_weights
from .configuration_lavt import LavtConfig
from .fusion_layers import LanguageGate, TopDownLevel, instance_norm
from .losses import weighted_cross_entropy
from .modeling_ris import RisOutput, RisPreTrainedModel
from .refinement import enlarge
from .text_encoders import load_bert
from .vision_encoders import build_vision_encoder


class PixelWordAttention(nn.Module):
    """Each pixel gathers the words that matter to it (Eq. 1-5), instance-normalised at query and output only.

    The output norm divides by the spread that an average of words has over the pixels, which can be small, so rounding
    errors grow there. Two shifts that leave the result as it is keep them small: words are taken relative to their mean
    (softmax and norm cancel it), and attention weights relative to their mean over the pixels (the norm cancels it).
    For the same reason autocast, which would compute products in half precision, is off here.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"fusion_num_heads: {num_heads} heads do not divide a stage of width {dim}.")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        """visual (N, T, C), words (N, L, D), mask (N, L), 1 = word -> language features at every pixel, (N, T, C)."""
        with torch.autocast(visual.device.type, enabled=False):
            wide = (x.to(self.query.weight.dtype) for x in (visual, words))
            return self._attend(*wide, attention_mask)

    def _attend(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(words.dtype)[..., None]
        words = words - (words * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        query = self._heads(instance_norm(self.query(visual)))
        key, value = self._heads(self.key(words)), self._heads(self.value(words))
        scores = query @ key.transpose(-1, -2) * visual.shape[-1] ** -0.5
        weights = scores.masked_fill(attention_mask[:, None, None, :] == 0, -1e4).softmax(-1)
        weights = weights - weights.mean(-2, keepdim=True)
        return instance_norm(self.output((weights @ value).transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, positions, width)


class PixelWordAttentionModule(nn.Module):
    """PWAM (Eq. 6-7): F = GELU(W_o(GELU(W_v(V)) * attended words))."""

    def __init__(self, dim: int, text_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.visual_projection = nn.Linear(dim, dim)
        self.attention = PixelWordAttention(dim, text_dim, num_heads)
        self.output_projection = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        """visual (N, T, C), words (N, L, D), attention_mask (N, L) -> F (N, T, C)."""
        projected = self.dropout(F.gelu(self.visual_projection(visual)))
        attended = self.attention(visual, words, attention_mask)
        return self.dropout(F.gelu(self.output_projection(projected * attended)))


class LavtDecoder(nn.Module):
    """Top-down decoder (Eq. 10) over the four fused maps; two scores (background, foreground) at stride 4.

    Without `classifier` it gives the map that these would be read from.
    """

    def __init__(self, widths: list[int], dim: int, classifier: bool = True):
        super().__init__()
        fine = widths[-2::-1]
        self.levels = nn.ModuleList(
            TopDownLevel(widths[-1] if index == 0 else dim, width, dim) for index, width in enumerate(fine)
        )
        self.classifier = nn.Conv2d(dim, 2, 1) if classifier else None

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps, finest first -> (N, 2, H/4, W/4), or (N, dim, H/4, W/4) without classifier."""
        x = maps[-1]
        for level, fine in zip(self.levels, maps[-2::-1], strict=True):
            x = level(x, fine)
        return x if self.classifier is None else self.classifier(x)


class LavtForReferringSegmentation(RisPreTrainedModel):
    """LAVT. Logits are foreground minus background score at the input size, so 0.5 is the threshold."""

    config_class = LavtConfig
    # stage 4 has no successor; CLIP's words are not projected
    _keys_without_gradient: ClassVar[list[str]] = [r"^gates\.3\.", r"^text_encoder\.tower\.text_projection$"]

    def __init__(self, config: LavtConfig):
        super().__init__(config)
        self.vision_encoder = build_vision_encoder(config.vision_config)
        if config.text_encoder == "clip":
            self.text_encoder = ClipTextEncoder(config.clip_config)
            text_dim = self.text_encoder.channels
        else:
            self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
            text_dim = config.text_config.hidden_size
        widths = self.vision_encoder.stage_channels
        self.fusions = nn.ModuleList(
            PixelWordAttentionModule(width, text_dim, heads, config.fusion_dropout)
            for width, heads in zip(widths, config.fusion_num_heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(width) for width in widths)
        self.decoder = LavtDecoder(widths, config.decoder_dim, classifier=not config.aligner)
        self.query_generator = self.aligner = None
        if config.aligner:
            dim, side = config.aligner_dim, map_side(config.image_size, self.vision_encoder.strides[2])
            self.query_generator = MultiQueryGenerator(widths[1:], 1, dim, side, text_dim, dim, config.aligner_queries)
            self.aligner = VisionLanguageAligner(dim, config.decoder_dim, heads=8)
        self.refinement = self.build_refinement(widths[:1])
        self.post_init()

    def load_pretrained_encoders(self) -> None:
        """Swin from timm (ImageNet-22K), and BERT from the Hub or CLIP's text encoder from open_clip.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config whose encoders the public weights do not fit.
        """
        self.vision_encoder.load_pretrained()
        if self.config.text_encoder == "clip":
            load_clip_weights(self.config.clip_config, None, self.text_encoder)
        else:
            load_bert(self.text_encoder, self.config.text_pretrained)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (V_1 (B, ceil(H/4), ceil(W/4), C_1),): all that the expression does not touch."""
        visual = self.vision_encoder.stage(0, self.vision_encoder.embed(pixel_values))
        return self.with_refinement((visual,), pixel_values, [visual.permute(0, 3, 1, 2)])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and 0/1 mask -> BERT's last hidden states (N, L, D), or CLIP's after its last norm."""
        if self.config.text_encoder == "clip":
            return self.text_encoder(input_ids, attention_mask)[0]
        return self.text_encoder(input_ids, attention_mask, use_cache=False).last_hidden_state

    def fuse(self, visual: Tensor, words: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """V_1 (N, h, w, C_1), words (N, L, D), mask (N, L) -> normalised F_1 ... F_4, each (N, C_i, h_i, w_i)."""
        maps = []
        for index, (fusion, gate, norm) in enumerate(zip(self.fusions, self.gates, self.vision_encoder.norms)):
            if index > 0:
                visual = self.vision_encoder.stage(index, visual)
            size = visual.shape[1:3]
            fused = fusion(visual.flatten(1, 2), words, attention_mask).unflatten(1, size)
            maps.append(norm(fused).permute(0, 3, 1, 2))
            if index < len(self.fusions) - 1:
                visual = visual + gate(fused) * fused
        return maps

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
            pixel_mask: not supported: LAVT squashes its images, so nothing is padding.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1]; nearest-resized to (H, W) where they differ.

        Returns:
            `RisOutput` with logits (N, H, W), and with labels `loss` = `losses["cross_entropy"]`. With the aligner also
            query_logits (N, N_q, H/4, W/4), None in training, and query_scores (N, N_q), which sum to 1.

        Raises:
            ValueError: a pixel_mask, an image_index that does not fit, or with the aligner another size of the image
                than the config's.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        (visual,), fine = self.split_refinement(self.encode_image(pixel_values))
        visual = visual.index_select(0, image_index)
        words = self.encode_text(input_ids, attention_mask)
        maps = self.fuse(visual, words, attention_mask)
        scores = self.decoder(maps)
        masks = weights = None
        if self.aligner is not None:
            queries = self.query_generator(self.query_generator.project(maps[1:]), words, attention_mask)
            foreground, masks, weights = self.aligner(scores, queries)
            scores = torch.stack([torch.zeros_like(foreground), foreground], 1)
        if fine is None:
            scores = F.interpolate(scores, size=pixel_values.shape[-2:], mode="bilinear", align_corners=True)
        else:
            foreground = self.refine(scores[:, 1] - scores[:, 0], fine, image_index)
            scores = enlarge(torch.stack([torch.zeros_like(foreground), foreground], 1), pixel_values.shape[-2:])
        output = RisOutput(logits=scores[:, 1] - scores[:, 0], query_logits=masks, query_scores=weights)
        if labels is not None:
            at_size = self.at_loss_size(scores, labels, mode="nearest")
            output.loss = weighted_cross_entropy(*at_size, self.config.loss_weights)
            output.losses = {"cross_entropy": output.loss}
            self.add_overlap_loss(output, labels)
        return output


LavtForReferringSegmentation.register_for_auto_class("AutoModel")
