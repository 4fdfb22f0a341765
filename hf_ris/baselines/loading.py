"""How the parts of a baseline are loaded, and how an image goes through a checkpoint's own preprocessing."""

import torch
from huggingface_hub.errors import GatedRepoError
from transformers import AutoConfig, BatchFeature, PreTrainedModel, ProcessorMixin

from ..models.images_ris import pictures
from ..models.processing_ris import RisImageProcessor


def load_part(
    source: str, model_class: type[PreTrainedModel], processor_class: type[ProcessorMixin]
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model (float32, eval mode) and its processor, from a Hub id or a folder.

    Raises:
        ValueError: a checkpoint of another architecture.
        OSError: neither cached nor reachable, not whole, or gated; one sentence says which and what to do.
    """
    try:
        kind, wanted = AutoConfig.from_pretrained(source).model_type, model_class.config_class.model_type
        if kind != wanted:
            raise ValueError(f"{source} holds a model of type {kind}; this baseline takes a {wanted}.")
        model = model_class.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        return model.eval(), processor_class.from_pretrained(source)
    except OSError as error:
        if is_gated(error):
            raise OSError(
                f"The weights of {source} are gated: accept their terms at https://huggingface.co/{source} and log in "
                "with `hf auth login`."
            ) from error
        raise OSError(
            f"The weights of {source} are neither cached nor reachable: connect to the Hub once, or name a folder that "
            "holds them."
        ) from error


def is_gated(error: BaseException | None) -> bool:
    """Whether the Hub refused because its terms were not accepted; transformers hides that one cause deeper."""
    while error is not None:
        if isinstance(error, GatedRepoError):
            return True
        error = error.__cause__ or error.__context__
    return False


class OwnView(RisImageProcessor):
    """A checkpoint's own image processor makes the pixels; the geometry, for the way back, is ours.

    Args:
        own: transformers' image processor of the checkpoint.
        geometry, image_size: what it does, as `RisImageProcessor`.
    """

    def __init__(self, own, geometry: str, image_size: int):
        super().__init__(geometry, image_size, own.image_mean, own.image_std)
        self.own = own

    def preprocess(self, images, return_tensors: str = "pt", **kwargs) -> BatchFeature:
        """One image or a list -> pixel_values (B, 3, H, W) float32."""
        pixels = self.own(pictures(images), return_tensors="pt")["pixel_values"]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
