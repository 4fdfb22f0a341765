"""Models of others, behind the interface of ours, to compare with and to use. Nothing here trains them.

    model, processor = load_baseline("florence-2")
    model, processor = load_baseline("grounded-sam:IDEA-Research/grounding-dino-base,facebook/sam-vit-huge")

`processor(images, text)`, `model(**inputs)` and `processor.post_process_referring_segmentation` are as those of the
architectures, so that evaluation and Space use them alike. The networks are transformers' own; their public weights are
fetched from the Hub when a baseline is loaded, safetensors only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..models.processing_ris import RisProcessor
from . import clipseg, florence2, grounded_sam, grounded_sam2, sam3


@dataclass(frozen=True)
class Baseline:
    """A kind of zero-shot model.

    Attributes:
        title: name to show.
        checkpoints: Hub ids or folders of its parts.
        load: from as many ids or folders to model (eval mode) and processor.
        gigabytes: of the default checkpoints, to be downloaded once: 4 bytes for each of the parameters that the
            checkpoint's authors state.
    """

    title: str
    checkpoints: tuple[str, ...]
    load: Callable[..., tuple[nn.Module, RisProcessor]]
    gigabytes: float


BASELINES = {
    "clipseg": Baseline("CLIPSeg", ("CIDAS/clipseg-rd64-refined",), clipseg.load, 0.6),
    "florence-2": Baseline("Florence-2", ("florence-community/Florence-2-base-ft",), florence2.load, 0.9),
    "florence-2-large": Baseline("Florence-2 large", ("florence-community/Florence-2-large-ft",), florence2.load, 3.1),
    "sam3": Baseline("SAM 3", ("facebook/sam3",), sam3.load, 3.4),
    "sam3-all": Baseline("SAM 3, all instances", ("facebook/sam3",), partial(sam3.load, select="all"), 3.4),
    "grounded-sam": Baseline(
        "Grounding DINO + SAM", ("IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-base"), grounded_sam.load, 1.1
    ),
    "grounded-sam2": Baseline(
        "Grounding DINO + SAM 2",
        ("IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-small"),
        grounded_sam2.load,
        0.9,
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
