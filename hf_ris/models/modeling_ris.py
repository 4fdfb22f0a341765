"""What every referring-segmentation model shares: its output, its base class, and how images meet expressions."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .configuration_ris import RisConfig
from .hub_ris import HubMixin
from .inference_ris import Optimization
from .input_checks import (
    Condition,
    can_be_looked_at,
    check_index,
    check_labels,
    check_pixels,
    check_shape,
    check_values,
    check_words,
    label_conditions,
    rectangle_conditions,
    word_conditions,
)
from .losses import dice_loss, resize_labels
from .pipeline_ris import TASK, ReferringImageSegmentationPipeline
from .refinement import MaskRefinement, enlarge
from .vision_encoders import Encoder, restore_buffers
from .winograd import use_winograd


logger = logging.get_logger(__name__)

MOST_PARAMETERS = 1_500_000_000  # of a model that is loaded; VATEX with the largest CLIP of its kind has 1.1 billion


@dataclass
class RisOutput(ModelOutput):
    """Output of every architecture, for N expressions.

    Args:
        loss: scalar, the weighted sum of `losses`; only with labels.
        losses: named terms, unweighted scalars; only with labels.
        logits: (N, h, w), at the model's own resolution; the mask is `sigmoid(logits) > processor.threshold`.
        prior_logits: (N, layers, h', w') localisation or mask priors (LTS, MPG-LQGNet).
        heatmap: (N, h', w') CLIP prior as cosines in [-1, 1] (VATEX).
        query_logits: (N, Q, h, w) masks of the single queries (EAVL, VATEX), or maps that make the mask together (VLT).
        query_scores: (N, Q) their weights or probabilities in [0, 1].
        text_states: sentence features per decoder level, each (N, C) (VATEX).
        input_size: (height, width) in pixels of the canvas that the maps cover, where images of different shapes are
            padded to one (VATEX); None is the processor's fixed size.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    prior_logits: Tensor | None = None
    heatmap: Tensor | None = None
    query_logits: Tensor | None = None
    query_scores: Tensor | None = None
    text_states: tuple[Tensor, ...] | None = None
    input_size: tuple[int, int] | None = None


class RisPreTrainedModel(HubMixin, PreTrainedModel):
    """Base class of the architectures.

    Initialisation: every module keeps what its own constructor gave it (timm, open_clip and torch know their layers
    best). `from_pretrained` constructs on the meta device, where constructors write nothing: what the checkpoint lacks
    is then copied from a newly built model, and nothing else is touched.
    """

    config_class = RisConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    pipeline_task: ClassVar[str] = TASK
    pipeline_class: ClassVar[type] = ReferringImageSegmentationPipeline
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # of transformers' text encoders inside; our own attention is fused whatever is asked for

    # Beginnings of the names of weights that the architecture, which extends another, has beyond it.
    own_weights: tuple[str, ...] = ()
    takes_pixel_mask: ClassVar[bool] = False  # whether its processor pads images

    # Regular expressions of parameters that by construction get no gradient; the test suite checks that these are all.
    _keys_without_gradient: ClassVar[list[str]] = []

    def __init__(self, config: RisConfig, **kwargs):
        super().__init__(config, **kwargs)
        self._built_on_meta = torch.empty(0).is_meta
        self.optimization: Optimization | None = None  # by `optimize_for_inference`

    def post_init(self) -> None:
        """What every architecture does when it is built."""
        use_winograd(self)
        super().post_init()

    def _init_weights(self, module: nn.Module) -> None:
        restore_buffers(module)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not self._built_on_meta:
            return
        # what was loaded bears transformers' mark; what is still on the meta device waits on a disk
        saved = self.state_dict(keep_vars=True)
        count = sum(t.numel() for t in saved.values())
        if count > MOST_PARAMETERS:
            raise ValueError(
                f"This {type(self).__name__} would have {count:,} parameters: a size of its configuration is wrong."
            )
        missing = [
            name for name, t in saved.items() if not t.is_meta and not t.__dict__.get("_is_hf_initialized", False)
        ]
        if missing:
            fresh = type(self)(deepcopy(self.config)).state_dict()
            with torch.no_grad():
                for name in missing:
                    saved[name].copy_(fresh[name])

    def load_base_weights(self, state: dict[str, Tensor]) -> None:
        """Begin with a model of the same sizes of the architecture that this one extends: `state` is its state dict.

        Raises:
            ValueError: weights that are absent or of another shape, by name; `own_weights` may be absent.
        """
        own = self.state_dict()
        fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
        wrong = [key for key in own if key not in fitting and not key.startswith(self.own_weights)]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ValueError(
                f"The weights do not fit this {type(self).__name__}: {', '.join(wrong[:4])}{more} are absent or of "
                "another shape; give it the other model's sizes."
            )
        self.load_state_dict(own | fitting)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers.

        Raises:
            ValueError: a checkpoint that lacks what `device_map` puts on the disk.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        places = model.__dict__.get("hf_device_map", {})
        buffers = set() if kwargs.get("offload_buffers") else {name for name, _ in model.named_buffers()}
        drawn = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])} - buffers
        on_disk = sorted(name for name in drawn if _place(name, places) == "disk")
        if on_disk:
            raise ValueError(
                f"The checkpoint lacks {len(on_disk)} tensors that device_map puts on the disk, the first "
                f"{on_disk[0]}; what is newly drawn has no file to be read from. Load it without the disk and save it."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_pretrained_encoders(cls, config: RisConfig, **kwargs) -> "RisPreTrainedModel":
        """Build the model and load the public weights of its encoders; everything else is at its random start.

        Raises:
            OSError: weights that are neither cached nor reachable; the message names them.
            ValueError: a config whose encoder no public weights fit.
        """
        model = cls(config, **kwargs)
        logger.info(f"Loading the encoders of {cls.__name__}")
        model.load_pretrained_encoders()
        return model

    def build_refinement(self, channels: list[int]) -> MaskRefinement | None:
        """What makes the logits finer, as the config says, with vision maps of these channels; None where nothing does.

        `encode_image` ends in `with_refinement`, forward begins with `split_refinement` and ends in `refine`.
        """
        if self.config.refinement is None:
            return None
        return MaskRefinement(channels, self.config.refinement, self.config.refinement_dim)

    def with_refinement(self, image: tuple, pixel_values: Tensor, maps: list[Tensor], *content: Tensor | None) -> tuple:
        """`image`, what forward needs of the images, and behind it the image part of the refinement, if there is one.

        maps: the vision encoder's, of the channels that the refinement was built for. content: as in its `encode`.
        """
        if self.refinement is None:
            return image
        return *image, self.refinement.encode(pixel_values, maps, *content)

    def split_refinement(self, image: tuple) -> tuple[tuple, Tensor | None]:
        """What `with_refinement` put together."""
        return (image, None) if self.refinement is None else (image[:-1], image[-1])

    def refine(
        self, logits: Tensor, image: Tensor | None, image_index: Tensor, content: Tensor | None = None
    ) -> Tensor:
        """Logits (N, h, w) -> at the stride of the refinement, or as they are where there is none.

        image: from `split_refinement`. content: (N, 2), of each expression's image.
        """
        return logits if image is None else self.refinement(logits, image, image_index, content)

    def at_loss_size(self, logits: Tensor, labels: Tensor, mode: str = "area") -> tuple[Tensor, Tensor]:
        """Logits or scores (N, ..., h, w) and labels (N, H, W) at one size, by `config.loss_size`.

        mode: how labels become smaller, as in `resize_labels`.
        """
        if self.config.loss_size == "logits":
            return logits, resize_labels(labels, logits.shape[-2:], mode)
        size = labels.shape[-2:]
        if logits.shape[-2:] == size:
            return logits, labels.float()
        if logits.ndim == 3:
            return enlarge(logits[:, None], size)[:, 0], labels.float()
        return enlarge(logits, size), labels.float()

    def add_overlap_loss(self, output: RisOutput, labels: Tensor) -> None:
        """The Dice loss of `output.logits`, if the config gives it a weight: into `loss`, and `losses` as `overlap`."""
        if weight := self.config.overlap_loss_weight:
            logits, labels = self.at_loss_size(output.logits, labels)
            overlap = dice_loss(logits.flatten(1), labels.flatten(1)).mean()
            output.loss, output.losses = output.loss + weight * overlap, output.losses | {"overlap": overlap}

    @property
    def architecture(self) -> str:
        return self.config.model_type

    @property
    def query_logits_are_masks(self) -> bool:
        """Whether a sigmoid makes `RisOutput.query_logits`, where there are such, masks that can be looked at."""
        return True

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with a card and what remote code needs (second Auto class, pipeline).

        Raises:
            ValueError: a model that `optimize_for_inference` has changed.
        """
        if self.optimization is not None:
            raise ValueError(
                f"This model was changed to give answers only ({self.optimization}), so it is not saved. Load it anew "
                "with from_pretrained; a pipeline leaves its model as it was saved with dtype=torch.float32."
            )
        if self._auto_class is not None:
            module = type(self).__module__.split(".")[-1]
            auto_map = dict(self.config.__dict__.get("auto_map") or {})
            auto_map["AutoModelForImageSegmentation"] = f"{module}.{type(self).__name__}"
            self.config.auto_map = auto_map
            implementation = f"{self.pipeline_class.__module__.split('.')[-1]}.{self.pipeline_class.__name__}"
            entry = {"impl": implementation, "pt": ["AutoModel"], "type": "multimodal"}
            self.config.custom_pipelines = {self.pipeline_task: entry}
        super().save_pretrained(save_directory, **kwargs)

    def __call__(self, *args, **kwargs):
        if self.optimization is None or self.optimization.dtype == self.dtype:
            return super().__call__(*args, **kwargs)
        with torch.autocast(self.device.type, self.optimization.dtype):
            output = super().__call__(*args, **kwargs)
        for name, value in output.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                output[name] = value.float()
        return output

    def push_to_hub(self, repo_id: str, *, tags: list[str] | None = None, **kwargs):
        """As `HubMixin`, with the tags of `add_model_tags`."""
        return super().push_to_hub(repo_id, tags=[*(self.model_tags or ()), *(tags or ())], **kwargs)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs) -> None:
        for module in self.modules():
            if isinstance(module, Encoder):
                module.set_grad_checkpointing(enable)
            elif isinstance(module, PreTrainedModel) and module is not self and module.supports_gradient_checkpointing:
                module._set_gradient_checkpointing(enable, **kwargs)

    @property
    def text_limits(self) -> tuple[int, int | None]:
        """Rows of the word table, and the most tokens that are read; None is any number."""
        encoder = self.text_encoder
        if isinstance(encoder, PreTrainedModel):
            return encoder.config.vocab_size, encoder.config.max_position_embeddings
        return encoder.vocab_size, encoder.max_length

    def check_inputs(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        object_index: Tensor | None = None,
        labels: Tensor | None = None,
        further: Iterable[Condition] = (),
    ) -> tuple[Tensor, Tensor]:
        """attention_mask (N, L) and the image (N,) of each expression, both long.

        While a graph is traced only what is None is seen to; else all inputs are looked at (`input_checks.py`).

        Args:
            further: what else must be true of an architecture's own inputs.

        Raises:
            ValueError: inputs that no forward can answer rightly; the message names which.
        """
        if pixel_mask is not None and not self.takes_pixel_mask:
            raise ValueError(f"{type(self).__name__} takes no pixel_mask: its processor pads no image.")
        if not can_be_looked_at(pixel_values):
            return attention_mask.long(), self.image_index_of(pixel_values, input_ids, image_index)
        check_pixels(pixel_values)
        self._check_dtype(pixel_values)
        check_words("input_ids", input_ids, attention_mask, "attention_mask")
        (images, _, height, width), (expressions, length) = pixel_values.shape, input_ids.shape
        vocabulary, most = self.text_limits
        if most is not None and length > most:
            raise ValueError(f"The text encoder has {most} positions, but the expressions have {length} tokens.")
        check_index("image_index", image_index, expressions)
        check_index("object_index", object_index, expressions)
        image_index = self.image_index_of(pixel_values, input_ids, image_index)
        lowest, highest = image_index.aminmax()
        conditions = [
            *word_conditions("input_ids", input_ids, attention_mask, "attention_mask", vocabulary),
            Condition((lowest >= 0) & (highest < images), f"image_index must lie in [0, {images}), one of the images."),
            *further,
        ]
        if pixel_mask is not None:
            check_shape("pixel_mask", pixel_mask, (images, height, width), "that of the images")
            conditions += rectangle_conditions(pixel_mask)
        if labels is not None:
            check_labels(labels, expressions, height, width)
            conditions += label_conditions(labels)
        check_values(conditions)
        return attention_mask.long(), image_index.long()

    def _check_dtype(self, pixel_values: Tensor) -> None:
        # sharded models change the dtype of their parameters only where these are used
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if pixel_values.dtype != self.dtype and not distributed:
            if not torch.is_autocast_enabled(pixel_values.device.type):
                raise ValueError(
                    f"pixel_values are {pixel_values.dtype} and the model is {self.dtype}: convert one of them, as in "
                    "inputs.to(model.dtype), or run under autocast."
                )

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table of the text encoder, (words, channels)."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_encoder.set_input_embeddings(value)

    @property
    def word_config(self) -> PreTrainedConfig:
        """The config whose `vocab_size` is the length of the word table: the text encoder's, or the model's own."""
        return self.text_encoder.config or self.config

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers: a longer word table, whose new rows are drawn around the mean of the others."""
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        table = self._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.word_config.vocab_size = table.weight.shape[0]
        return table

    @staticmethod
    def image_index_of(pixel_values: Tensor, input_ids: Tensor, image_index: Tensor | None) -> Tensor:
        """The image of each expression, (N,) long; None stands for one expression per image.

        Raises:
            ValueError: None although N differs from B, or an index of another length than N.
        """
        images, expressions = pixel_values.shape[0], input_ids.shape[0]
        if image_index is None:
            if images != expressions:
                raise ValueError(
                    f"{images} images and {expressions} expressions: pass image_index, one image number per expression."
                )
            return torch.arange(images, device=input_ids.device)
        if image_index.shape != (expressions,):
            raise ValueError(f"image_index must have shape ({expressions},), got {tuple(image_index.shape)}.")
        return image_index


def _place(name: str, places: dict[str, str | int | torch.device]) -> str | int | torch.device | None:
    """The device of a tensor by a map of modules to devices: that of the longest name that leads to it."""
    leading = [place for place in places if not place or name == place or name.startswith(place + ".")]
    return places[max(leading, key=len)] if leading else None
