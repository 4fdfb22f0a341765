"""Train an architecture by a recipe; the options are those of `hf-ris train` (`--help` explains them).

    python train/train.py --recipe lts/refscenes training.seed=1 output_dir=outputs/lts-1
    python train/train.py --recipe lts/refscenes training.max_steps=20 data.size=64 data.validation_size=16 \
        output_dir=outputs/smoke                                            # a minute on the CPU, to see that all works
    accelerate launch --config_file train/accelerate/ddp.yaml train/train.py --recipe lavt/refcoco data.name=DIR
    accelerate launch --config_file train/accelerate/cpu_two.yaml train/train.py --recipe lts/refscenes
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands.train import main


if __name__ == "__main__":
    main()
