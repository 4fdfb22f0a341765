"""How many expressions are cut at the lengths of the recipes (`--help` explains the options).

python train/lengths.py --data data
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.training.lengths import main


if __name__ == "__main__":
    main()
