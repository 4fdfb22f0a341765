"""Convert an official checkpoint into a saved model and processor.

    hf-ris convert lavt CHECKPOINT OUT_DIR [--config overrides.json] [--vocab vocab.txt]
    hf-ris convert cris CHECKPOINT OUT_DIR [--config overrides.json]
    hf-ris convert lavt CHECKPOINT OUT_DIR --push-to-hub USER/REPO [--private]

Every tensor that the checkpoint lacks, or that has no place in the model, is named. `overrides.json` holds fields of
the configuration that the shapes in the checkpoint cannot tell, for example `{"image_size": 480, "fusion_num_heads":
[1, 1, 1, 1], "text_config": {"num_attention_heads": 12}}` for LAVT and `{"max_text_length": 22}` for CRIS trained on
RefCOCOg.
"""

import argparse
import sys

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", choices=("cris", "lavt"))
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


def run(options: argparse.Namespace) -> None:
    if options.push_to_hub is None:
        command.refuse_unused(options, ["private"], "it is for --push-to-hub")
    overrides = command.read_object(options.config)
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import validate_repo_id

    from hf_ris.conversion import cris, lavt
    from hf_ris.conversion.checkpoint import ConversionError

    if options.push_to_hub is not None:
        validate_repo_id(options.push_to_hub)
    convert = {"cris": cris.convert, "lavt": lavt.convert}[options.architecture]
    try:
        done = convert(options.checkpoint, options.out_dir, overrides, options.vocab)
    except ConversionError as error:
        for line in error.details:
            print(line, file=sys.stderr)
        raise
    for key in done.unread:
        print(f"left out, since nothing reads it: {key}")
    for key in done.unplaced:
        print(f"no place in the model for {key}; left out", file=sys.stderr)
    print(f"wrote {options.out_dir}: {done.placed} tensors placed, {len(done.unread) + len(done.unplaced)} left out")
    if options.push_to_hub is not None:
        try:
            push(done, options.push_to_hub, options.private)
        except (OSError, HTTPError) as error:
            raise ValueError(f"{options.out_dir} is written but not pushed: {error}") from error
        print(f"pushed to {options.push_to_hub}")


def push(done, repository: str, private: bool) -> None:
    """Upload a `Conversion`'s model and processor in one commit; raises what the Hub's client raises."""
    from hf_ris.models.pipeline_ris import ReferringImageSegmentationPipeline

    pipe = ReferringImageSegmentationPipeline(model=done.model, processor=done.processor)
    pipe.push_to_hub(repository, private=private or None)


def main(arguments: list[str] | None = None) -> None:
    return command.run("convert", arguments)
