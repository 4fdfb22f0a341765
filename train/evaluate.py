"""Evaluate a model, or a file of predictions; the options are those of `hf-ris evaluate` (`--help` explains them).

python train/evaluate.py --model outputs/lts-refscenes/best --data refscenes --split test --result result.json
python train/evaluate.py --predictions a.jsonl --compare b.jsonl
accelerate launch --config_file train/accelerate/cpu_two.yaml train/evaluate.py --model outputs/lts/best
python train/evaluate.py --model space/checkpoints/lts-refscenes --size 16                        # seconds on a CPU
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands.evaluate import main


if __name__ == "__main__":
    main()
