"""CLIPSeg: Image Segmentation Using Text and Image Prompts.

Paper: Lüddecke, Ecker. "Image Segmentation Using Text and Image Prompts", CVPR 2022, https://arxiv.org/abs/2112.10003.
Original repository: https://github.com/timojl/clipseg (MIT). The modules are transformers' own (Apache-2.0), so that
its public weights, trained on photographs, load whole; this file holds what calls them.

CLIP's ViT-B/16 stays as it is. Activations of three of its layers are projected to D channels and go through three
small transformer layers, the deepest first; before the first one the sentence scales and shifts them (FiLM).
Transposed convolutions bring the patches back to pixels. In training all but the decoder is usually frozen: 1.1 of
151 million parameters learn (`optimizer.rules` of the recipes).

The image is encoded once for all its expressions, the projections to D channels included; the layers behind the last
extracted one are not run, since nothing reads them.

Deviations and readings:
- The model type is `clipseg_ris`: transformers has `clipseg` itself, and loads the public weights by it.
- The paper names layers 3, 7 and 9; the published weights, and so the config, have 3, 6 and 9.
- The bare config is the authors' later "refined" model (two transposed convolutions); the paper's is a field of it.
- Image prompts are not taken: here an expression is always text.
- The end token, whose state is the sentence, is the last one that the attention mask admits; transformers looks for its
  id, which is the same unless an expression spells it.
- Images need not be square, only multiples of the patch in both sides.
- CLIP takes gradients where its parameters ask for them; transformers' class never lets any through.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegTextConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder, CLIPSegModel

from .configuration_clipseg_ris import ClipsegConfig
from .losses import binary_cross_entropy
from .modeling_ris import RisOutput, RisPreTrainedModel


class ClipsegForReferringSegmentation(RisPreTrainedModel):
    """CLIPSeg for N expressions over B images. Logits have the input's size.

    Attributes:
        clip, decoder: transformers' modules, named as in its `CLIPSegForImageSegmentation`.
    """

    config_class = ClipsegConfig

    def __init__(self, config: ClipsegConfig):
        super().__init__(config)
        network = network_config(config)
        self.clip = CLIPSegModel(network)
        self.decoder = CLIPSegDecoder(network)
        for module in self.decoder.modules():
            # transformers draws these with standard deviation 1, from which nothing learns; torch knows them better
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or module in self._projections():
                module.reset_parameters()
        self.refinement = self.build_refinement([])  # a vision transformer has no finer maps
        last = config.extract_layers[-1]
        unused = "|".join(map(str, range(last + 1, config.vision_config.num_hidden_layers))) or "none"
        self._keys_without_gradient = [
            r"^clip\.(logit_scale|visual_projection|vision_model\.post_layernorm)",
            rf"^clip\.vision_model\.encoder\.layers\.({unused})\.",
        ]
        self.post_init()

    def _projections(self) -> list[nn.Module]:
        return [*self.decoder.reduces, self.decoder.film_mul, self.decoder.film_add]

    @classmethod
    def of(cls, network: CLIPSegForImageSegmentation, **overrides) -> "ClipsegForReferringSegmentation":
        """A transformers CLIPSeg as one of ours, with copies of its weights; `overrides` as `ClipsegConfig.of`."""
        model = cls(ClipsegConfig.of(network.config, **overrides))
        model._load_published(network)
        return model

    def load_pretrained_encoders(self) -> None:
        """The whole of a public CLIPSeg, decoder included, from `config.pretrained`.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config that they do not fit.
        """
        source = self.config.pretrained
        published = ClipsegConfig()
        if source == published.pretrained:  # told before anything is fetched
            self._check(network_config(published).to_dict(), source)
        try:
            network = CLIPSegForImageSegmentation.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        except OSError as error:
            raise OSError(
                f"The public weights of CLIPSeg {source!r} could not be loaded ({error}). Connect to the Hub once, or "
                "build the model from its config alone, which needs no download."
            ) from error
        self._check(network.config.to_dict(), source)
        self._load_published(network)

    def _load_published(self, network: CLIPSegForImageSegmentation) -> None:
        """All but the refinement, which nobody has published."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith("refinement.")}
        self.load_state_dict(own | network.state_dict())

    def _check(self, theirs: dict, source: str) -> None:
        """Raise ValueError where the config shapes other modules than a transformers config, given as dict."""
        ours = network_config(self.config).to_dict()
        for part, names in _SHAPES.items():
            for name in names:
                own, other = (of[part][name] if part else of[name] for of in (ours, theirs))
                own, other = (list(value) if isinstance(value, tuple) else value for value in (own, other))
                if own != other:
                    field = f"{part}.{name}" if part else name
                    raise ValueError(f"No public weights fit {field}={own}: {source} has {other}.")

    @property
    def text_limits(self) -> tuple[int, int | None]:
        return self.config.text_config.vocab_size, self.config.text_config.max_position_embeddings

    def get_input_embeddings(self):
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value) -> None:
        self.clip.text_model.embeddings.token_embedding = value

    @property
    def word_config(self) -> CLIPSegTextConfig:
        return self.config.text_config

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """All that does not depend on text: (B, 3, H, W) -> per decoder layer (B, 1 + H W / P^2, D).

        Raises:
            ValueError: sides that are no multiples of the patch P.
        """
        patch, (height, width) = self.config.vision_config.patch_size, pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"CLIPSeg takes images whose sides are multiples of {patch}, got {height}x{width}.")
        encoder, layers = self.clip.vision_model, self.config.extract_layers
        x, extracted = encoder.pre_layrnorm(encoder.embeddings(pixel_values)), []
        for index, layer in enumerate(encoder.encoder.layers[: layers[-1] + 1]):
            x = layer(x, None)
            if index in layers:
                extracted.append(x)
        levels = tuple(reduce(level) for reduce, level in zip(self.decoder.reduces, reversed(extracted)))
        return self.with_refinement(levels, pixel_values, [])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and 0/1 mask -> the end token's projected state (N, projection_dim)."""
        states = self.clip.text_model(input_ids, attention_mask=attention_mask).last_hidden_state
        end = (attention_mask.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return self.clip.text_projection(states.gather(1, end)[:, 0])

    def decode(self, levels: tuple[Tensor, ...], sentence: Tensor, size: tuple[int, int]) -> Tensor:
        """`encode_image`'s levels of N expressions' images, sentences (N, E), grid of patches -> logits (N, H, W)."""
        decoder, x = self.decoder, None
        for index, (level, layer) in enumerate(zip(levels, decoder.layers)):
            x = level if x is None else level + x
            if index == self.config.conditional_layer:
                x = decoder.film_mul(sentence)[:, None] * x + decoder.film_add(sentence)[:, None]
            x = layer(x, None)
        x = x[:, 1:].transpose(1, 2).unflatten(2, size)  # without the class token
        return decoder.transposed_convolution(x)[:, 0]

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
            pixel_values: (B, 3, H, W), normalised, H and W multiples of the patch.
            input_ids, attention_mask: (N, L), padding at the end.
            image_index: (N,) long, the image of each expression; None is one expression per image.
            pixel_mask: not supported: a squashed image has no padding.
            object_index: accepted, as from every collator; not used.
            labels: (N, h, w) masks in [0, 1]; nearest-resized to the logits.

        Returns:
            `RisOutput` with logits (N, H, W), or at the refinement's stride, and with labels `loss` and `losses`.

        Raises:
            ValueError: a pixel_mask, or sizes or an image_index that do not fit.
        """
        attention_mask, image_index = self.check_inputs(
            pixel_values, input_ids, attention_mask, image_index, pixel_mask, object_index, labels
        )
        image, fine = self.split_refinement(self.encode_image(pixel_values))
        levels = tuple(level.index_select(0, image_index) for level in image)
        patch = self.config.vision_config.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        logits = self.decode(levels, self.encode_text(input_ids, attention_mask), grid)
        output = RisOutput(logits=self.refine(logits, fine, image_index))
        if labels is not None:
            output.loss = binary_cross_entropy(*self.at_loss_size(output.logits, labels, mode="nearest"))
            output.losses = {"cross_entropy": output.loss}
            self.add_overlap_loss(output, labels)
        return output


def network_config(config: ClipsegConfig) -> CLIPSegConfig:
    """What transformers' modules are built from."""
    return CLIPSegConfig(
        text_config=config.text_config,
        vision_config=config.vision_config,
        projection_dim=config.projection_dim,
        extract_layers=config.extract_layers,
        reduce_dim=config.reduce_dim,
        decoder_num_attention_heads=config.decoder_num_attention_heads,
        decoder_intermediate_size=config.decoder_intermediate_size,
        conditional_layer=config.conditional_layer,
        use_complex_transposed_convolution=config.use_complex_transposed_convolution,
        initializer_factor=config.initializer_factor,
    )


# By part, the fields that shape modules.
_SHAPES = {
    "": "projection_dim extract_layers reduce_dim decoder_num_attention_heads decoder_intermediate_size "
    "use_complex_transposed_convolution".split(),
    "text_config": "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "max_position_embeddings".split(),
    "vision_config": "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size "
    "patch_size".split(),
}

ClipsegForReferringSegmentation.register_for_auto_class("AutoModel")
