"""Put a trained model into a folder that is small enough for the repository (`--help` explains the options).

python train/bundle.py outputs/lts-refscenes space/checkpoints/lts-refscenes outputs/lts-refscenes/test.json
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.hub.bundle import main


if __name__ == "__main__":
    main()
