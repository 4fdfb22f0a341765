"""Zero-shot models of others, behind the interface of ours, to compare with. Nothing here trains them.

    model, processor = load_baseline("clipseg")
    model, processor = load_baseline("grounded-sam:IDEA-Research/grounding-dino-base,facebook/sam-vit-huge")

`processor(images, text)`, `model(**inputs)` and `processor.post_process_referring_segmentation` are as those of the
architectures, so that evaluation and Space use them alike. The networks are transformers' own; their public weights are
fetched from the Hub when a baseline is loaded, safetensors only.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..models.processing_ris import RisProcessor
from . import clipseg, grounded_sam


@dataclass(frozen=True)
class Baseline:
    """A kind of zero-shot model.

    Attributes:
        title: name to show.
        checkpoints: Hub ids or folders of its parts.
        load: from as many ids or folders to model (eval mode) and processor.
    """

    title: str
    checkpoints: tuple[str, ...]
    load: Callable[..., tuple[nn.Module, RisProcessor]]


BASELINES = {
    "clipseg": Baseline("CLIPSeg", ("CIDAS/clipseg-rd64-refined",), clipseg.load),
    "grounded-sam": Baseline(
        "Grounding DINO + SAM", ("IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-base"), grounded_sam.load
    ),
}


def is_baseline(reference: str) -> bool:
    """Whether a reference names a baseline: its name alone, or `name:checkpoint,checkpoint`. (A folder: `./name`.)"""
    return reference.partition(":")[0] in BASELINES


def load_baseline(reference: str) -> tuple[nn.Module, RisProcessor]:
    """Model (float32, eval mode) and processor of a baseline, with its default checkpoints or those after the colon.

    Raises:
        ValueError: no baseline's name, or checkpoints of another number or kind.
        OSError: weights that are neither cached nor reachable; one sentence says whose.
    """
    name, _, given = reference.partition(":")
    if name not in BASELINES:
        raise ValueError(f"There is no baseline {name!r}; there are {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    checkpoints = tuple(given.split(",")) if given else baseline.checkpoints
    if len(checkpoints) != len(baseline.checkpoints) or not all(checkpoints):
        form = ",".join(baseline.checkpoints)
        raise ValueError(f"{name} takes {len(baseline.checkpoints)} checkpoints, as {name}:{form}; got {reference!r}.")
    return baseline.load(*checkpoints)
