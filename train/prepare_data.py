"""Convert raw downloads to Parquet, or describe a data set: `hf-ris prepare` and `hf-ris describe`, with their options.

    python train/prepare_data.py refcoco --raw downloads --out data/refcoco
    python train/prepare_data.py describe data/refcoco --contact-sheet sheet.png

A tiny raw folder to try it on: python tests/raw_refcoco.py RAW --images 4
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands import describe, prepare


def main(arguments: list[str] | None = None):
    words = sys.argv[1:] if arguments is None else arguments
    return describe.main(words[1:]) if words[:1] == ["describe"] else prepare.main(words)


if __name__ == "__main__":
    main()
