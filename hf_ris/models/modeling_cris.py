"""CRIS: CLIP-Driven Referring Image Segmentation.

Paper: Wang, Lu, Li, Tao, Guo, Gong, Liu. "CRIS: CLIP-Driven Referring Image Segmentation", CVPR 2022,
https://arxiv.org/abs/2111.15174. Original repository: https://github.com/DerrickWang005/CRIS.pytorch (MIT). This file
holds no code of it: it is written from measured facts about the published program, whose logits it reproduces with
converted checkpoints (`python -m hf_ris.conversion cris`).

CLIP's ResNet gives three maps, CLIP's text transformer words and a sentence. The neck multiplies the sentence into the
deepest map and merges the three at stride 16; the decoder lets the pixels look at each other and at the words; the
projector makes of the sentence a 3x3 kernel whose response on the pixels is the mask. The text-to-pixel contrastive
loss of the paper is the binary cross-entropy of that response.

What depends on the image alone runs once for each image, however many expressions it has: CLIP's ResNet, its attention
pool and the neck's three projections (`encode_image`). From the first product with the sentence on, all is done for
each expression.

Deviations and readings:
- The attention pool keeps its positions and drops the mean token; its table of positions is resized bicubically. A new
  1x1 convolution with batch norm beside it, and a ReLU after their sum, are in the program and not in the paper.
- Each attention of the decoder has a LayerNorm behind it besides the one before it, and the feed-forward part has one
  inside. Dropout is on the attention weights too. Words get positions in the keys, pixels in queries and keys.
- Words enter the decoder unprojected; the sentence is the end token, projected. Neither is normalised, so the response
  is no cosine and has no temperature.
- The end token is the last one that the attention mask admits; the program takes the first of the largest id, which is
  the same unless an expression spells the end token itself.
- The program hides every word of id 0 from the decoder, "!" included (`masked_token_id`, which converted checkpoints
  set); by default padding alone is hidden.
- Sides of the input are multiples of 32. Batch norm of the sentence needs two expressions in a training batch.
- With EAVL's aligner (`aligner=True`; EAVL, Table V) kernels made from queries replace the sentence's. The queries read
  C3, C4, the pooled C5 and the words, without a global vision feature, and fix the size of the input.
- Masks are enlarged as probabilities, bicubically, as in the published evaluation.
- Logits are at stride 4. The row of the paper's ablation without the contrastive loss describes no other head and is
  not built.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .aligner import MultiQueryGenerator, VisionLanguageAligner, dynamic_convolution
from .attention import MultiHeadAttention
from .clip_encoders import ClipResNet, ClipTextEncoder, load_clip_weights
from .configuration_cris import CrisConfig
from .convolutions import ConvNorm, ConvNormReLU, upsample
from .losses import binary_cross_entropy
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import plane_positions, sequence_positions


class CrossModalNeck(nn.Module):
    """The sentence multiplied into C5, then C5, C4 and C3 merged at stride 16, then coordinates.

    Args:
        vision_channels: of C3, C4 and of C5 after the attention pool.
        text_channels: E, of the sentence.
    """

    def __init__(self, config: CrisConfig, vision_channels: list[int], text_channels: int):
        super().__init__()
        (c3, c4, c5), (dim3, dim, dim5) = vision_channels, config.neck_dims
        self.text = nn.Linear(text_channels, dim5, bias=False)
        self.text_norm = nn.BatchNorm1d(dim5)
        self.visual5 = ConvNormReLU(c5, dim5)
        self.visual4 = ConvNormReLU(c4, dim, 3)
        self.visual3 = ConvNormReLU(c3, dim3, 3)
        self.product_norm = nn.BatchNorm2d(dim5)
        self.fuse4 = ConvNormReLU(dim + dim5, dim)
        self.fuse3 = ConvNormReLU(dim3 + dim, dim)
        self.refine5 = ConvNormReLU(dim5, dim, 3)
        self.refine4 = ConvNormReLU(dim, dim, 3)
        self.refine3 = ConvNormReLU(dim, dim, 3)
        self.aggregate = ConvNormReLU(3 * dim, dim)
        self.coordinates = ConvNormReLU(dim + 2, dim, 3)
        self.output = ConvNormReLU(dim, dim, 3)

    def project(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The half without text, of B images: C3, C4, C5 -> their projections at stride 16, 16 and 32."""
        return F.avg_pool2d(self.visual3(c3), 2), self.visual4(c4), self.visual5(c5)

    def forward(self, visual: tuple[Tensor, Tensor, Tensor], sentence: Tensor, image_index: Tensor) -> Tensor:
        """`project` of B images, sentences (N, E), the image (N,) of each -> (N, D, H/16, W/16).

        Raises:
            ValueError: a training batch of one expression, which has no batch statistics.
        """
        v3, v4, v5 = (level.index_select(0, image_index) for level in visual)  # unlike level[...], deterministic
        f5 = F.relu(self.product_norm(v5 * self.project_text(sentence)[..., None, None]))
        f4 = self.fuse4(torch.cat([v4, upsample(f5)], 1))
        f3 = self.fuse3(torch.cat([v3, f4], 1))
        levels = [self.refine3(f3), self.refine4(f4), upsample(self.refine5(f5))]
        x = self.aggregate(torch.cat(levels, 1))
        return self.output(self.coordinates(torch.cat([x, corner_coordinates(x)], 1)))

    def project_text(self, sentence: Tensor) -> Tensor:
        """(N, E) -> (N, dim5), not negative."""
        # a SyncBatchNorm is no BatchNorm1d: it counts the expressions of all processes, and refuses a single one itself
        if isinstance(self.text_norm, nn.BatchNorm1d) and self.text_norm.training and len(sentence) == 1:
            raise ValueError(
                "CRIS normalises sentences over the batch, so training takes at least 2 expressions in a batch, got 1; "
                "raise the batch size, or on several processes use synchronised batch norm."
            )
        return F.relu(self.text_norm(self.text(sentence)))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention of the pixels, attention to the words, feed-forward; a second LayerNorm behind each."""

    def __init__(self, config: CrisConfig):
        super().__init__()
        dim, heads, dropout = config.neck_dims[1], config.decoder_heads, config.decoder_dropout
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = MultiHeadAttention(dim, heads, dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads, dropout)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.decoder_ffn_dim)
        self.ffn_norm = nn.LayerNorm(config.decoder_ffn_dim)
        self.linear2 = nn.Linear(config.decoder_ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, words: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Pixels x (N, hw, D), their positions (hw, D), words (N, L, D), words with theirs, mask (N, 1, 1, L) -> x."""
        y = self.norm1(x)
        query = y + positions
        x = x + self.dropout(self.self_attention_norm(self.self_attention(query, query, y)[0]))
        query = self.norm2(x) + positions
        attended = self.cross_attention(query, keys, words, attn_mask=mask)[0]
        x = x + self.dropout(self.cross_attention_norm(attended))
        hidden = self.dropout(F.relu(self.linear1(self.norm3(x))))
        return x + self.dropout(self.linear2(self.ffn_norm(hidden)))


class VisionLanguageDecoder(nn.Module):
    """Transformer decoder whose queries are the pixels at stride 16 and whose memory are the words."""

    def __init__(self, config: CrisConfig):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.neck_dims[1])

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Pixels (N, D, h, w), words (N, L, D), mask (N, L), True = may be attended to -> (N, D, h, w)."""
        height, width = x.shape[-2:]
        positions = plane_positions(x)
        keys = words + sequence_positions(words.shape[1], words.shape[2], words.device).to(words.dtype)
        x = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, positions, words, keys, word_mask[:, None, None, :])
        return self.norm(x).transpose(1, 2).unflatten(2, (height, width))


class Projector(nn.Module):
    """Text-to-pixel response: the sentence becomes a 3x3 kernel and a bias, applied to its pixels at stride 4.

    With `config.aligner` there is EAVL's aligner instead of that kernel, to be applied to `pixels` and queries.
    """

    def __init__(self, config: CrisConfig, text_channels: int):
        super().__init__()
        dim = config.neck_dims[1]
        self.channels = dim // 2
        self.visual1 = ConvNormReLU(dim, dim, 3)
        self.visual2 = ConvNormReLU(dim, self.channels, 3)
        self.visual_output = nn.Conv2d(self.channels, self.channels, 1)
        self.kernel = self.aligner = None
        if config.aligner:
            self.aligner = VisionLanguageAligner(dim, self.channels, config.decoder_heads)
        else:
            self.kernel = nn.Linear(text_channels, 9 * self.channels + 1)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """Pixels (N, D, H/16, W/16), sentences (N, E) -> logits (N, H/4, W/4)."""
        return respond(self.pixels(x), *self.kernel(sentence).split([9 * self.channels, 1], 1))

    def pixels(self, x: Tensor) -> Tensor:
        """(N, D, H/16, W/16) -> (N, D/2, H/4, W/4), what kernels are applied to."""
        return self.visual_output(self.visual2(upsample(self.visual1(upsample(x)))))


def respond(x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """Each map (N, C, h, w) through its own 3x3 kernel (N, 9 C), zero-padded, plus its bias (N, 1) -> (N, h, w)."""
    return dynamic_convolution(x, kernels.unflatten(1, (1, -1, 3, 3)), biases)[:, 0]


class CrisForReferringSegmentation(RisPreTrainedModel):
    """CRIS for N expressions over B images. Logits are at a quarter of the input's sides.

    `torch.export` takes any number of images, expressions and tokens, and fixes the sides of the input.
    """

    config_class = CrisConfig
    projector_class: ClassVar[type[nn.Module]] = Projector  # (config, text_channels), as `Projector`

    def __init__(self, config: CrisConfig):
        super().__init__(config)
        self.vision_encoder = ClipResNet(config.clip_config)
        self.text_encoder = ClipTextEncoder(config.clip_config)
        c3, c4, c5 = self.vision_encoder.channels
        joint = self.vision_encoder.output_dim
        if self.text_encoder.channels != config.neck_dims[1]:
            raise ValueError(
                f"neck_dims[1] must be the width of CLIP's words, {self.text_encoder.channels}, which the decoder "
                f"reads unprojected; got {config.neck_dims[1]}."
            )
        if config.max_text_length > self.text_encoder.max_length:
            raise ValueError(
                f"max_text_length is {config.max_text_length}, but CLIP's text encoder has "
                f"{self.text_encoder.max_length} positions."
            )
        self.connect = ConvNorm(c5, joint)
        self.neck = CrossModalNeck(config, [c3, c4, joint], joint)
        self.decoder = VisionLanguageDecoder(config) if config.decoder_layers else None
        self.projector = self.projector_class(config, joint)
        self.refinement = self.build_refinement([*self.vision_encoder.finer_channels, c3])
        self.query_generator = None
        if config.aligner:
            dim, side = config.neck_dims[1], config.image_size // 16
            self.query_generator = MultiQueryGenerator(
                [c3, c4, joint], 1, dim, side, self.text_encoder.channels, dim, config.aligner_queries
            )
        self.post_init()

    def load_pretrained_encoders(self) -> None:
        """CLIP's weights from open_clip, or from the file that `clip_config.pretrained` names.

        Raises:
            OSError: weights that are neither there nor reachable; the message names them.
            ValueError: a config that the weights do not fit.
        """
        load_clip_weights(self.config.clip_config, self.vision_encoder, self.text_encoder)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """All that does not depend on text: (B, 3, H, W) -> the neck's projections of C3, C4 and C5.

        With the aligner, the image's half of the queries comes behind them, then the refinement's if there is one.

        Raises:
            ValueError: sides that are no multiples of 32, or with the aligner not the config's image_size.
        """
        height, width = pixel_values.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"CRIS takes images whose sides are multiples of 32, got {height}x{width}.")
        finer, (c3, c4, c5) = self.vision_encoder.pyramid(pixel_values)
        pooled, _ = self.vision_encoder.pool(c5)
        levels = [c3, c4, F.relu(pooled + self.connect(c5))]
        visual = self.neck.project(*levels)
        if self.query_generator is not None:
            visual = *visual, self.query_generator.project(levels)
        return self.with_refinement(visual, pixel_values, [*finer, c3])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask -> words (N, L, D) and sentences (N, E)."""
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
            pixel_values: (B, 3, H, W), normalised, H and W multiples of 32.
            input_ids, attention_mask: (N, L), padding at the end.
            image_index: (N,) long, the image of each expression; None is one expression per image.
            pixel_mask: not supported: the border of a letterboxed image is part of the input.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1]; nearest-resized to the logits.

        Returns:
            `RisOutput` with logits (N, H/4, W/4), or at the refinement's stride, and with labels `loss` and `losses`.
            With the aligner also
            query_logits (N, N_q, H/4, W/4), None in training, and query_scores (N, N_q), which sum to 1.

        Raises:
            ValueError: a pixel_mask, sizes or an image_index that do not fit, or one expression in a training batch.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        visual, fine = self.split_refinement(self.encode_image(pixel_values))
        words, sentence = self.encode_text(input_ids, attention_mask)
        x = self.neck(visual[:3], sentence, image_index)
        if self.decoder is not None:
            word_mask = attention_mask.bool()
            if self.config.masked_token_id is not None:
                word_mask = word_mask & (input_ids != self.config.masked_token_id)
            x = self.decoder(x, words, word_mask)
        if self.query_generator is None:
            output = RisOutput(logits=self.projector(x, sentence))
        else:
            queries = self.query_generator(visual[3].index_select(0, image_index), words, attention_mask)
            logits, masks, weights = self.projector.aligner(self.projector.pixels(x), queries)
            output = RisOutput(logits=logits, query_logits=masks, query_scores=weights)
        output.logits = self.refine(output.logits, fine, image_index)
        if labels is not None:
            output.loss, output.losses = self.compute_losses(output.logits, labels)
            self.add_overlap_loss(output, labels)
        return output

    def compute_losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, h, w), labels of any size -> the loss to train with, and its terms by name, unweighted."""
        loss = binary_cross_entropy(*self.at_loss_size(logits, labels, mode="nearest"))
        return loss, {"cross_entropy": loss}


def corner_coordinates(x: Tensor) -> Tensor:
    """(N, 2, h, w): column and row of a map's cells (N, C, h, w), from -1 at the first to 1 at the last."""
    height, width = x.shape[-2:]
    columns = torch.linspace(-1, 1, width, device=x.device)
    rows = torch.linspace(-1, 1, height, device=x.device)
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return grid.to(x.dtype).expand(x.shape[0], -1, -1, -1)


CrisForReferringSegmentation.register_for_auto_class("AutoModel")
