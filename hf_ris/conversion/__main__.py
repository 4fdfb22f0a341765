"""Convert an official checkpoint into a saved model and processor.

    python -m hf_ris.conversion lavt CHECKPOINT OUT_DIR [--config overrides.json] [--vocab vocab.txt]
    python -m hf_ris.conversion cris CHECKPOINT OUT_DIR [--config overrides.json]

`overrides.json` holds configuration fields that the shapes in the checkpoint cannot tell, for example
`{"image_size": 480, "fusion_num_heads": [1, 1, 1, 1], "text_config": {"num_attention_heads": 12}}` for LAVT and
`{"max_text_length": 22}` for CRIS trained on RefCOCOg.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from . import cris, lavt
from .checkpoint import ConversionError


CONVERTERS = {"cris": cris.convert, "lavt": lavt.convert}


def read_overrides(path: str | None) -> dict:
    """The JSON object in a file; {} for None. Raises ConversionError for anything else."""
    if path is None:
        return {}
    try:
        overrides = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is not a readable JSON file ({error}).") from error
    if not isinstance(overrides, dict):
        raise ConversionError(f"{path} holds a JSON {type(overrides).__name__}; it takes an object of config fields.")
    return overrides


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hf_ris.conversion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architecture", choices=CONVERTERS)
    parser.add_argument("checkpoint", help="official checkpoint, a PyTorch or safetensors file")
    parser.add_argument("out_dir", help="folder to write")
    parser.add_argument("--config", help="JSON file with overrides of configuration fields")
    parser.add_argument(
        "--vocab",
        help="lavt: vocab.txt of BERT; default: from the cache or the Hub. cris: folder of a saved tokenizer; default: "
        "CLIP's, which open_clip carries",
    )
    args = parser.parse_args(arguments)
    try:
        unplaced = CONVERTERS[args.architecture](args.checkpoint, args.out_dir, read_overrides(args.config), args.vocab)
    except (ValueError, StrictDataclassError) as error:
        sys.exit(" ".join(str(error).split()))
    for key in unplaced:
        print(f"no place in the model for {key}; left out", file=sys.stderr)
    print(f"wrote {args.out_dir}")


if __name__ == "__main__":
    main()
