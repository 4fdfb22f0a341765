"""VLT: Vision-Language Transformer.

Paper: Ding, Liu, Wang, Jiang. "Vision-Language Transformer and Query Generation for Referring Segmentation", ICCV 2021,
https://arxiv.org/abs/2108.05565; extended as "VLT: Vision-Language Transformer and Query Generation for Referring
Segmentation", TPAMI 2022, https://arxiv.org/abs/2210.15871. Original repository:
https://github.com/henghuiding/Vision-Language-Transformer (MIT), from which only hyperparameters are taken. Licence of
this file: Apache-2.0.

An expression is turned into several queries, each an emphasis of its words that the image suggests (query generation).
A transformer asks the fused features with them; each response is weighed by how well its query fits (query balance) and
becomes a map; convolutions decode the maps into the mask.

What depends on the image alone runs once for each image, however many expressions it has (`encode_image`): the
backbone, the visual half of the fusion, and all of the query generation that looks at the image.

Deviations and readings:
- The paper's Darknet-53 is pretrained on COCO detection without the evaluation images; the public weights here are
  timm's, from ImageNet (a deviation), and so is the normalisation of the input.
- The fusion of the three levels and the sentence is EAVL's neck (Eq. 2-5 there), of the same family, with ReLU and
  512 channels; then a 1x1 convolution to the transformer's 256. Query generation looks at the image without text, as
  the paper has it; the published program looks at fused features.
- The sentence is the mean of the word states; the published program weighs them by a learned attention.
- The transformer is pre-norm, with 2-D sine positions of the pixels in every layer and none of the queries, and a
  feed-forward width of 1024. The queries attend to each other in its decoder.
- Query balance: linear, ReLU, linear, sigmoid on query and response side by side.
- Mask decoder: three 3x3 convolutions (batch norm, ReLU) with bilinear upsampling by 2 between them, so at strides 16,
  8 and 4, and a 1x1 convolution. The published program upsamples once more, to stride 2.
- Trained with binary cross-entropy, the mean over pixels (the published program sums), at the logits' stride.
- With `fused_loss_weight` (the default is 0) a 1x1 convolution of the fused features learns the mask too. It serves
  training alone: attention that starts out even tells the neck late what to look for.
- With `memory_positions` (the default is False) positions in cells, as CRIS has them, are added once to the pixels that
  the transformer reads, so that they are in its values too: what is to be drawn from a response must be in it.
- With `query_positions` (the default is False) each query has a learned position. The queries are means of the words,
  so a short expression gives almost the same 16 times; with positions each can look at another part of the object.
- Masks are enlarged as probabilities, bilinearly, and cut at 0.35, as in the published evaluation.
- Left out of the journal version: spatial dynamic fusion and masked contrastive learning. Its Swin-B and BERT are here.
- With the aligner (EAVL, Table V), kernels made from the queries replace the mask decoder's last convolution; query
  balance stays.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from .aligner import MultiQueryGenerator, VisionLanguageAligner, map_side
from .attention import TransformerLayer
from .configuration_vlt import VltConfig
from .convolutions import ConvNormReLU, upsample
from .fusion_neck import FusionNeck
from .losses import binary_cross_entropy, resize_labels
from .modeling_ris import RisOutput, RisPreTrainedModel
from .positions import LearnedRows, plane_positions, sine_positions
from .text_encoders import BiGru, load_bert, mean_of_words
from .vision_encoders import build_vision_encoder


class VltTransformer(nn.Module):
    """Encoder over the fused pixels; decoder whose queries ask them."""

    def __init__(self, config: VltConfig):
        super().__init__()
        sizes = config.hidden_dim, config.num_heads, config.ffn_dim, config.dropout
        self.encoder = nn.ModuleList(TransformerLayer(*sizes, cross=False) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.hidden_dim)
        self.decoder = nn.ModuleList(TransformerLayer(*sizes, cross=True) for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.hidden_dim)
        self.memory_positions = config.memory_positions
        self.query_positions = LearnedRows(config.num_queries, config.hidden_dim) if config.query_positions else None

    def forward(self, fused: Tensor, queries: Tensor) -> Tensor:
        """Pixels (N, C, h, w), queries F_q (N, N_q, C) -> responses F_r (N, N_q, C)."""
        positions = sine_positions(fused)
        memory = fused.flatten(2).transpose(1, 2)
        if self.memory_positions:
            memory = memory + plane_positions(fused)
        for layer in self.encoder:
            memory = layer(memory, positions)
        memory = self.encoder_norm(memory)
        own = None if self.query_positions is None else self.query_positions()
        for layer in self.decoder:
            queries = layer(queries, own, memory, positions)
        return self.decoder_norm(queries)


class QueryBalanceModule(nn.Module):
    """A score in (0, 1) for each query: how well it fits the response that it got."""

    def __init__(self, dim: int):
        super().__init__()
        self.hidden = nn.Linear(2 * dim, dim)
        self.score = nn.Linear(dim, 1)

    def forward(self, queries: Tensor, responses: Tensor) -> Tensor:
        """F_q and F_r (N, N_q, C) -> (N, N_q)."""
        return self.score(F.relu(self.hidden(torch.cat([queries, responses], -1))))[..., 0].sigmoid()


class MaskDecoder(nn.Module):
    """Maps of the queries to finer pixels; the mask is a 1x1 convolution of these.

    Args:
        upsamplings: by 2, each before one of the last convolutions; 0, 1 or 2.
    """

    def __init__(self, num_queries: int, dim: int, upsamplings: int):
        super().__init__()
        self.convs = nn.ModuleList(ConvNormReLU(num_queries if index == 0 else dim, dim, 3) for index in range(3))
        self.upsamplings = upsamplings

    def forward(self, maps: Tensor) -> Tensor:
        """(N, N_q, h, w) -> (N, C, H, W), H = 2^upsamplings h."""
        x = maps
        for index, conv in enumerate(self.convs):
            if index >= len(self.convs) - self.upsamplings:
                x = upsample(x)
            x = conv(x)
        return x


class VltForReferringSegmentation(RisPreTrainedModel):
    """VLT for N expressions over B images. Logits are at stride 4: four times the size of the fused features."""

    config_class = VltConfig

    def __init__(self, config: VltConfig):
        super().__init__(config)
        self.vision_encoder = build_vision_encoder(config.vision_config, finest=config.refinement)
        if config.text_encoder == "gru":
            self.text_encoder = BiGru(
                config.vocab_size, config.embedding_dim, config.hidden_size, "sum", config.gru_dropout
            )
            text_dim = self.text_encoder.channels
        else:
            self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
            text_dim = config.text_config.hidden_size
        channels, dim = self.vision_encoder.channels, config.hidden_dim
        target = list(config.vision_config.output_stages).index(config.fusion_stage)
        self.side = map_side(config.image_size, self.vision_encoder.strides[target])
        self.neck = FusionNeck(channels, target, config.fusion_dim, text_dim)
        self.project = nn.Conv2d(config.fusion_dim, dim, 1)
        self.query_generator = MultiQueryGenerator(
            channels, target, config.fusion_dim, self.side, text_dim, dim, config.num_queries
        )
        self.transformer = VltTransformer(config)
        self.query_balance = QueryBalanceModule(dim) if config.query_balance else None
        self.query_maps = nn.Linear(dim, self.side**2)
        self.mask_decoder = MaskDecoder(config.num_queries, dim, config.mask_upsamplings)
        self.mask = None if config.aligner else nn.Conv2d(dim, 1, 1)
        self.aligner = VisionLanguageAligner(dim, dim, config.num_heads) if config.aligner else None
        self.fused_mask = nn.Conv2d(dim, 1, 1) if config.fused_loss_weight else None
        self.refinement = self.build_refinement([*self.vision_encoder.finer_channels, channels[0]])
        self.post_init()

    @property
    def query_logits_are_masks(self) -> bool:
        """Only the aligner's are; else they are what the mask decoder reads."""
        return self.aligner is not None

    def load_pretrained_encoders(self) -> None:
        """Load the backbone's public weights, and BERT's; GloVe is a file: `text_encoder.load_glove(path, tokenizer)`.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config whose encoders the public weights do not fit.
        """
        self.vision_encoder.load_pretrained()
        if self.config.text_encoder == "bert":
            load_bert(self.text_encoder, self.config.text_pretrained)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> all that depends on the image alone: the query generator's half, then the neck's maps.

        Raises:
            ValueError: an image of another size than `config.image_size`.
        """
        finer, levels = self.vision_encoder.pyramid(pixel_values)
        image = self.query_generator.project(levels), *self.neck.project(levels)
        return self.with_refinement(image, pixel_values, [*finer, levels[0]])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask -> words F_t (N, L, D) and sentence (N, D), their mean."""
        if self.config.text_encoder == "gru":
            return self.text_encoder(input_ids, attention_mask)
        words = self.text_encoder(input_ids, attention_mask, use_cache=False).last_hidden_state
        return words, mean_of_words(words, attention_mask)

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
            pixel_mask: not supported: the border of a letterboxed image is part of the input.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1] of any resolution.

        Returns:
            `RisOutput`: logits (N, S/4, S/4), or at the refinement's stride; query_logits, the balanced responses as
            maps (N, N_q, S/16, S/16), which the mask decoder reads (no masks by themselves), and query_scores (N, N_q)
            in (0, 1), the balance. With the aligner these are its masks (N, N_q, S/4, S/4), None in training, and their
            weights, which sum to 1. With labels also `loss` = `losses["cross_entropy"]`, plus `fused_loss_weight` times
            `losses["fused"]` where that is not 0.

        Raises:
            ValueError: a pixel_mask, or an image size or image_index that does not fit.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        image, fine = self.split_refinement(self.encode_image(pixel_values))
        dense, *visual = (maps.index_select(0, image_index) for maps in image)
        words, sentence = self.encode_text(input_ids, attention_mask)
        queries = self.query_generator(dense, words, attention_mask)
        fused = self.project(self.neck(visual, sentence))
        responses = self.transformer(fused, queries)
        scores = None
        if self.query_balance is not None:
            scores = self.query_balance(queries, responses)
            responses = responses * scores[..., None]
        maps = self.query_maps(responses).unflatten(-1, (self.side, self.side))
        pixels = self.mask_decoder(maps)
        if self.aligner is None:
            logits = self.mask(pixels)[:, 0]
        else:
            logits, maps, scores = self.aligner(pixels, queries)
        logits = self.refine(logits, fine, image_index)
        output = RisOutput(logits=logits, query_logits=maps, query_scores=scores)
        if labels is not None:
            output.loss = binary_cross_entropy(*self.at_loss_size(logits, labels))
            output.losses = {"cross_entropy": output.loss}
            if self.fused_mask is not None:
                early = self.fused_mask(fused)[:, 0]
                output.losses["fused"] = binary_cross_entropy(early, resize_labels(labels, early.shape[-2:]))
                output.loss = output.loss + self.config.fused_loss_weight * output.losses["fused"]
            self.add_overlap_loss(output, labels)
        return output


VltForReferringSegmentation.register_for_auto_class("AutoModel")
