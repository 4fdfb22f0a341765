"""EAVL: Explicitly Align Vision and Language for Referring Image Segmentation.

Paper: Yan, He, Wang, Chen, Guo, Liu. "EAVL: Explicitly Align Vision and Language for Referring Image Segmentation",
https://arxiv.org/abs/2308.09779. Original repository: none was published; written from the paper. Licence of this file:
Apache-2.0. Its queries and its aligner are in `aligner.py`, its neck in `fusion_neck.py`.

The neck fuses three levels of the image with the sentence. The image's levels and the words also give N_q queries, each
with another emphasis. A transformer decoder lets the fused pixels ask the queries. Then the aligner: each query becomes
a convolution kernel, its response on the pixels a mask, and the masks' weighted sum is the prediction.

What depends on the image alone runs once for each image, however many expressions it has (`encode_image`): the encoder
with its attention pooling, the visual half of the neck, and the whole dense neck with its half of the attention that
makes the queries.

Deviations and readings
- Eq. 1: the attention pooling after Swin has no table of positions, no residual and no norm; CLIP's ResNet has its own,
  with positions, and keeps the mean token that CRIS drops. Swin's levels carry a LayerNorm each.
- Eq. 2-3 and 6: the matrices on maps are 1x1 convolutions with batch norm before the ReLU, as the "Conv" of Eq. 4, 5, 7
  and 11, like in CRIS, whose neck this is; those on words and vectors are linear layers. Eq. 5, 7 and 11 are 3x3. The
  three convolutions of Eq. 7 halve the channels twice, then give N_q. Upsampling is bilinear.
- Eq. 3: F_m3 and F_m2 are 2C wide. Eq. 6-7: the dense neck has weights of its own.
- Eq. 9: W_vd takes H_3 W_3 values, which fixes the size of the input. Scores are not scaled. Padding leaves the
  softmax; BERT's and CLIP's special tokens stay in it. Without F_vg, F_tv = F_t.
- Transformer decoder: three pre-norm layers with dropout 0.1, a final norm, 2-D sine positions of the pixels in every
  layer and none of the queries, so that their order says nothing.
- Eq. 11: the kernels are linear in the query. With the printed ReLU neither they nor F_p would be negative, so no pixel
  could be background. Eq. 12 convolves F_p, whose size and width it needs, not F_s. Eq. 13: no residual, no norm.
- Eq. 14 sums logits, at stride 4. "Equal weight" is 1 / N_q. The loss is the mean binary cross-entropy at that stride,
  against the share of each cell that the mask covers.
- Masks are enlarged as probabilities; the paper says nothing of it (`enlarges` of the processor).
- Table III's fixed kernel is a 3x3 convolution on F_p.
- Any number of levels of at least three can be fused, at the size of any (`fusion_stage`): the steps of Eq. 3 go on.
"""

import torch
from torch import Tensor, nn
from transformers import BertModel

from .aligner import MultiQueryGenerator, VisionLanguageAligner, map_side
from .attention import MultiHeadAttention, TransformerLayer
from .clip_encoders import ClipResNet, ClipTextEncoder, load_clip_weights
from .configuration_eavl import EavlConfig
from .convolutions import ConvNormReLU, upsample
from .fusion_neck import FusionNeck
from .losses import binary_cross_entropy
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import sine_positions
from .text_encoders import load_bert
from .vision_encoders import build_vision_encoder


class AttentionPooling(nn.Module):
    """The coarsest level and its mean attend to each other: map z and global vision feature (Eq. 1)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_4 (B, C, h, w) -> z (B, C, h, w), its mean token (B, C)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        tokens, _ = self.attention(tokens, tokens, tokens)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, x.shape[-2:]), tokens[:, 0]


class TransformerDecoder(nn.Module):
    """The fused pixels F_vt attend to each other and to the queries: F_s."""

    def __init__(self, config: EavlConfig):
        super().__init__()
        sizes = config.hidden_dim, config.num_heads, config.ffn_dim, config.dropout
        self.layers = nn.ModuleList(TransformerLayer(*sizes, cross=True) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, fused: Tensor, queries: Tensor) -> Tensor:
        """F_inte (N, C, h, w), F_q (N, N_q, C) -> F_s (N, C, h, w)."""
        positions = sine_positions(fused)
        x = fused.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, positions, memory=queries)
        return self.norm(x).transpose(1, 2).unflatten(2, fused.shape[-2:])


class PixelUpsampler(nn.Module):
    """F_p = Up(Conv(Up(F_s))) (Eq. 11)."""

    def __init__(self, dim: int, feature_dim: int):
        super().__init__()
        self.conv = ConvNormReLU(dim, feature_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C_p, 4h, 4w)."""
        return upsample(self.conv(upsample(x)))


class EavlForReferringSegmentation(RisPreTrainedModel):
    """EAVL for N expressions over B images. Logits are at four times the size of the fused features: stride 4."""

    config_class = EavlConfig

    def __init__(self, config: EavlConfig):
        super().__init__(config)
        dim = config.hidden_dim
        if config.encoders == "clip":
            self.vision_encoder = ClipResNet(config.clip_config, keeps_mean_token=True)
            self.text_encoder = ClipTextEncoder(config.clip_config)
            stages, joint = [3, 4, 5], self.vision_encoder.output_dim
            channels = [*self.vision_encoder.channels[:2], joint]
            word_dim, sentence_dim, self.pooling = self.text_encoder.channels, joint, None
        else:
            self.vision_encoder = build_vision_encoder(config.vision_config, finest=config.refinement)
            self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
            stages, channels = list(config.vision_config.output_stages), self.vision_encoder.channels
            word_dim = sentence_dim = config.text_config.hidden_size
            self.pooling = AttentionPooling(channels[-1], config.num_heads)
        target = stages.index(config.fusion_stage)
        side = map_side(config.image_size, self.vision_encoder.strides[target])
        self.project_words = nn.Linear(word_dim, dim)  # F_t
        self.project_sentence = nn.Linear(sentence_dim, dim) if config.use_language_global else None  # F_tg
        self.neck = FusionNeck(channels, target, dim, dim if config.use_language_global else None)
        image_dim = channels[-1] if config.use_vision_global else None
        self.query_generator = MultiQueryGenerator(channels, target, dim, side, dim, dim, config.num_queries, image_dim)
        self.decoder = TransformerDecoder(config)
        self.upsampler = PixelUpsampler(dim, dim // 2)
        self.aligner = self.mask = None
        if config.aligner:
            self.aligner = VisionLanguageAligner(dim, dim // 2, config.num_heads, config.use_query_estimator)
        else:
            self.mask = nn.Conv2d(dim // 2, 1, 3, padding=1)
        self.refinement = self.build_refinement([*self.vision_encoder.finer_channels, channels[0]])
        if config.encoders == "clip" and not config.use_language_global:  # CLIP's sentence is not read
            self._keys_without_gradient = [r"^text_encoder\.tower\.text_projection$"]
        self.post_init()

    def load_pretrained_encoders(self) -> None:
        """Swin from timm (ImageNet-22K) and BERT from the Hub, or both of CLIP's from open_clip.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config whose encoders the public weights do not fit.
        """
        if self.config.encoders == "clip":
            load_clip_weights(self.config.clip_config, self.vision_encoder, self.text_encoder)
        else:
            self.vision_encoder.load_pretrained()
            load_bert(self.text_encoder, self.config.text_pretrained)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> what depends on the image alone: the queries' half of Eq. 9, F_vg, then the neck's maps.

        Raises:
            ValueError: an image of another size than `config.image_size`.
        """
        finer, (*levels, coarsest) = self.vision_encoder.pyramid(pixel_values)
        pool = self.vision_encoder.pool if self.pooling is None else self.pooling
        pooled, image_vector = pool(coarsest)
        levels.append(pooled)
        image = self.query_generator.project(levels), image_vector, *self.neck.project(levels)
        return self.with_refinement(image, pixel_values, [*finer, levels[0]])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, L) ids and 0/1 mask -> F_t (N, L, C), and F_tg (N, C), of `[CLS]` or CLIP's end token, if it is used."""
        if self.config.encoders == "clip":
            words, sentence = self.text_encoder(input_ids, attention_mask)
        else:
            words = self.text_encoder(input_ids, attention_mask, use_cache=False).last_hidden_state
            sentence = words[:, 0]
        sentence = None if self.project_sentence is None else self.project_sentence(sentence)
        return self.project_words(words), sentence

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
            pixel_values: (B, 3, S, S), normalised, S the config's image_size.
            input_ids, attention_mask: (N, L), padding at the end.
            image_index: (N,) long, the image of each expression; None is one expression per image.
            pixel_mask: not supported: EAVL squashes its images, so nothing is padding.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1] of any resolution.

        Returns:
            `RisOutput`: logits (N, S/4, S/4), or at the refinement's stride; with the aligner query_logits (N, N_q,
            S/4, S/4), None in training, and query_scores (N, N_q), which sum to 1; with labels also `loss` =
            `losses["cross_entropy"]`.

        Raises:
            ValueError: a pixel_mask, or an image size or image_index that does not fit.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        image, fine = self.split_refinement(self.encode_image(pixel_values))
        dense, image_vector, *visual = (part.index_select(0, image_index) for part in image)
        words, sentence = self.encode_text(input_ids, attention_mask)
        queries = self.query_generator(dense, words, attention_mask, image_vector)
        pixels = self.upsampler(self.decoder(self.neck(visual, sentence), queries))
        masks = scores = None
        if self.aligner is None:
            logits = self.mask(pixels)[:, 0]
        else:
            logits, masks, scores = self.aligner(pixels, queries)
        logits = self.refine(logits, fine, image_index)
        output = RisOutput(logits=logits, query_logits=masks, query_scores=scores)
        if labels is not None:
            output.loss = binary_cross_entropy(*self.at_loss_size(logits, labels))
            output.losses = {"cross_entropy": output.loss}
            self.add_overlap_loss(output, labels)
        return output


EavlForReferringSegmentation.register_for_auto_class("AutoModel")
