"""Pretrain a recipe's CLIP on crops of RefScenes objects and their captions (`--help` explains the options).

python train/pretrain_clip.py --recipe cris/refscenes --out outputs/clip-refscenes
python train/pretrain_clip.py --recipe cris/refscenes --out outputs/try --steps 20 --scenes 64 data.size=64
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.pretraining.clip import main


if __name__ == "__main__":
    main()
