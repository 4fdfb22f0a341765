"""Pretrain a recipe's vision encoder on the objects of RefScenes, without words (`--help` explains the options).

python train/pretrain_vision.py --recipe lavt/refscenes --out outputs/vision-refscenes
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.pretraining.vision import main


if __name__ == "__main__":
    main()
