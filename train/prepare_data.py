"""Convert raw downloads to Parquet; the options are those of `hf-ris prepare`, for `describe` of `hf-ris describe`.

    python train/prepare_data.py refcoco --raw downloads --out data/refcoco
    python train/prepare_data.py describe data/refcoco --contact-sheet sheet.png

A tiny raw folder to try it on: python tests/raw_refcoco.py RAW --images 4
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.data.preparation.command import main


if __name__ == "__main__":
    main()
