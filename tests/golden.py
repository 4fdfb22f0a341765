"""Where the reference numbers lie that are compared with but not distributed."""

import os
from pathlib import Path

import pytest


SHARED = Path(os.environ.get("HF_RIS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def golden(*names: str):
    """Mark a test that reads `names` under SHARED; it is skipped, with the reason, where one of them is absent."""
    absent = [name for name in names if not (SHARED / name).exists()]
    skip = pytest.mark.skipif(
        bool(absent), reason=f"no reference data {', '.join(absent)} in {SHARED}; set HF_RIS_SHARED to their folder"
    )
    return lambda test: pytest.mark.golden(skip(test))
