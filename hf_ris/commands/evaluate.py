"""Measure a model on referring segmentation, or a file of predictions without any model.

    hf-ris evaluate --model outputs/lts-refscenes/best --data refscenes --split test --result result.json
    hf-ris evaluate --model outputs/lts-refscenes/best --output answers.jsonl --compare others.jsonl
    hf-ris evaluate --predictions answers.jsonl --compare others.jsonl
    hf-ris evaluate --model clipseg --data data/refcoco --split val
    accelerate launch --config_file train/accelerate/cpu_two.yaml train/evaluate.py --model ... --output answers.jsonl

`--model` also takes the name of a zero-shot baseline, `clipseg` or `grounded-sam`, whose weights come from the Hub, or
from where the name says (`grounded-sam:IDEA-Research/grounding-dino-base,facebook/sam-vit-huge`).

A model and the file of its predictions (`--output`) give the same report: every metric under every protocol with its
interval, slices by length, words and distractors. `--protocols` names one or more conventions (original, lavt480,
cris, ...); numbers of different ones are not comparable. Results do not depend on the number of processes: every
expression counts once, by its id. `--control` measures what a benchmark gives away: `largest_object` answers with the
largest object's mask (needs no model); `other_scene_expression` and `other_object_expression` give the model an
expression of another scene, or of another object of the same image, and compare with the target of the right one.
`--analyse DIR` adds plots of lengths and of the inside. `--errors DIR` writes where the loss lies: right object or not,
outline, empty masks, merged neighbours, by kind of expression, size and distractors; with `--compare` side by side.

    hf-ris evaluate --model outputs/lts-refscenes/best --calibrate

chooses the threshold with the best mIoU, of videos with the best J, on the split `val` and writes it, with the curve,
into the folder's processor.

Of a set of videos, J, F and J&F are measured, of a video model or, frame by frame, of an image model, under the
protocols youtube_vos (default) and davis; controls are `shuffled_frames`, `first_frame` and `other_object_expression`.
`--output FILE.jsonl` writes the answers to annotated frames, which `--predictions` reports on as on the model.
`--submission out.zip` writes those to all frames as Ref-YouTube-VOS's server takes them:

    hf-ris evaluate --model outputs/vatex_video/best --data data/ref_youtube_vos --split val --submission out.zip
"""

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_ris.metrics import PROTOCOLS, VIDEO_PROTOCOLS

from . import command


CONTROLS = ("largest_object", "other_scene_expression", "other_object_expression")
VIDEO_CONTROLS = ("shuffled_frames", "first_frame", "other_object_expression")
_OF_A_MODEL = {  # options that a file of predictions has no use for, and their defaults
    "data": "refscenes",
    "split": "test",
    "size": None,
    "image_size": None,
    "control": None,
    "batch_size": 16,
    "max_expressions": 32,
    "workers": 0,
    "mixed_precision": "no",
    "output": None,
    "submission": None,
    "analyse": None,
    "calibrate": False,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder or Hub id of a saved model and processor, or the name of a baseline")
    parser.add_argument("--predictions", type=Path, metavar="FILE.jsonl", help="a line per expression, masks as RLE")
    model = parser.add_argument_group("of a model")
    model.add_argument("--data", help="RefScenes flavour, folder or Hub id (default refscenes)")
    model.add_argument("--split", help="(default test, of --calibrate val)")
    model.add_argument("--size", type=int, help="images taken (default: the whole split)")
    model.add_argument("--image-size", type=int, help="side of RefScenes images (default 128)")
    model.add_argument("--control", choices=tuple(dict.fromkeys(CONTROLS + VIDEO_CONTROLS)))
    model.add_argument("--batch-size", type=int, help="images (default 16)")
    model.add_argument("--max-expressions", type=int, help="of one image in a batch (default 32)")
    model.add_argument("--workers", type=int, help="processes that load data, per process (default 0)")
    model.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), help="(default no)")
    model.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write the predictions here")
    model.add_argument("--submission", type=Path, metavar="FILE.zip", help="of videos: write the answers here")
    model.add_argument("--analyse", type=Path, metavar="DIR", help="write analyses and plots here")
    model.add_argument("--calibrate", action="store_true", help="choose the threshold and write it into the folder")
    report = parser.add_argument_group("of the report")
    report.add_argument("--compare", type=Path, metavar="FILE.jsonl", help="another model's predictions, pair by pair")
    report.add_argument(
        "--protocols", nargs="+", choices=[*PROTOCOLS, *VIDEO_PROTOCOLS], help="default: all; the first one is sliced"
    )
    report.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default 1000)")
    report.add_argument("--confidence", type=float, default=0.95, help="level of the intervals (default 0.95)")
    report.add_argument("--bootstrap-seed", type=int, default=0, help="seed of the resamples (default 0)")
    report.add_argument("--length-groups", type=int, default=4, help="groups by expression length (default 4)")
    report.add_argument("--errors", type=Path, metavar="DIR", help="write where the loss lies here")
    report.add_argument("--result", type=Path, metavar="FILE.json", help="write the whole report here")


def check(options: argparse.Namespace) -> None:
    """ValueError for options that contradict each other or would be ignored."""
    if options.predictions is not None:
        command.refuse_unused(options, ["model", *_OF_A_MODEL], "--predictions is measured without a model")
    elif options.control == "largest_object":
        command.refuse_unused(options, ["model", "mixed_precision"], "--control largest_object needs no model")
    elif options.model is None:
        raise ValueError("Give --model DIR_OR_HUB_ID, or --predictions FILE.jsonl, or --control largest_object.")
    if options.resamples < 1 or not 0 < options.confidence < 1 or options.length_groups < 1:
        raise ValueError(
            "--resamples and --length-groups are at least 1 and --confidence lies between 0 and 1, not "
            f"{options.resamples}, {options.length_groups} and {options.confidence}."
        )
    if options.calibrate:
        check_calibration(options)
    command.fill_in(options, _OF_A_MODEL)
    for name in ("batch_size", "max_expressions"):
        if vars(options)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, not {vars(options)[name]}.")
    if options.size is not None and options.size < 1:
        raise ValueError(f"--size is at least 1, not {options.size}.")


def check_calibration(options: argparse.Namespace) -> None:
    """ValueError for what a choice of the threshold cannot take; its split is val."""
    ignored = ["control", "output", "submission", "analyse", "compare", "protocols", "errors", "result"]
    command.refuse_unused(options, ignored, "--calibrate only chooses the threshold")
    if options.model is None or not Path(options.model, "processor_config.json").is_file():
        raise ValueError(f"--calibrate writes into the folder of a saved model and processor; {options.model} is none.")
    options.split = options.split or "val"
    if options.split.startswith("test"):
        raise ValueError(f"--calibrate: a threshold is not chosen on {options.split}; give --split val.")


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Print, and with --result write, the report; returns it in the main process, None in others."""
    check(options)
    if options.calibrate:
        return calibrate(options)
    report = report_on(options.predictions, options) if options.predictions else measure(options)
    if report is not None:
        show(report, options)
    return report


def calibrate(options: argparse.Namespace) -> dict[str, Any] | None:
    """Write the best threshold and the curve into the processor's config; returns them in the main process."""
    from hf_ris.data import is_video_data
    from hf_ris.evaluation import calibration

    accelerator, model, processor, dataset = load_all(options)
    given, progress = (accelerator, model, processor, dataset), accelerator.is_main_process
    if is_video_data(dataset):
        values = calibration.video_curve(*given, options.max_expressions, progress)
    else:
        values = calibration.curve(*given, options.batch_size, options.max_expressions, progress)
    of, measure = ("videos", "J") if is_video_data(dataset) else ("images", "mIoU")
    told = {"data": options.data, "split": options.split, of: len(dataset)}
    result = calibration.chosen(values, told, measure)
    if accelerator.is_main_process:
        before, processor.threshold, processor.calibration = processor.threshold, result["threshold"], result
        processor.save_pretrained(options.model)
        for threshold, value in zip(result["thresholds"], result[measure]):
            print(f"{threshold:6.3f}  {measure} {100 * value:6.2f}{'  *' if threshold == result['threshold'] else ''}")
        print(f"threshold {before:g} -> {result['threshold']:g}, written into {options.model}")
    accelerator.end_training()
    return result if accelerator.is_main_process else None


def load_all(options: argparse.Namespace) -> tuple:
    """(accelerator, model on its device, processor, data set); model and processor are None where none is asked for.

    Says which words of the data the model does not know.
    """
    import torch
    from accelerate import Accelerator

    from hf_ris.baselines import is_baseline
    from hf_ris.data import load_split
    from hf_ris.data.transforms import expression_texts
    from hf_ris.environment import check_launch
    from hf_ris.evaluation.answers import load_model
    from hf_ris.models.inference_ris import optimize_for_inference

    check_launch(options.mixed_precision)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=options.mixed_precision)
    model, processor = None, None
    if options.model is not None:
        with nullcontext() if is_baseline(options.model) else command.loading(options.model):
            model, processor = load_model(options.model)
        model = model.to(accelerator.device)
        if not is_baseline(options.model):
            optimize_for_inference(model, torch.float32)  # on every machine alike: narrower is --mixed-precision
    with accelerator.main_process_first():
        dataset = load_split(options.data, options.split, options.size, options.image_size)
    if processor is not None and not is_baseline(options.model):
        unknown = processor.unknown_words(expression_texts(dataset))
        if unknown.unknown:
            accelerator.print(unknown)
        processor.warns_of_unknown_words = False  # told
    return accelerator, model, processor, dataset


def measure(options: argparse.Namespace) -> dict[str, Any] | None:
    """The report of a model's, or a control's, predictions; None but in the main process."""
    from accelerate.utils import broadcast_object_list, gather_object

    from hf_ris.data import is_video_data
    from hf_ris.evaluation.answers import PredictionsFile, evaluate_model

    accelerator, model, processor, dataset = load_all(options)
    if is_video_data(dataset):
        return measure_videos(options, accelerator, model, processor, dataset)
    refuse_for_images(options)
    similarity = None
    if options.analyse is not None:  # of the extra `train`
        from hf_ris.evaluation import analyses

        similarity = analyses.TextSimilarity()
    with TemporaryDirectory() as folder:
        path = options.output or Path(broadcast_object_list([folder])[0]) / "predictions.jsonl"
        predictions, start = PredictionsFile(path, accelerator), time.perf_counter()
        evaluator = evaluate_model(
            accelerator,
            model,
            processor,
            dataset,
            batch_size=options.batch_size,
            max_expressions=options.max_expressions,
            workers=options.workers,
            control=options.control,
            record=predictions.record,
            observe=None if similarity is None else similarity.observe,
            progress=accelerator.is_main_process,
        )
        predictions.close()
        report = None
        if accelerator.is_main_process:
            report = facts(options, accelerator.num_processes, time.perf_counter() - start)
            report |= report_on(path, options, name=options.model or options.control)
        accelerator.wait_for_everyone()  # before the folder goes
    if similarity is not None:
        similarity.merge(gather_object([similarity.state()]))
        if accelerator.is_main_process:
            metrics = evaluator.compute(groups=options.length_groups)
            analyses.write(options.analyse, model, processor, dataset, similarity, metrics)
    accelerator.end_training()
    return report


def refuse_for_images(options: argparse.Namespace) -> None:
    """ValueError for options that a set of images has no use for."""
    if options.submission is not None:
        raise ValueError(f"--submission is for videos, but {options.data} holds images.")
    if options.control in VIDEO_CONTROLS and options.control not in CONTROLS:
        raise ValueError(f"--control {options.control} is for videos, but {options.data} holds images.")
    chosen = [name for name in options.protocols or () if name in VIDEO_PROTOCOLS]
    if chosen:
        raise ValueError(f"Protocol {chosen[0]} is for videos, but {options.data} holds images.")


def measure_videos(options: argparse.Namespace, accelerator, model, processor, dataset) -> dict[str, Any] | None:
    """The report of a model's answers to videos; None but in the main process."""
    protocols = video_protocols(options, options.data)
    if options.control is not None and options.control not in VIDEO_CONTROLS:
        raise ValueError(f"Controls of videos are {', '.join(VIDEO_CONTROLS)}, not {options.control}.")
    if options.output is not None and not any(row["objects"] for row in dataset.select_columns(["objects"])):
        raise ValueError(
            f"--output writes the answers to annotated frames, but {options.data} has none in this split; --submission "
            "writes those to all frames."
        )
    from hf_ris.evaluation.answers import PredictionsFile
    from hf_ris.evaluation.submission import Submission
    from hf_ris.evaluation.videos import evaluate_videos, video_report

    submission = None if options.submission is None else Submission(options.submission, accelerator)
    predictions = None if options.output is None else PredictionsFile(options.output, accelerator)
    start = time.perf_counter()
    evaluator = evaluate_videos(
        accelerator,
        model,
        processor,
        dataset,
        protocols=protocols,
        max_expressions=options.max_expressions,
        control=options.control,
        record=None if submission is None else submission.record,
        record_line=None if predictions is None else predictions.record,
        progress=accelerator.is_main_process,
    )
    if predictions is not None:
        predictions.close()
    if submission is not None:
        submission.close(dataset)
    if not accelerator.is_main_process:
        return None
    report = facts(options, accelerator.num_processes, time.perf_counter() - start)
    report |= video_report(evaluator, **bootstrap_settings(options))
    return report | {"submission": options.submission and str(options.submission)}


def video_protocols(options: argparse.Namespace, data: str | Path) -> list[str]:
    """The protocols of a report on videos; ValueError for what is asked for and only images have."""
    for name in ("analyse", "compare", "errors"):
        if vars(options)[name] is not None:
            raise ValueError(f"--{name} is for images, but {data} holds videos; --result takes their report.")
    protocols = options.protocols or ["youtube_vos"]
    wrong = [name for name in protocols if name not in VIDEO_PROTOCOLS]
    if wrong:
        raise ValueError(f"Protocols of videos are {', '.join(VIDEO_PROTOCOLS)}, not {wrong[0]}.")
    return protocols


def bootstrap_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"resamples": options.resamples, "confidence": options.confidence, "seed": options.bootstrap_seed}


def facts(options: argparse.Namespace, processes: int, seconds: float) -> dict[str, Any]:
    """What was measured, and where."""
    from hf_ris.environment import git_revision, hardware, versions

    return {
        **{name: vars(options)[name] for name in ("model", "data", "split", "control")},
        "seconds": round(seconds, 1),
        "revision": git_revision(),
        "versions": versions(),
        "hardware": hardware() | {"processes": processes},
    }


def report_on_videos(predictions: Path, options: argparse.Namespace) -> dict[str, Any]:
    from hf_ris.evaluation.video_predictions import evaluate_video_predictions
    from hf_ris.evaluation.videos import video_report

    evaluator = evaluate_video_predictions(predictions, video_protocols(options, predictions))
    return {"file": str(predictions)} | video_report(evaluator, **bootstrap_settings(options))


def report_on(predictions: Path, options: argparse.Namespace, name: str | None = None) -> dict[str, Any]:
    from hf_ris.evaluation.report import evaluate_predictions
    from hf_ris.metrics import is_of_videos

    if is_of_videos(predictions):
        return report_on_videos(predictions, options)
    if options.errors is not None:
        from hf_ris.evaluation.errors import write_errors

        files = [predictions, *([options.compare] if options.compare else [])]
        names = [name or str(predictions), *map(str, files[1:])]
        print(write_errors(files, names, options.errors), end="\n\n")
    return evaluate_predictions(
        predictions,
        options.protocols,
        options.compare,
        name=name,
        groups=options.length_groups,
        **bootstrap_settings(options),
    )


def show(report: dict[str, Any], options: argparse.Namespace) -> None:
    if "videos" in report:
        from hf_ris.evaluation.videos import format_video_report as format_report
    else:
        from hf_ris.evaluation.report import format_report
    if options.result is not None:  # first, for a reader of what is printed may leave
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(format_report(report))


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    return command.run("evaluate", arguments)
