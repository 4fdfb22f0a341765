"""Pretrain a video recipe's model on clips, object by object (`--help` explains the options).

python train/pretrain_motion.py --recipe vatex_video/refscenes_video --out outputs/vatex_video-motion \\
    initialize.weights=space/checkpoints/vatex-refscenes
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.pretraining.motion import main


if __name__ == "__main__":
    main()
