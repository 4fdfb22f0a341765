"""How the parts of a baseline are loaded."""

import torch
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin


def load_part(
    source: str, model_class: type[PreTrainedModel], processor_class: type[ProcessorMixin]
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model (float32, eval mode) and its processor, from a Hub id or a folder.

    Raises:
        ValueError: a checkpoint of another architecture.
        OSError: neither cached nor reachable, or not whole.
    """
    try:
        kind, wanted = AutoConfig.from_pretrained(source).model_type, model_class.config_class.model_type
        if kind != wanted:
            raise ValueError(f"{source} holds a model of type {kind}; this baseline takes a {wanted}.")
        model = model_class.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        return model.eval(), processor_class.from_pretrained(source)
    except OSError as error:
        raise OSError(
            f"The weights of {source} are neither cached nor reachable: connect to the Hub once, or name a folder that "
            "holds them."
        ) from error
