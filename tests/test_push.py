"""What train/push.py sends, and the card it writes."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import HubServer
from huggingface_hub import ModelCard

import hf_ris
from hf_ris.commands.push import main
from hf_ris.hub import push
from hf_ris.hub.bundle import measured, pretraining_log, results
from hf_ris.hub.card import UNTRAINED, model_card, pretraining_seconds


BUNDLE = ROOT / "space" / "checkpoints" / "lavt-refscenes"


def bundle_parts() -> tuple[dict, dict, list]:
    """Facts, recipe and log of a bundle, as if it had been one run from scratch that did not tell what it read."""
    facts, recipe = (json.loads((BUNDLE / name).read_text()) for name in ("results.json", "recipe.json"))
    facts.pop("read", None)
    recipe["initialize"]["weights"] = "scratch"
    return facts, recipe, [json.loads(line) for line in (BUNDLE / "log.jsonl").read_text().splitlines()]


def section(card: ModelCard, name: str) -> str:
    return card.text.split(f"## {name}\n")[1].split("\n## ")[0]


def test_a_card_holds_the_runs_numbers():
    facts, recipe, log = bundle_parts()
    card = ModelCard(model_card("user/mine", facts, recipe, log))
    wanted = {
        (split, name): round(100 * value, 2)
        for split in ("test", "test_compositional")
        for name, value in facts["results"][split]["protocols"]["original"].items()
        if "(" not in name
    }
    results = [result for result in card.data.eval_results if result.dataset_split != "val"]
    assert card.data.model_name == "mine"
    assert {(result.dataset_split, result.metric_type): result.metric_value for result in results} == wanted
    assert {result.dataset_name for result in results} == {"refscenes"}
    assert all(result.metric_args == {"protocol": "original"} for result in results)
    best = max((line for line in log if "evaluation" in line), key=lambda line: line["evaluation"]["mIoU"])
    chosen = [result for result in card.data.eval_results if result.dataset_split == "val"]
    assert {result.metric_type: result.metric_value for result in chosen}["mIoU"] == round(
        100 * best["evaluation"]["mIoU"], 2
    )
    images = recipe["data"]["validation_size"]
    assert chosen[0].dataset_args == {"images": images}
    of_test = facts["results"]["test"]
    row = [f"{of_test['expressions']:,}"]
    row += [f"{100 * of_test['protocols']['original'][name]:.2f}" for name in ("oIoU", "mIoU")]
    told = section(card, "Measured")
    assert f"| refscenes, test | original | {' | '.join(row)} |" in told
    assert "given the expression of another scene" in told
    assert f"best by mIoU, at step {best['step']:,}, on {images} images of `val`" in told
    assert "space/checkpoints" not in card.text and "REPO_ID" not in card.text  # nothing of the bundled one's text
    training = section(card, "Training")
    for said in (
        f"{facts['steps']:,} steps in {facts['training_seconds'] / 60:.0f} minutes, seed {facts['seed']}",
        "AMD EPYC",
        facts["revision"],
        f"{facts['parameters']:,}",
        f"{pretraining_seconds(facts) / 60:.0f} minutes of pretraining",
        "torch",
    ):
        assert said in training, said
    assert f"learning_rate: {recipe['optimizer']['learning_rate']}" in training
    assert "knows nothing of photographs" in section(card, "Limits")
    assert "random start: Apache-2.0" in section(card, "Licence") and "arxiv.org/abs/2112.02244" in card.text
    assert 'model="user/mine"' in section(card, "Use")
    assert str(ModelCard(str(card))) == str(card)


def test_the_card_of_a_video_model_tells_of_videos(tmp_path):
    """J&F chooses the model, and what was measured keeps its videos and controls."""
    facts, recipe, _ = bundle_parts()
    recipe["data"] |= {"name": "refscenes_video", "validation_size": 30}
    recipe["evaluation"]["protocol"] = "youtube_vos"
    log = [{"step": step, "evaluation": {"J&F": jf, "J": jf + 0.1, "F": jf - 0.1}} for step, jf in ((1, 0.7), (2, 0.6))]
    files = []
    for control, jf in ((None, 0.71), ("shuffled_frames", 0.25)):
        overall = {name: {"value": jf, "low": None, "high": None} for name in ("J&F", "J", "F")}
        slices = {"motion": {"with": {"expressions": 6, "metrics": overall}}}
        told = {"data": "refscenes_video", "split": "test", "control": control, "expressions": 9, "videos": 2}
        told |= {"revision": "r", "hardware": {}, "protocols": {"youtube_vos": {"overall": overall, "slices": slices}}}
        files.append(tmp_path / f"{control}.json")
        files[-1].write_text(json.dumps(told))
    found = measured(files)
    assert found["test"]["videos"] == 2 and found["test"]["slices"]["motion"]["with"] == {"expressions": 6, "J&F": 0.71}
    facts |= {"architecture": "vatex_video", "results": found, "trained_on": ["refscenes_video"]}
    card = ModelCard(model_card("user/mine", facts, recipe, log))
    told = section(card, "Measured")
    assert "| refscenes_video, test | youtube_vos | 9 | 71.00 | 71.00 | 71.00 |" in told
    assert "| refscenes_video, test: the frames in a random order | youtube_vos | 9 | 25.00" in told
    assert "best by J&F, at step 1, on 30 videos of `val` (protocol youtube_vos): J&F 70.00" in told
    assert {result.task_name for result in card.data.eval_results} == {"Referring video segmentation"}
    assert "knows nothing of photographs" in section(card, "Limits")


@pytest.mark.parametrize("validated", [True, False])
def test_a_card_without_a_number_says_so(validated):
    facts, recipe, log = bundle_parts()
    log = [line for line in log if validated or "evaluation" not in line]
    recipe["data"]["name"], facts["trained_on"] = "user/refcoco", ["user/refcoco"]
    recipe["initialize"]["weights"] = "encoders"
    card = ModelCard(model_card("user/mine", facts | {"results": {}, "pretraining": []}, recipe, log))
    told = section(card, "Measured")
    assert ("On no test split has it been measured." in told) is validated
    assert ("Nothing has been measured of this model." in told) is not validated
    assert card.data.datasets == ["user/refcoco"]
    assert bool(card.data.eval_results) is validated and ("model-index" in card.content) is validated
    assert "photographs" not in section(card, "Limits") and "keep their authors' licence" in section(card, "Licence")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "model_cards").glob("*.md")))
def test_every_card_can_be_rendered(name):
    facts, recipe, log = bundle_parts()
    template = ModelCard.load(ROOT / "model_cards" / f"{name}.md")
    card = ModelCard(model_card("user/mine", facts | {"architecture": name}, recipe, log))
    assert {*template.data.tags, name} == set(card.data.tags) and card.data.license == template.data.license
    for kept in ("Use", "Deviations", "Limits"):
        assert section(template, kept).replace("REPO_ID", "user/mine").strip() in card.text
    if name not in hf_ris.VIDEO_ARCHITECTURES:  # whose card has no line of ours in the paper's table
        assert template.text.count(UNTRAINED) == 1 and '| ours | see "Measured" |' in card.text
    assert UNTRAINED not in card.text
    assert card.text.count("\n## Measured\n") == 1 and card.text.count("| refscenes, test |") == 1


def test_a_card_tells_what_was_read_and_not_the_recipes_limit():
    facts, recipe, log = bundle_parts()
    read = {"training": {"images": 24, "expressions": 70}, "validation": {"images": 5, "expressions": 9}}
    changes = [{"step": 40, "key": "optimizer.learning_rate", "before": 0.1, "after": 0.2}]
    card = ModelCard(model_card("user/mine", facts | {"read": read, "changes": changes}, recipe, log))
    assert (
        "`train`, 24 images" in card.text and "on 5 images of `val`" in card.text and "30,000 images" not in card.text
    )
    assert "- From step 40 on `optimizer.learning_rate` was 0.2, before 0.1" in card.text
    chosen = [result for result in card.data.eval_results if result.dataset_split == "val"]
    assert chosen[0].dataset_args == {"images": 5}
    recipe["data"]["name"] = "user/refcoco"  # an older run of other data: the limit says nothing
    card = ModelCard(model_card("user/mine", facts, recipe, log))
    assert "how many images was not recorded" in card.text and "30,000 images" not in card.text


@pytest.mark.parametrize(
    "weights, bases, licence",
    [
        ("scratch", None, "apache-2.0"),
        ("encoders", ["timm/swin_base.ms_in22k", "bert-base-uncased"], "other"),
        ("someone/lavt", ["someone/lavt"], "other"),
        ("outputs/first/best", None, "other"),
    ],
)
def test_a_card_tells_what_the_training_started_from(weights, bases, licence):
    facts, recipe, log = bundle_parts()
    recipe["initialize"]["weights"] = weights
    told = {
        "threshold": 0.4,
        "config": {"image_size": 128},
        "encoders": ["timm/swin_base.ms_in22k", "bert-base-uncased"],
    }
    card = ModelCard(model_card("user/mine", facts | {"pretraining": []}, recipe, log, told))
    assert (card.data.base_model, card.data.license) == (bases, licence)
    own = section(card, "This model")
    assert f"{facts['parameters']:,} parameters" in own and "above 0.4" in own and "`image_size: 128`" in own
    assert card.text.index("## This model") < card.text.index("## Use")


@pytest.mark.parametrize("first, licence", [("scratch", "apache-2.0"), ("someone/lavt", "other")])
def test_runs_that_followed_on_one_another_have_the_licence_of_the_first(first, licence):
    facts, recipe, log = bundle_parts()
    chain = [
        {"folder": "one", "architecture": "lavt", "steps": 10, "seconds": 5, "recipe": copy.deepcopy(recipe)}
        for _ in range(3)
    ]
    for run, weights in zip([*chain, {"recipe": recipe}], (first, *["outputs/one/best"] * 3)):
        run["recipe"]["initialize"]["weights"] = weights
    card = ModelCard(model_card("user/mine", facts | {"pretraining": chain}, recipe, log))
    assert card.data.license == licence and ("random start" in section(card, "Licence")) is (first == "scratch")


def test_a_cut_log_can_be_pushed(tmp_path):
    source = tmp_path / "bundle"
    shutil.copytree(BUNDLE, source)
    with (source / "log.jsonl").open("a") as file:
        file.write('{"step": 17000, "lo')
    out = tmp_path / "repository"
    push.write_repository(source, out, "user/lavt", [], [])
    assert (out / "log.jsonl").read_text() == (BUNDLE / "log.jsonl").read_text()
    card = ModelCard.load(out / "README.md")
    assert "`image_size: 128`" in section(card, "This model") and card.data.base_model is None


PUSH = f"""
import json, sys
from pathlib import Path
import huggingface_hub
from train import push, train

sys.argv = ["push.py"]
recipe = "{ROOT}/train/recipes/lts/refscenes.yaml"
short = ["training.max_steps=2", "training.batch_size=2", "data.size=8", "data.validation_size=4", "output_dir=run"]
train.main(["--recipe", recipe, *short, "--push-to-hub", "someone/run"])
push.main(["{BUNDLE}", "someone/bundle", "--private"])
said = []

def fails(call, *arguments):
    try:
        call(*arguments)
    except SystemExit as stop:
        said.append(str(stop))

fails(push.main, ["{BUNDLE}", "taken/bundle"])
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
fails(push.main, ["{BUNDLE}", "someone/bundle"])
fails(train.main, ["--recipe", recipe, "output_dir=never", "--push-to-hub", "someone/run"])
said.append(Path("never").exists())
print(json.dumps(said))
"""


@pytest.mark.slow
def test_runs_and_bundles_are_pushed(tmp_path):
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PUSH], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.commits == ["someone/run", "someone/bundle"] and hub.private == {"someone/bundle"}
    for name, architecture in (("run", "lts"), ("bundle", "lavt")):
        files = hub.files[f"someone/{name}"]
        for wanted in (
            "model.safetensors",
            "config.json",
            "processor_config.json",
            "tokenizer.json",
            "pipeline_ris.py",
        ):
            assert wanted in files
        assert {f"modeling_{architecture}.py", "recipe.json", "results.json", "log.jsonl"} <= files.keys()
        card = ModelCard(files["README.md"].decode())
        assert card.data.eval_results and f'model="someone/{name}"' in card.text
        assert json.loads(files["recipe.json"])["output_dir"] is None
    assert files["model.safetensors"] == (BUNDLE / "model.safetensors").read_bytes()
    assert "pretraining_log.jsonl" in files
    refused, unreachable, untrained, exists = json.loads(done.stdout.splitlines()[-1])
    assert refused.startswith("hf-ris push: taken/bundle was not pushed to http://127.0.0.1") and "403" in refused
    assert "someone/bundle was not pushed to http://127.0.0.1:9: " in unreachable and "\n" not in unreachable
    assert "did not make someone/run" in untrained and untrained.endswith("Nothing was trained.") and not exists


def test_a_bundle_takes_further_evaluations(tmp_path):
    facts, _, _ = bundle_parts()
    measured_one = facts["results"]["test"]
    overall = {name: {"value": value} for name, value in measured_one["protocols"]["original"].items()}
    part = {"expressions": 3, "metrics": {"mIoU": {"value": 0.5}}}
    protocols = {"original": {"overall": overall, "slices": {"negation": {"with": part}}}}
    further = {**measured_one, "data": "data/refcoco", "split": "testA", "control": None, "protocols": protocols}
    path = tmp_path / "testA.json"
    path.write_text(json.dumps(further))
    _, read, recipe = push.read(BUNDLE, [path], None)
    assert read["results"]["testA"]["data"] == "data/refcoco" and recipe["output_dir"] is None
    assert read["results"]["test"] == measured_one
    assert read["results"]["testA"]["protocols"] == measured_one["protocols"]
    assert read["results"]["testA"]["slices"] == {"negation": {"with": {"expressions": 3, "mIoU": 0.5}}}
    with pytest.raises(ValueError, match="second evaluation of testA"):
        measured([path, path])
    path.write_text("{}")
    with pytest.raises(ValueError, match="testA.json is not what `hf-ris evaluate` writes"):
        measured([path])


def test_an_earlier_run_is_told_as_pretraining(tmp_path):
    """With its recipe, and with what it started from before it."""
    told, recipe, _ = bundle_parts()
    for name, step in (("first", 40), ("second", 60)):
        (tmp_path / name).mkdir()
        facts = {key: told[key] for key in ("revision", "versions", "hardware", "parameters")}
        (tmp_path / name / "run.json").write_text(json.dumps({"recipe": recipe, **facts}))
        (tmp_path / name / "log.jsonl").write_text(
            json.dumps({"step": step, "loss": 0.5, "seconds": 3.0 * step}) + "\n"
        )
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "pretraining.json").write_text('{"steps": 7, "seconds": 30}')
    (tmp_path / "encoders" / "log.jsonl").write_text('{"step": 7}\n')
    before = [tmp_path / "encoders", tmp_path / "first"]
    facts = results(tmp_path / "second", [], before)
    assert (facts["steps"], facts["training_seconds"]) == (60, 180)
    encoders, first = facts["pretraining"]
    assert encoders == {"folder": "encoders", "steps": 7, "seconds": 30}
    assert (first["folder"], first["steps"], first["seconds"], first["recipe"]) == ("first", 40, 120, recipe)
    card = model_card("user/mine", facts, recipe | {"initialize": {"weights": "outputs/first/best"}}, [])
    assert "- Before: 2 minutes of pretraining" in card  # 150 s
    assert "random start: Apache-2.0" in card  # as the first run's recipe says
    lines = [json.loads(line) for line in pretraining_log(before).splitlines()]
    assert [(line["folder"], line["step"]) for line in lines] == [("encoders", 7), ("first", 40)]
    bundled = tmp_path / "bundled"  # the first as a bundle tells the same, and what was before it
    bundled.mkdir()
    kept = results(tmp_path / "first", [], before[:1])
    (bundled / "results.json").write_text(json.dumps(kept))
    (bundled / "recipe.json").write_text(json.dumps(recipe))
    shutil.copy(tmp_path / "first" / "log.jsonl", bundled)
    (bundled / "pretraining_log.jsonl").write_text(pretraining_log(before[:1]))
    encoders, again = results(tmp_path / "second", [], [bundled])["pretraining"]
    assert encoders["folder"] == "encoders" and (again["recipe"], again["seconds"]) == (recipe, first["seconds"])
    assert pretraining_log([bundled]) == pretraining_log(before).replace('"first"', '"bundled"')
    with pytest.raises(ValueError, match="--pretraining: .* is of neither"):
        results(tmp_path / "second", [], [tmp_path])


def test_what_cannot_be_pushed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(BUNDLE, unfinished)
    (unfinished / "config.json").unlink()
    for source, name, sentence in (
        (tmp_path / "none", "user/x", ": There is no folder .*none"),
        (tmp_path, "user/x", "is neither a training run .* nor a bundle"),
        (unfinished, "user/x", "There is no model in .*unfinished"),
        (BUNDLE, "user/x/y", "Repo id must be in the form"),
        (BUNDLE, "user/a b", "Repo id must use alphanumeric"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main([str(source), name])
    monkeypatch.setattr(push, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="Nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN"):
        main([str(BUNDLE), "user/x"])


def test_the_repository_can_be_looked_at_first(tmp_path):
    out = tmp_path / "repository"
    main([str(BUNDLE), "user/lavt", "--out", str(out)])
    assert ModelCard.load(out / "README.md").data.model_name == "lavt"
    assert (out / "modeling_lavt.py").exists() and Path(out / "model.safetensors").stat().st_size > 1e6
