"""Push a trained model to the Hub; the options are those of `hf-ris push` (`--help` explains them).

python train/push.py outputs/lts-refscenes user/lts-refscenes outputs/lts-refscenes/test.json --private
python train/push.py space/checkpoints/lts-refscenes user/lts --out repository     # writes it, and pushes nothing
"""

import sys
from pathlib import Path


if __name__ == "__main__":  # so that a clone works that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.commands.push import main


if __name__ == "__main__":
    main()
