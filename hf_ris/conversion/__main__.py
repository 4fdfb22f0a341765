"""Convert an official checkpoint into a saved model and processor.

    python -m hf_ris.conversion lavt CHECKPOINT OUT_DIR [--config overrides.json] [--vocab vocab.txt]
    python -m hf_ris.conversion cris CHECKPOINT OUT_DIR [--config overrides.json]
    python -m hf_ris.conversion lavt CHECKPOINT OUT_DIR --push-to-hub USER/REPO [--private]

Every tensor that the checkpoint lacks, or that has no place in the model, is named. `overrides.json` holds fields of
the configuration that the shapes in the checkpoint cannot tell, for example `{"image_size": 480, "fusion_num_heads":
[1, 1, 1, 1], "text_config": {"num_attention_heads": 12}}` for LAVT and `{"max_text_length": 22}` for CRIS trained on
RefCOCOg.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from ..models.pipeline_ris import ReferringImageSegmentationPipeline
from . import cris, lavt
from .checkpoint import Conversion, ConversionError


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


def push(done: Conversion, repository: str, private: bool) -> None:
    """Upload model and processor in one commit. Raises OSError or HTTPError as the Hub's client does."""
    pipe = ReferringImageSegmentationPipeline(model=done.model, processor=done.processor)
    pipe.push_to_hub(repository, private=private or None)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
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
    parser.add_argument("--push-to-hub", metavar="USER/REPO", help="upload the result, beside writing it")
    parser.add_argument("--private", action="store_true", help="the repository, if it is new, is private")
    options = parser.parse_args(arguments)
    if options.push_to_hub is None and options.private:
        parser.error("--private is for --push-to-hub")
    if options.push_to_hub is not None:
        try:
            validate_repo_id(options.push_to_hub)
        except HFValidationError as error:
            parser.error(f"--push-to-hub: {error}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    convert = CONVERTERS[options.architecture]
    try:
        done = convert(options.checkpoint, options.out_dir, read_overrides(options.config), options.vocab)
    except (ValueError, StrictDataclassError) as error:
        for line in error.details if isinstance(error, ConversionError) else []:
            print(line, file=sys.stderr)
        sys.exit(" ".join(str(error).split()))
    for key in done.unread:
        print(f"left out, since nothing reads it: {key}")
    for key in done.unplaced:
        print(f"no place in the model for {key}; left out", file=sys.stderr)
    print(f"wrote {options.out_dir}: {done.placed} tensors placed, {len(done.unread) + len(done.unplaced)} left out")
    if options.push_to_hub is not None:
        try:
            push(done, options.push_to_hub, options.private)
        except (OSError, HTTPError) as error:
            sys.exit(f"{options.out_dir} is written but not pushed: {' '.join(str(error).split())}")
        print(f"pushed to {options.push_to_hub}")


if __name__ == "__main__":
    main()
