"""The Space: a picture, expressions, and what several models make of them, side by side.

    python space/app.py        # then open http://127.0.0.1:7860

Needs `pip install -e ".[space]"`. Starts offline, and nothing on the page comes from elsewhere. GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT are gradio's; on a Hub Space (SPACE_ID is set) visitors cannot name local folders. Where ZeroGPU is
there (the package `spaces`), models run in its slices. `make space OUT=folder` puts a folder for the Hub together.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from comparison.comparing import Comparer
from comparison.pictures import open_picture
from comparison.zoo import Zoo
from hf_ris.baselines import BASELINES
from page import build, launch
from tabs.examples import examples


HERE = Path(__file__).resolve().parent


def zero_gpu() -> Callable | None:
    """`spaces.GPU`, which lends a GPU for a call, on a Space that has ZeroGPU; else None."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    import spaces  # only such Spaces have it

    return spaces.GPU(duration=60)


def warm_up(comparer: Comparer) -> None:
    """Answer the first example, so that the first visitor waits for no model to be loaded."""
    example = next(iter(examples().values()))
    for _ in comparer.answer_each(comparer.zoo.bundled, open_picture(example.file), list(example.expressions)):
        pass


def main() -> None:
    zoo = Zoo(HERE / "checkpoints", allow_folders="SPACE_ID" not in os.environ, baselines=BASELINES)
    comparer = Comparer(zoo, zero_gpu())
    threading.Thread(target=warm_up, args=(comparer,), daemon=True).start()
    launch(build(comparer))


if __name__ == "__main__":
    main()
