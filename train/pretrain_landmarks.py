"""Teach a model relations by their landmarks (`--help` explains the options).

python train/pretrain_landmarks.py --recipe finer_masks --out outputs/vlt-landmarks \\
    initialize.weights=space/checkpoints/vlt-refscenes
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.pretraining.landmarks import main


if __name__ == "__main__":
    main()
