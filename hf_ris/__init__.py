"""hf_ris: a zoo of referring image segmentation architectures, each a transformers model.

Importing it registers every architecture with the Auto classes and the task with `transformers.pipeline`.
"""

from importlib import import_module

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY


__version__ = "0.1.0"

# One line per architecture: the model type (the trio's file suffix) and the prefix of its class names.
ARCHITECTURES: dict[str, str] = {
    "cris": "Cris",
    "eavl": "Eavl",
    "lavt": "Lavt",
    "lts": "Lts",
    "segvlm": "Segvlm",
    "vlt": "Vlt",
    "mpg_lqgnet": "MpgLqgnet",
    "vatex": "Vatex",
    "clipseg_ris": "Clipseg",
}

# What people type where a model type is asked for: transformers has models of type `clipseg` itself.
ALIASES = {"clipseg": "clipseg_ris"}


def _register() -> None:
    from .models.pipeline_ris import TASK, ReferringImageSegmentationPipeline
    from .models.processing_ris import RisImageProcessor

    for name, prefix in ARCHITECTURES.items():
        config = import_module(f".models.configuration_{name}", __name__).__dict__[f"{prefix}Config"]
        model = import_module(f".models.modeling_{name}", __name__).__dict__[f"{prefix}ForReferringSegmentation"]
        processor = import_module(f".models.processing_{name}", __name__).__dict__[f"{prefix}Processor"]
        AutoConfig.register(name, config)
        AutoModel.register(config, model)
        AutoModelForImageSegmentation.register(config, model)
        AutoImageProcessor.register(config, image_processor_classes={"torchvision": RisImageProcessor})
        AutoProcessor.register(config, processor)
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=ReferringImageSegmentationPipeline, pt_model=AutoModel, type="multimodal"
    )


_register()


def __getattr__(name: str):
    """`hf_ris.LtsConfig` and its like, taken from the trio's files on first use."""
    for suffix, prefix in ARCHITECTURES.items():
        for kind, ending in (
            ("configuration", "Config"),
            ("modeling", "ForReferringSegmentation"),
            ("processing", "Processor"),
        ):
            if name == prefix + ending:
                return import_module(f".models.{kind}_{suffix}", __name__).__dict__[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
