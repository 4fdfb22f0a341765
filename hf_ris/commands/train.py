"""Train an architecture on referring segmentation, by a recipe.

On one GPU or, without one, on the CPU; anything in the recipe can be overridden by nested.key=value:

    hf-ris train lts/refscenes training.seed=1 output_dir=outputs/lts-1

A minute on the CPU, to see that all works:

    hf-ris train lts/refscenes training.max_steps=20 data.size=64 data.validation_size=16 output_dir=outputs/smoke

Several GPUs (DDP; FSDP is train/accelerate/fsdp.yaml), and two processes on the CPU (`accelerate launch --cpu
--num_processes 2` would silently start one process):

    accelerate launch --config_file train/accelerate/ddp.yaml -m hf_ris.training lavt/refcoco data.name=data/refcoco
    accelerate launch --config_file train/accelerate/cpu_two.yaml -m hf_ris.training lts/refscenes

A run that was killed goes on from its newest checkpoint with --resume and ends with the same weights, bit for bit, as
one that was not (same number of threads and processes). --stop-at-step N ends early without changing the schedule, so
that the first steps of a published run can be replayed. A run's folder holds run.json, log.jsonl, best/, last/ and
checkpoints/. --push-to-hub user/name makes that repository at the start and pushes best/ to it at the end, with a card;
`hf-ris push` does so later, with the numbers of `hf-ris evaluate`.
"""

import argparse
from pathlib import Path
from typing import Any

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", help="a name, as lavt/refcoco, or a YAML file; or the first word without =")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--stop-at-step", type=int, metavar="N", help="end early, on the full run's schedule")
    parser.add_argument("--push-to-hub", "--push_to_hub", metavar="ID", help="push the best model here at the end")
    parser.add_argument("--private", action="store_true", help="of the repository on the Hub, if it is made")
    parser.add_argument(
        "overrides", nargs="*", metavar="RECIPE key=value", help="as training.seed=1 or model.fusion_dim=256"
    )


def read_recipe(options: argparse.Namespace):
    """The recipe that the options name, with their overrides."""
    from hf_ris.resources import recipe_names
    from hf_ris.training.recipe import load_recipe

    if options.recipe is None and options.overrides and "=" not in options.overrides[0]:
        options.recipe, *options.overrides = options.overrides
    if options.recipe is None:
        raise ValueError(f"Give a recipe, a YAML file or one of {', '.join(recipe_names())}.")
    return load_recipe(options.recipe, options.overrides)


def run(options: argparse.Namespace) -> dict[str, Any]:
    recipe = read_recipe(options)
    if options.push_to_hub is None:
        command.refuse_unused(options, ["private"], "it is for --push-to-hub")
    from transformers.utils.logging import disable_progress_bar

    from hf_ris.hub.push import check, make_repository, push
    from hf_ris.training.loop import build_accelerator, train
    from hf_ris.training.recipe import ANY

    disable_progress_bar()  # of saving: there is one bar, of the steps
    if options.push_to_hub is not None:
        check(options.push_to_hub)
    model = Path(recipe.initialize.weights).name if recipe.architecture == ANY else recipe.architecture
    output = Path(recipe.output_dir or f"outputs/{model}-{Path(options.recipe).stem}")
    accelerator = build_accelerator(recipe, output)
    pushes = options.push_to_hub is not None and accelerator.is_main_process
    if pushes:
        try:
            make_repository(options.push_to_hub, options.private)
        except ValueError as error:
            raise ValueError(f"{error} Nothing was trained.") from error
    result = train(recipe, accelerator, output, options.resume, options.stop_at_step)
    if pushes:
        try:
            print(f"pushed: {push(output, options.push_to_hub, options.private)}")
        except ValueError as error:
            again = f"hf-ris push {output} {options.push_to_hub}"
            raise ValueError(f"{error} The run is whole; push it again by {again}") from error
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command.run("train", arguments)
