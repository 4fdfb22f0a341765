"""What a model costs; the options are those of `hf-ris benchmark` (`--help` explains them).

python train/benchmark.py --arch lavt
python train/benchmark.py --model space/checkpoints/lts-refscenes --cpu --repeats 3             # seconds on a CPU
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands.benchmark import main


if __name__ == "__main__":
    main()
