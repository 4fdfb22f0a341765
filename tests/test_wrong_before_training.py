"""What is wrong with a recipe, a launch or a data set shows before a training starts, or names the file."""

import io

import pytest
from datasets import Dataset
from PIL import Image
from test_train import LTS, run
from torch.utils.data import DataLoader

from hf_ris.data import FEATURES, EvaluationRows, TrainingRows
from hf_ris.data.collator import batches_of
from hf_ris.environment import check_launch
from hf_ris.training.loop import build_accelerator
from hf_ris.training.recipe import load_recipe


@pytest.mark.parametrize(
    "override, message",
    [
        ("architecture=lst", "There is no architecture 'lst'; there are .*lts"),
        ("optimizer.learning_rate=-1e-3", "optimizer.learning_rate must be above 0, got -0.001"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate takes a number, got nan"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate takes a number, got inf"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be at least 0"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas must be at least 0 and below 1"),
        ("optimizer.rules=[{pattern: a, lr_scale: -1}]", "optimizer.rules.0.lr_scale must be at least 0, got -1.0"),
        ("optimizer.rules=[{pattern: '('}]", "optimizer.rules.0.pattern is no regular expression"),
        ("optimizer.rules.x.pattern=a", "'x' is no place in a list of 1"),
        ("optimizer.rules.7.pattern=a", "'7' is no place in a list of 1"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps must be at least 0"),
        ("schedule={name: step, fractions: [1.5]}", "schedule.fractions must be from 0 to 1"),
        ("schedule={name: step, milestones: [-1]}", "schedule.milestones must be at least 0"),
        ("schedule.gamma=0", "schedule.gamma must be above 0"),
        ("training.ema_decay=2", "training.ema_decay must be at least 0 and below 1, got 2.0"),
        ("training.ema_decay=1", "training.ema_decay must be"),
        ("training.clip_norm=-1", "training.clip_norm must be at least 0"),
        ("training.max_steps=0", "training.max_steps must be at least 1"),
        ("training.max_steps=1" + "0" * 30, "training.max_steps takes a whole number"),
        ("training.epochs=-1", "training.epochs must be above 0"),
        ("training.seed=-1", "training.seed must be at least 0 and below 2.32"),
        ("training.workers=-1", "training.workers must be at least 0"),
        ("training.evaluate_every=-5", "training.evaluate_every must be at least 0"),
        ("training.accumulation=3", "training.batch_size must be a multiple of training.accumulation, got 16 and 3"),
        ("evaluation.protocol=coco", "evaluation.protocol takes one of original, .* got 'coco'"),
        ("evaluation.batch_size=0", "evaluation.batch_size must be at least 1"),
        ("evaluation.max_expressions=0", "evaluation.max_expressions must be at least 1"),
        ("data.size=-3", "data.size must be at least 1"),
        ("data.max_expressions=0", "data.max_expressions must be at least 1"),
        ("processor.threshold=1.5", "processor.threshold must be at least 0 and below 1"),
        ("processor.min_count=0", "processor.min_count must be at least 1"),
        ("model={1: 2}", "model takes keys, got .1: 2."),
        ("training.seed=[1", "The value in 'training.seed=.1' is not YAML"),
        ("training.seed=" + "[" * 30 + "]" * 30, "nests, or repeats itself, beyond any measure"),
        ("training.seed=" + "[" * 20_000, "is not YAML"),
        ("optimizer.learning_rate=1" + "0" * 400, "optimizer.learning_rate takes a number"),
    ],
)
def test_values_that_cannot_be_are_named(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(LTS, [override])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"a: [" * 5000,
        b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (k, k, b", ".join([b"*%c" % (k - 1)] * 10)) for k in range(98, 115)),
        b"a: &a [*a]",
        b"x" * 2_000_000,
        b"- 1",
        b"a: 2026-99-99",
    ],
    ids=["no text", "deep", "aliases", "cycle", "large", "list", "date"],
)
def test_files_that_are_no_recipes_are_named(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="a.yaml is (not YAML|no recipe|not a recipe)|no key 'a'"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["training.batch_size=64"], "The training split has 12 rows, fewer than a batch of 64"),
        (["training.epochs=0.01"], "are no step at all"),
        (["model.fusion_dims=8"], "fusion_dims"),
        (["tracking.name=trackio"], "tracking.name is trackio, which is not installed"),
    ],
)
def test_what_the_data_decides_shows_before_a_run_has_a_folder(tmp_path, monkeypatch, overrides, message):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run/run.json").exists()


# accelerate's environment


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed precision fp16 .* asked to run in bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 accumulation steps .* training.accumulation is 1"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed, which is not supported: launch with DDP or FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM, which is not supported"),
        ("ACCELERATE_USE_FSDP", "true", "set up for FSDP, but shards only where"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "cannot hand over buffers"),
    ],
)
def test_a_launch_that_contradicts_the_recipe_is_refused(monkeypatch, tmp_path, name, value, message):
    monkeypatch.setenv(name, value)
    if name.startswith("FSDP_"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=message):
        build_accelerator(load_recipe(LTS), tmp_path)


def test_a_launch_that_says_the_same_is_not(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate says when nothing was asked
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    check_launch("bf16", 2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch("bf16", 2)
    check_launch("bf16")
    with pytest.raises(ValueError, match="1"):
        check_launch("bf16", 1)


# pictures


def rows_with(data: bytes) -> Dataset:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    rows = [
        {
            "image": {"bytes": content, "path": name},
            "image_id": number,
            "file_name": name,
            "height": 8,
            "width": 8,
            "objects": [],
            "expressions": [{"expression_id": number, "ref_id": number, "text": "a cup", "object_indices": []}],
        }
        for number, (name, content) in enumerate([("good.png", picture.getvalue()), ("bad.jpg", data)])
    ]
    return Dataset.from_list(rows, features=FEATURES)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(9)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded_is_named(data, workers):
    if workers and data:
        return  # one start of a worker shows it
    for rows, keys in ((TrainingRows(rows_with(data)), [(0, 0), (0, 1)]), (EvaluationRows(rows_with(data)), [0, 1])):
        with pytest.raises(ValueError) as caught:
            list(DataLoader(rows, sampler=keys, batch_size=None, num_workers=workers, collate_fn=lambda row: 0))
        assert str(caught.value).startswith("The picture of row 1 (bad.jpg) cannot be decoded: ")
        assert "Traceback" not in str(caught.value)


def refuse(rows: list) -> None:
    raise ValueError("The mask: is of no kind that is read.")


def test_a_workers_error_is_told_as_its_sentence():
    for workers in (0, 1):
        with pytest.raises(ValueError) as caught:
            list(batches_of(DataLoader([1], collate_fn=refuse, num_workers=workers)))
        assert str(caught.value) == "The mask: is of no kind that is read."
    assert list(batches_of(DataLoader([1, 2], collate_fn=list, batch_size=1))) == [[1], [2]]
