"""hf_ris: a zoo of referring segmentation architectures, each a transformers model.

Importing it registers every architecture with the Auto classes and the task with `transformers.pipeline`: at once where
transformers is imported already, else as soon as it is. Until then nothing heavy is imported.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder


__version__ = "0.2.0"

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
# Those whose input is a video.
VIDEO_ARCHITECTURES: dict[str, str] = {
    "vatex_video": "VatexVideo",
}
_TRIO = {"Config": "configuration", "ForReferringSegmentation": "modeling", "Processor": "processing"}
_CLASSES = {  # public name -> its module
    prefix + ending: f".models.{kind}_{name}"
    for name, prefix in (ARCHITECTURES | VIDEO_ARCHITECTURES).items()
    for ending, kind in _TRIO.items()
}
_CLASSES |= {"pipeline": ".one_line", "optimize_for_inference": ".models.inference_ris"}
__all__ = ["ARCHITECTURES", "VIDEO_ARCHITECTURES", *_CLASSES]

# What people type where a model type is asked for: transformers has models of type `clipseg` itself.
ALIASES = {"clipseg": "clipseg_ris"}


def _register() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageSegmentation, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.pipeline_ris import TASK, ReferringImageSegmentationPipeline
    from .models.pipeline_video_ris import VIDEO_TASK, ReferringVideoSegmentationPipeline
    from .models.processing_ris import RisImageProcessor

    for name, prefix in (ARCHITECTURES | VIDEO_ARCHITECTURES).items():
        config, model, processor = (
            import_module(f".models.{kind}_{name}", __name__).__dict__[prefix + ending]
            for ending, kind in _TRIO.items()
        )
        AutoConfig.register(name, config)
        AutoModel.register(config, model)
        AutoModelForImageSegmentation.register(config, model)
        AutoImageProcessor.register(config, image_processor_classes={"torchvision": RisImageProcessor})
        AutoProcessor.register(config, processor)
    for task, pipeline_class in (
        (TASK, ReferringImageSegmentationPipeline),
        (VIDEO_TASK, ReferringVideoSegmentationPipeline),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=AutoModel, type="multimodal")


class _RegisterAfterTransformers(MetaPathFinder, Loader):
    """Finds `transformers` as Python would, runs it, and then registers: nobody sees it without our classes."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)  # once
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register()


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterTransformers())


def __getattr__(name: str):
    """`hf_ris.LtsConfig` and its like, taken from the trio's files on first use."""
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
