"""Export a model as `torch.export` program or ONNX; the options are those of `hf-ris export` (`--help` explains them).

python train/export.py --model space/checkpoints/lts-refscenes --out lts.onnx
python train/export.py --table lts                                              # half a minute on the CPU
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands.export import main


if __name__ == "__main__":
    main()
