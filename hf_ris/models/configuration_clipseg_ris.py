"""CLIPSeg configuration: `ClipsegConfig()` is the published refined model (CLIP ViT-B/16, 352x352, 77 tokens, D = 64).

The model type is `clipseg_ris`, since transformers has a model of type `clipseg` of its own: taking its name would make
`AutoModel` misread every CLIPSeg on the Hub. Wherever a person types a name, `clipseg` will do.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig

from .configuration_ris import RisConfig


# What a transformers CLIPSeg says beside its two encoders.
_SHARED = (
    "projection_dim extract_layers reduce_dim decoder_num_attention_heads decoder_intermediate_size conditional_layer "
    "use_complex_transposed_convolution initializer_factor"
).split()


@strict
class ClipsegConfig(RisConfig):
    """Configuration of `ClipsegForReferringSegmentation`.

    The paper's own decoder, one transposed convolution, is `use_complex_transposed_convolution=False` with
    `pretrained="CIDAS/clipseg-rd64"`; its D = 16 also `reduce_dim=16` with `CIDAS/clipseg-rd16`.

    Args:
        text_config: CLIP's text encoder. A dict overrides single fields of `CLIPSegTextConfig`.
        vision_config: CLIP's image encoder, of which the layers up to the last of `extract_layers` are used. A dict
            overrides single fields of ViT-B/16's. Its `image_size` is that of the table of positions, which is
            enlarged to the input; `initializer_factor` here scales the random start of both encoders and the decoder.
        pretrained: Hub name or folder of a whole transformers CLIPSeg that `from_pretrained_encoders` loads.
        projection_dim: of CLIP's joint space, where the sentence modulates the decoder (FiLM).
        extract_layers: the encoder's layers, counted from 0, whose outputs the decoder reads, the last one first.
        reduce_dim: D, the decoder's width.
        decoder_num_attention_heads, decoder_intermediate_size: of each of its layers, one per extracted layer.
        conditional_layer: the decoder layer, counted from 0, before which the sentence comes in.
        use_complex_transposed_convolution: two transposed convolutions after a 3x3 one (the refined model), or one.
        initializer_factor: of the standard deviations of a random start.
    """

    model_type = "clipseg_ris"
    sub_configs = {"text_config": CLIPSegTextConfig, "vision_config": CLIPSegVisionConfig}
    nested_defaults = {"vision_config": {"patch_size": 16}}

    text_config: CLIPSegTextConfig | dict | None = None
    vision_config: CLIPSegVisionConfig | dict | None = None
    image_size: int = 352
    max_text_length: int = 77
    pretrained: str = "CIDAS/clipseg-rd64-refined"
    projection_dim: int = 512
    extract_layers: list[int] | tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = 64
    decoder_num_attention_heads: int = 4
    decoder_intermediate_size: int = 2048
    conditional_layer: int = 0
    use_complex_transposed_convolution: bool = True
    initializer_factor: float | int = 1.0

    @property
    def text_part(self) -> str | None:
        return "text_config"

    def __post_init__(self, **kwargs):
        self.extract_layers = list(self.extract_layers)
        super().__post_init__(**kwargs)
        name, vision, text = type(self).__name__, self.vision_config, self.text_config
        if self.image_size % vision.patch_size:
            raise ValueError(
                f"{name}: image_size must be a multiple of vision_config.patch_size, {vision.patch_size}, got "
                f"{self.image_size}."
            )
        if self.use_complex_transposed_convolution and vision.patch_size != 16:
            raise ValueError(
                f"{name}: use_complex_transposed_convolution enlarges 16 times, so it needs vision_config.patch_size="
                f"16, got {vision.patch_size}."
            )
        layers = self.extract_layers
        if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < vision.num_hidden_layers:
            raise ValueError(
                f"{name}: extract_layers takes rising numbers of layers from 0 to {vision.num_hidden_layers - 1}, got "
                f"{layers}."
            )
        if not 0 <= self.conditional_layer < len(layers):
            raise ValueError(
                f"{name}: conditional_layer must be one of the {len(layers)} decoder layers, counted from 0, got "
                f"{self.conditional_layer}."
            )
        for field in ("projection_dim", "reduce_dim", "decoder_num_attention_heads", "decoder_intermediate_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} must be at least 1, got {getattr(self, field)}.")
        if self.reduce_dim % self.decoder_num_attention_heads:
            raise ValueError(
                f"{name}: reduce_dim must be a multiple of decoder_num_attention_heads, got {self.reduce_dim} and "
                f"{self.decoder_num_attention_heads}."
            )
        if self.max_text_length > text.max_position_embeddings:
            raise ValueError(
                f"{name}: max_text_length is {self.max_text_length}, but text_config has max_position_embeddings="
                f"{text.max_position_embeddings}."
            )

    @classmethod
    def of(cls, network: CLIPSegConfig, **overrides: Any) -> "ClipsegConfig":
        """The config of a transformers CLIPSeg, with `overrides` of what that does not say (as `image_size`)."""
        shared = {name: getattr(network, name) for name in _SHARED}
        words = network.text_config.max_position_embeddings
        return cls(
            **{"text_config": network.text_config, "vision_config": network.vision_config, "max_text_length": words}
            | shared
            | overrides
        )


ClipsegConfig.register_for_auto_class()
