"""Pretrain a recipe's image and text encoder region by region (`--help` explains the options).

python train/pretrain_regions.py --recipe vlt/refscenes --out outputs/regions-vlt
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.pretraining.regions import main


if __name__ == "__main__":
    main()
