"""Data for referring segmentation: schema, built-in scenes, loaders, transforms and collator (knows no model)."""

import importlib


_MODULES = {
    "schema": ["FEATURES", "encode_mask", "decode_mask", "union_mask", "union_rle", "target_rle", "expression_mask"]
    + ["check_rle", "validate_row"],
    "video_schema": ["VIDEO_FEATURES", "Frames", "frames_of", "is_video_data", "lazy_frames", "validate_video"],
    "refscenes.scenes": ["RefScenes", "load_refscenes"],
    "refscenes.moving": ["MovingScenes", "load_moving_scenes"],
    "jsonl": ["load_jsonl_folder"],
    "example_folder": ["write_example_folder"],
    "adopting": ["adopt"],
    "ground_truth": ["PREPARED_FEATURES", "annotation_masks", "change_ground_truth", "target_parts"],
    "preparation.published": ["PUBLISHED"],
    "preparation.preparing": ["Options", "prepare"],
    "description": ["describe"],
    "loading": ["load", "load_split", "split_by_rank", "check_columns"],
    "transforms": ["sample_expressions", "horizontal_flip", "color_jitter", "TrainingRows", "EvaluationRows"],
    "collator": ["RisCollator"],
    "videos": ["VideoCollator", "VideoTrainingRows"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    """Import the module of a public name when it is first asked for: `datasets` alone takes a second to import."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
