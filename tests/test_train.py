"""Recipes, schedules, parameter groups, the order of data, resuming, evaluation and its controls, the benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import forget_accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageSegmentation

from hf_ris.benchmark import FlopCounter, LiveTensors, count_flops, flop_parts, random_inputs
from hf_ris.commands.benchmark import main as benchmark
from hf_ris.commands.evaluate import main as evaluate
from hf_ris.commands.train import main as train
from hf_ris.data import decode_mask
from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.evaluation.answers import ScoredRows, evaluate_model
from hf_ris.evaluation.report import evaluate_predictions
from hf_ris.metrics import PROTOCOLS
from hf_ris.training.build import Expressions, References, weight
from hf_ris.training.optimizer import freeze, learning_rate_factor, parameter_groups
from hf_ris.training.order import StepBatches
from hf_ris.training.recipe import OptimizerRecipe, Rule, ScheduleRecipe, load_recipe


ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "train" / "recipes").glob("*/*.yaml"))
LTS = ROOT / "train" / "recipes" / "lts" / "refscenes.yaml"
LAVT = ROOT / "train" / "recipes" / "lavt" / "refcoco.yaml"
# A model that costs nothing, in a run with everything that is random or has a state.
TINY = [
    "model.image_size=32",
    "model.vision_config.arguments={depths: [1, 1, 1, 1, 1], widths: [8, 8, 8, 8, 8], stem_width: 8}",
    *(f"model.{name}=8" for name in ("embedding_dim", "hidden_size", "fusion_dim", "segmentation_dim")),
    "model.aspp_rates=[1]",
    "optimizer.learning_rate=0.05",  # with the threshold: after six steps masks are neither empty nor full
    "processor.threshold=0.5",
    "data={name: refscenes, size: 12, image_size: 64, validation_size: 4, max_expressions: 3, augment: [flip, color]}",
    "schedule.warmup_steps=2",
    "training={max_steps: 6, batch_size: 4, clip_norm: 1.0, log_every: 1, evaluate_every: 3, save_every: 2}",
]
# LAVT has what LTS has not: dropout, so that its steps draw random numbers.
TINY_LAVT = [
    "architecture=lavt",
    "model={image_size: 32, decoder_dim: 8}",
    "model.vision_config.name=swin_tiny_patch4_window7_224",
    "model.vision_config.arguments={embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], window_size: 4}",
    "model.text_config={hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8}",
    "processor.tokenizer=wordpiece",
]


def run(folder: Path, *extra: str) -> Path:
    """Train the tiny model into `folder`, with further overrides and options."""
    forget_accelerator()
    train(["--recipe", str(LTS), *TINY, f"output_dir={folder}", *extra])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("runs") / "whole")


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_weights(first: Path, second: Path, name: str = "last") -> None:
    first, second = (load_file(folder / name / "model.safetensors") for folder in (first, second))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_fits_its_architecture(path):
    recipe = load_recipe(path)
    assert recipe.architecture == path.parent.name
    config = AutoConfig.for_model(recipe.architecture, **recipe.model)
    with torch.device("meta"):
        model = AutoModelForImageSegmentation.from_config(config)
    freeze(model, recipe.optimizer)
    grouped = sum(p.numel() for group in parameter_groups(model, recipe.optimizer) for p in group["params"])
    assert grouped == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimiser.name=adam", "has no key 'optimiser'; it takes architecture"),
        ("optimizer.lr=1", "optimizer has no key 'lr'; it takes name, learning_rate"),
        ("optimizer.name=sgd", "optimizer.name takes one of adam, adamw, got 'sgd'"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate takes a number, got 'fast'"),
        ("optimizer.rules=[{lr_scale: 1}]", "optimizer.rules.0 lacks 'pattern'"),
        ("optimizer.rules=[{pattern: a, eval_mode: true}]", "eval_mode needs freeze"),
        ("training.batch_size=2.5", "training.batch_size takes a whole number, got 2.5"),
        ("training.batch_size=0", "training.batch_size must be at least 1"),
        ("training.channels_last=1", "training.channels_last takes true or false, got 1"),
        ("training.epochs=null", "either epochs or max_steps"),
        ("schedule={name: step}", "schedule.milestones"),
        ("processor.tokenizer=pretrained", "processor.path"),
        ("architecture.size=3", "architecture cannot be set|'lts', which holds no keys"),
        ("training.seed", "is not an override"),
        ("model=7", "model takes keys, got 7"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(LTS, [override])


def test_emphasis_is_of_kinds_that_are_known():
    recipe = load_recipe(LTS, ["data.emphasis={relation: 2, ordinal: 3.5}"])
    texts = "second cup", "cup above the hat", "red cup"
    assert [weight(recipe.data.emphasis, text) for text in texts] == [3.5, 2, 1]
    assert weight({"relation": 2}, "cup next to the star") == 2 and weight({}, "cup next to the star") == 1
    assert weight({"relation": 2, "proximity": 4}, "cup next to the star") == 4
    for wrong in ("{funny: 2}", "{relation: 0}", "{relation: often}"):
        with pytest.raises(ValueError, match="data.emphasis takes kinds"):
            load_recipe(LTS, [f"data.emphasis={wrong}"])
    with pytest.raises(ValueError, match="it needs max_expressions and no triplets"):
        load_recipe(LTS, ["data.emphasis={relation: 2}", "data.max_expressions=null"])


def test_overrides_reach_nested_values_of_their_type():
    asked = ["optimizer.learning_rate=5e-5", "training.max_steps=7", "model.vision_config.arguments.stem_width=8"]
    recipe = load_recipe(LTS, [*asked, "data.augment=[flip]", "optimizer.rules.0.weight_decay=0.5"])
    assert recipe.optimizer.learning_rate == 5e-5  # YAML 1.1 takes this spelling for text
    assert (recipe.training.max_steps, recipe.training.epochs) == (7, None)
    assert recipe.model["vision_config"]["arguments"]["stem_width"] == 8
    assert load_recipe(LTS, ["training.mixed_precision=no"]).training.mixed_precision == "no"  # false to YAML 1.1
    assert recipe.data.augment == ["flip"] and recipe.optimizer.rules[0].weight_decay == 0.5


# --- schedules and parameter groups


@pytest.mark.parametrize(
    "schedule, expected",  # at steps 0, 10, 50 and 99 of 100, ten to an epoch
    [
        (ScheduleRecipe(name="constant"), [1, 1, 1, 1]),
        (ScheduleRecipe(name="poly", power=0.9), [1, 0.9**0.9, 0.5**0.9, 0.01**0.9]),
        (ScheduleRecipe(name="step", milestones=[1, 5]), [1, 0.1, 0.01, 0.01]),
        (ScheduleRecipe(name="cosine", floor=0.5), [1, 0.98777, 0.75, 0.50012]),
        (ScheduleRecipe(name="poly", power=1, warmup_steps=20), [1 / 21, 11 / 21, 1 - 30 / 80, 1 - 79 / 80]),
    ],
)
def test_schedules(schedule, expected):
    factors = [learning_rate_factor(schedule, step, 100, 10) for step in (0, 10, 50, 99)]
    assert factors == pytest.approx(expected, abs=1e-4)


def test_lavt_trains_and_decays_what_its_paper_does():
    recipe = load_recipe(LAVT)
    with torch.device("meta"):
        model = AutoModelForImageSegmentation.from_config(AutoConfig.for_model("lavt"))
    assert freeze(model, recipe.optimizer) == []  # frozen layers of BERT keep their dropout
    decay = {
        id(p): group["weight_decay"] for group in parameter_groups(model, recipe.optimizer) for p in group["params"]
    }
    of = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    frozen = {name for name, value in of.items() if value is None}
    assert {name.split(".")[0] for name in frozen} == {"text_encoder", "gates"}
    assert sum(p.numel() for n, p in model.named_parameters() if n.startswith("text_encoder") and n not in frozen) == (
        10 * (12 * 768**2 + 13 * 768)  # ten layers: 12 d^2 weights, 9 d biases, 4 d of two norms
    )
    undecayed = {name for name, value in of.items() if value == 0}
    assert all(name.startswith("vision_encoder.") for name in undecayed)
    assert {"vision_encoder.norms.3.weight", "vision_encoder.backbone.patch_embed.norm.bias"} <= undecayed
    assert of["vision_encoder.backbone.layers.0.blocks.0.attn.qkv.bias"] == 0.01
    assert of["decoder.levels.0.norm1.weight"] == 0.01
    assert of["text_encoder.encoder.layer.0.output.LayerNorm.weight"] == 0.01


class _Toy(nn.Module):
    _keys_without_gradient = (r"^unused\.",)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
        self.head, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)


def test_rules_apply_in_order_and_frozen_encoders_can_rest():
    model = _Toy()
    rules = [Rule(pattern="^head", lr_scale=10.0), Rule(pattern="bias$", weight_decay=0.0)]
    recipe = OptimizerRecipe(learning_rate=0.1, weight_decay=0.3, rules=[*rules, Rule(pattern="^encoder", freeze=True)])
    assert freeze(model, recipe) == []
    groups = [(g["lr"], g["weight_decay"], len(g["params"])) for g in parameter_groups(model, recipe)]
    assert groups == [(1.0, 0.3, 1), (1.0, 0.0, 1)]
    recipe.rules[-1].eval_mode = True
    assert model.encoder in freeze(model, recipe) and model.head not in freeze(model, recipe)
    recipe.rules.append(Rule(pattern="backbone", freeze=True))
    with pytest.raises(ValueError, match="no parameter matches 'backbone'"):
        freeze(model, recipe)


# --- the order of data


def test_processes_and_pieces_share_the_same_global_batches():
    whole = [set(batch) for batch in StepBatches(50, 8, seed=3, start=0, stop=13)]
    dealt = [list(StepBatches(50, 8, 3, 0, 13, rank=rank, processes=2, accumulation=2)) for rank in range(2)]
    pieces = [
        set(sum((dealt[rank][2 * step + piece] for rank in range(2) for piece in range(2)), [])) for step in range(13)
    ]
    assert pieces == whole and all(len(batch) == 8 for batch in whole)
    epochs = [whole[first : first + 6] for first in (0, 6)]
    assert all(len(set.union(*epoch)) == 48 for epoch in epochs)  # no row twice in an epoch
    assert [{index for _, index in batch} for batch in epochs[0]] != [{index for _, index in b} for b in epochs[1]]
    assert [set(batch) for batch in StepBatches(50, 8, 3, 9, 13)] == whole[9:]
    with pytest.raises(ValueError, match="must divide it"):
        StepBatches(50, 8, 0, 0, 1, processes=3)
    with pytest.raises(ValueError, match="fewer than a batch"):
        StepBatches(7, 8, 0, 0, 1)


def test_references_are_the_objects_of_images_with_their_expressions():
    scenes = load_refscenes("refscenes", "val", 4, image_size=64)
    references = References(scenes)
    said = [expression["expression_id"] for row in scenes for expression in row["expressions"]]
    seen = [
        expression["expression_id"]
        for row in map(references.__getitem__, range(len(references)))
        for expression in row["expressions"]
    ]
    assert sorted(seen) == sorted(said)
    assert all(len({e["ref_id"] for e in references[i]["expressions"]}) == 1 for i in range(len(references)))
    assert len(references) > len(scenes)
    expressions = Expressions(scenes)
    rows = [row["expressions"] for row in map(expressions.__getitem__, range(len(expressions)))]
    assert all(len(row) == 1 for row in rows) and sorted(row[0]["expression_id"] for row in rows) == sorted(said)


# --- training


def test_run_folder_holds_what_describes_the_run(trained):
    described = json.loads((trained / "run.json").read_text())
    assert described["recipe"]["model"]["fusion_dim"] == 8 and described["recipe"]["training"]["seed"] == 0
    assert torch.__version__.startswith(described["versions"]["torch"])
    assert described["hardware"]["processes"] == 1 and described["result"]["steps"] == 6
    lines = log_of(trained)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"segmentation", "location", "gradient_norm", "images_per_second"} <= lines[0].keys()
    evaluations = [line["evaluation"]["mIoU"] for line in lines if "evaluation" in line]
    assert len(evaluations) == 2 and described["result"]["best_mIoU"] == max(evaluations)
    assert [entry.name for entry in sorted((trained / "checkpoints").iterdir())] == ["step_00000004", "step_00000006"]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="lts"),
        pytest.param(
            [*TINY_LAVT, "training.ema_decay=0.9", "training.accumulation=2", "training.workers=1"],
            marks=pytest.mark.slow,
            id="lavt",
        ),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(trained, tmp_path, extra):
    whole = run(tmp_path / "whole", *extra) if extra else trained
    broken = run(tmp_path / "broken", *extra, "--stop-at-step", "5")
    # as SIGKILL leaves it: steps after the last whole checkpoint, a checkpoint and a log line half written
    (broken / "checkpoints" / "step_00000005").rename(broken / "checkpoints" / "step_00000006.tmp")
    with (broken / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with pytest.raises(SystemExit, match="holds a run already"):
        run(broken, *extra)
    run(broken, *extra, "--resume")
    assert_same_weights(whole, broken)
    assert_same_weights(whole, broken, "best")
    for ours, theirs in zip(log_of(whole), log_of(broken), strict=True):
        assert (ours["step"], ours.get("loss"), ours.get("evaluation")) == (
            theirs["step"],
            theirs.get("loss"),
            theirs.get("evaluation"),
        )


def test_another_seed_is_another_run(trained, tmp_path):
    other = run(tmp_path / "other", "training.seed=1", "--stop-at-step", "1")
    assert log_of(other)[0]["loss"] != log_of(trained)[0]["loss"]


def test_accumulated_pieces_count_every_expression_alike(tmp_path):
    # batch statistics depend on the pieces: keep them fixed, and train what lies behind them
    rules = "optimizer.rules=[{pattern: ., freeze: true, eval_mode: true}, {pattern: localization, freeze: false}]"
    norms = []
    for pieces in (1, 4):
        # all expressions of an image: images have different numbers of them
        folder = run(
            tmp_path / str(pieces),
            rules,
            "data.max_expressions=null",
            f"training.accumulation={pieces}",
            "--stop-at-step",
            "1",
        )
        norms.append((log_of(folder)[0]["gradient_norm"], log_of(folder)[0]["loss"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_frozen_encoder_keeps_weights_and_batch_statistics(trained, tmp_path):
    frozen = "optimizer.rules=[{pattern: ^vision_encoder, freeze: true, eval_mode: true}]"
    run(tmp_path / "tuned", f"initialize.weights={trained / 'last'}", "model={}", frozen, "training.max_steps=2")
    before, after = (load_file(folder / "last" / "model.safetensors") for folder in (trained, tmp_path / "tuned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("vision_encoder.") for name in changed)
    assert any(name.endswith("running_mean") for name in changed)


def test_bf16_trains(tmp_path):
    lines = log_of(run(tmp_path / "bf16", "training.mixed_precision=bf16", "--stop-at-step", "2"))
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_tensorboard_receives_what_the_log_does(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path / "tracked", "tracking.name=tensorboard", "--stop-at-step", "2")
    events = EventAccumulator(str(folder / "tracking" / "hf_ris")).Reload()
    losses = [line["loss"] for line in log_of(folder) if "loss" in line]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("validation/mIoU")] == [2]


def test_a_diverged_run_stops_and_says_so(tmp_path):
    with pytest.raises(SystemExit, match="loss is nan at step|weights are not finite"):
        run(tmp_path / "diverged", "optimizer.learning_rate=1e38", "training.clip_norm=0", "schedule.warmup_steps=0")


# --- evaluation


def scores(*arguments: str) -> dict:
    forget_accelerator()
    asked = ["--split", "val", "--size", "6", "--image-size", "64", "--resamples", "10"]
    return evaluate([*asked, *arguments])


def values(report: dict, protocol: str = "original") -> dict[str, float]:
    return {name: entry["value"] for name, entry in report["protocols"][protocol]["overall"].items()}


def test_results_do_not_depend_on_the_batch_and_can_be_had_from_the_file(trained, tmp_path):
    best, file = str(trained / "best"), tmp_path / "answers.jsonl"
    whole = scores("--model", best, "--output", str(file), "--result", str(tmp_path / "result.json"))
    cut = scores("--model", best, "--batch-size", "4", "--max-expressions", "3")
    expected = sum(len(row["expressions"]) for row in load_refscenes("refscenes", "val", 6, image_size=64))
    assert whole["expressions"] == cut["expressions"] == expected and whole["images"] == 6
    assert values(whole) == pytest.approx(values(cut), abs=1e-3)
    read = evaluate_predictions(file, resamples=10)
    assert read["protocols"] == whole["protocols"] and read["protocols"].keys() == PROTOCOLS.keys()
    assert json.loads((tmp_path / "result.json").read_text())["protocols"] == whole["protocols"]
    compared = scores("--model", best, "--compare", str(file))["comparison"]["overall"]
    assert compared["ties"] == expected and compared["metrics"]["mIoU"]["difference"] == 0


@pytest.mark.parametrize("name", ["lts", "cris", "vatex"])  # squashed, letterboxed, by the short side
def test_a_file_holds_what_every_protocol_needs(name, tiny_trio, tmp_path):
    """The model's own probabilities, cut and resized by each protocol, against the file of its predictions."""
    model, processor = tiny_trio(name)
    rows, lines = load_refscenes("refscenes", "val", 3, image_size=64), []
    evaluator = evaluate_model(
        Accelerator(cpu=True), model, processor, rows, protocols=list(PROTOCOLS), record=lines.append
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = evaluate_predictions(tmp_path / "a.jsonl", resamples=5)
    assert not any("cut at" in note for note in report["notes"])
    for protocol in PROTOCOLS:
        direct = {key: value for key, value in evaluator.compute(protocol).items() if "words" not in key}
        assert values(report, protocol) == pytest.approx(direct, abs=1e-12), protocol


def test_training_and_evaluate_py_agree(trained):
    logged = max((line["evaluation"] for line in log_of(trained) if "evaluation" in line), key=lambda m: m["mIoU"])
    again = values(scores("--model", str(trained / "best"), "--size", "4"))
    assert again == pytest.approx({name: logged[name] for name in again})


def test_protocols_with_a_threshold_of_their_own_cut_the_probability(trained):
    names = ("original", "cris", "lavt480")
    report = scores("--model", str(trained / "best"), "--protocols", *names)
    result = {name: values(report, name) for name in report["protocols"]}
    assert tuple(result) == names
    # a model hardly trained is nowhere sure: everything lies above 0.35, half of it above 0.5
    assert result["cris"]["oIoU"] != result["original"]["oIoU"]
    assert result["lavt480"]["oIoU"] == pytest.approx(result["original"]["oIoU"], abs=0.01)


def test_largest_object_control():
    scenes = load_refscenes("refscenes", "val", 6, image_size=64)
    expected = []
    for row in scenes:
        masks = [decode_mask(entry["mask"]) for entry in row["objects"]]
        largest = max(masks, key=lambda mask: mask.sum())
        for said in row["expressions"]:
            target = np.any([masks[index] for index in said["object_indices"]], axis=0)
            expected.append((largest & target).sum() / (largest | target).sum())
    assert values(scores("--control", "largest_object"))["mIoU"] == pytest.approx(np.mean(expected))


def test_controls_exchange_the_text_and_nothing_else():
    scenes = load_refscenes("refscenes", "val", 6, image_size=64)
    plain = ScoredRows(scenes)
    said_of = {text["text"]: row for row in scenes for text in row["expressions"]}
    others = {control: ScoredRows(scenes, control=f"other_{control}_expression") for control in ("scene", "object")}
    exchanged = 0
    for index in range(len(plain)):
        own = {said["expression_id"]: said for said in plain[index]["expressions"]}
        for control, rows in others.items():
            row = rows[index]
            assert [entry["expression_id"] for entry in row["metadata"]] == [
                e["expression_id"] for e in row["expressions"]
            ]
            for said, entry, target in zip(row["expressions"], row["metadata"], row["targets"]):
                original = own[said["expression_id"]]
                assert entry["text"] == original["text"] and said["object_indices"] == original["object_indices"]
                assert target.any() and said["text"] in said_of
                exchanged += said["text"] != original["text"]
                if control == "scene":
                    elsewhere = [
                        e["text"] for place, other in enumerate(scenes) if place != index for e in other["expressions"]
                    ]
                    assert said["text"] in elsewhere
                if control == "object":
                    giver = next(e for e in scenes[index]["expressions"] if e["text"] == said["text"])
                    assert not set(giver["object_indices"]) & set(original["object_indices"])
        again = ScoredRows(scenes, control="other_scene_expression")[index]
        assert [e["text"] for e in again["expressions"]] == [e["text"] for e in others["scene"][index]["expressions"]]
    assert exchanged > len(said_of)


# --- benchmark


def test_benchmark_counts_image_and_expression_part(trained, tmp_path):
    file = tmp_path / "result.json"
    result = benchmark(
        ["--model", str(trained / "last"), "--expressions", "40", "--repeats", "1", "--cpu", "--result", str(file)]
    )
    model = AutoModelForImageSegmentation.from_pretrained(trained / "last").eval()
    inputs = random_inputs(model.config, 5, torch.device("cpu"), result["words"])
    assert count_flops(model, inputs) == result["flops"]["image"] + 5 * result["flops"]["expression"]
    assert result["flops"]["image"] > 0 and result["multiply_adds"]["image"] * 2 == result["flops"]["image"]
    for part, total in result["flops"].items():
        assert sum(split[part] for split in result["flops_of_parts"].values()) == total
    assert result["flops_of_parts"]["vision_encoder"]["image"] > 0 == result["flops_of_parts"]["segmentation"]["image"]
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert set(result["latency_seconds"]) == {"1", "40", "40 calls"} and min(result["latency_seconds"].values()) > 0
    cutting = result["post_processing_seconds"]
    assert set(cutting) == {"640x480", "4000x3000"} and 0 < cutting["640x480"] < cutting["4000x3000"]
    assert result["peak_memory_bytes"]["40"] > result["peak_memory_bytes"]["1"] > 0
    assert json.loads(file.read_text())["flops"] == result["flops"]


def test_flops_of_lavt_are_those_of_the_published_program():
    """398 GFLOP with a multiply-add as two, 20 words, counted on the published program. BERT's masks need values."""
    parts = flop_parts(AutoConfig.for_model("lavt"), expressions=2, words=20)
    # it pads maps of 30 and 15 cells a side to whole windows of 12 and takes padding through qkv and proj: 8 C^2 a cell
    padding = 18 * 8 * 512**2 * (36**2 - 30**2) + 2 * 8 * 1024**2 * (24**2 - 15**2)
    assert parts["image"] + parts["expression"] + padding == pytest.approx(398e9, rel=0.005)


def test_fused_attention_is_counted():
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    for mask in (None, torch.zeros(5, 7)):
        with FlopCounter() as counter:
            nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 5 * 7 * 8)  # of the scores, and of the sums


def test_live_tensors_counts_storages_until_they_are_freed():
    x = torch.ones(1000)
    with LiveTensors() as tensors:
        y = x + 1  # 4,000 bytes
        z = y.view(10, 100).relu_()  # shares y's storage
        w = torch.cat([z, z])  # 8,000 more
        del y, z, w
        x.add_(1)
        v = x * 2
    assert (tensors.peak, tensors.live) == (12_000, 4_000)
    del v
    assert tensors.live == 0


# --- processes


def command(script: str, *arguments: str, processes: int = 1) -> list[str]:
    launch = [sys.executable]
    if processes > 1:
        configuration = ROOT / "train" / "accelerate" / "cpu_two.yaml"
        launch += ["-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    return [*launch, str(ROOT / "train" / script), *arguments]


def start(*arguments, **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*arguments, **options), env=environment, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(trained, tmp_path):
    folder, result = tmp_path / "two", tmp_path / "result.json"
    fixed = [  # batch statistics, as each process has its own; three images to evaluate, which two do not divide
        "optimizer.rules=[{pattern: ., freeze: true, eval_mode: true}, {pattern: localization, freeze: false}]",
        "data.validation_size=3",
        "evaluation.batch_size=1",
    ]
    assert start("train.py", "--recipe", str(LTS), *TINY, *fixed, f"output_dir={folder}", processes=2).wait() == 0
    assert json.loads((folder / "run.json").read_text())["hardware"]["processes"] == 2
    one = run(tmp_path / "one", *fixed)
    for ours, theirs in zip(log_of(one), log_of(folder), strict=True):
        for name in {"loss", "gradient_norm", "segmentation"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    asked = ["--model", str(trained / "best"), "--split", "val", "--size", "7", "--image-size", "64"]
    arguments = [*asked, "--result", str(result), "--output", str(tmp_path / "two.jsonl")]
    assert start("evaluate.py", *arguments, processes=2).wait() == 0
    two = json.loads(result.read_text())
    assert two["hardware"]["processes"] == 2
    forget_accelerator()
    alone = evaluate([*asked, "--output", str(tmp_path / "one.jsonl")])
    assert two["expressions"] == alone["expressions"]
    assert values(two) == pytest.approx(values(alone), abs=1e-3)
    ids = [[json.loads(line)["expression_id"] for line in (tmp_path / f"{n}.jsonl").open()] for n in ("one", "two")]
    assert ids[0] == ids[1] and len(ids[0]) == two["expressions"]
