"""From a folder to a model, by the documented commands alone: fine-tuning, what the run shows, pushing, loading."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, forget_accelerator
from hub_server import HubServer
from PIL import Image, ImageChops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoProcessor

from hf_ris.__main__ import main
from hf_ris.commands.train import main as train
from hf_ris.data import load, write_example_folder
from hf_ris.training.build import build_rows, extend_vocabulary, set_apart
from hf_ris.training.recipe import DataRecipe, load_recipe


DOCUMENT = ROOT / "docs" / "own-data.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
# what makes the documented runs cost next to nothing
SHORT = ["training.max_steps=4", "training.evaluate_every=2", "training.batch_size=4", "evaluation.pictures=3"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example_folder(tmp_path_factory.mktemp("own") / "my_data")


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory, tiny_trio):
    folder = tmp_path_factory.mktemp("clipseg")
    for part in tiny_trio("clipseg_ris"):
        part.save_pretrained(folder)
    return folder


def evaluations(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["evaluation"]["mIoU"] for line in lines if "evaluation" in line}


def test_photos_are_set_apart_whole_and_the_same_in_every_run(example):
    rows = load(example)
    rest, share = set_apart(rows, 0.1)
    assert len(share) == 3 and len(rest) == 27
    assert not set(rest["file_name"]) & set(share["file_name"])
    assert set(set_apart(rows.select(range(29, -1, -1)), 0.1)[1]["file_name"]) == set(share["file_name"])
    assert len(set_apart(rows.select([0, 1]), 0.99)[0]) == 1
    with pytest.raises(ValueError, match="1 photo cannot be parted"):
        set_apart(rows.select([0]), 0.5)
    training, _, validation = build_rows(DataRecipe(name=str(example), validation_fraction=0.2, validation_size=2), 0)
    assert len(training) == 24 and len(validation) == 2


def test_recipes_of_fine_tuning_say_what_they_lack():
    with pytest.raises(ValueError, match="starts from a whole checkpoint: give its folder or Hub id"):
        load_recipe("finetune")
    assert load_recipe("finetune", ["initialize.weights=x"]).architecture == "any"
    with pytest.raises(ValueError, match="data.validation_fraction must be at least 0 and below 1, got 1.5"):
        load_recipe("clipseg/finetune", ["data.validation_fraction=1.5"])
    with pytest.raises(ValueError, match="extend_vocabulary is for a whole checkpoint"):
        load_recipe("clipseg/finetune", ["initialize.extend_vocabulary=unknown"])


def test_the_documented_commands_work(example, clipseg, tmp_path, monkeypatch, capsys):
    """Every command of the page but those that need public weights, on the example folder and a tiny CLIPSeg."""
    monkeypatch.chdir(tmp_path)
    os.symlink(example, tmp_path / "my_data", target_is_directory=True)
    Image.open(example / "images/000.jpg").save("photo.jpg")
    ran = []
    for words in COMMANDS:
        assert words[0] == "hf-ris", words
        verb, arguments = words[1], words[1:]
        if "florence-2" in words or verb in ("adopt", "push"):  # public weights, files and a Hub of one's own
            continue
        forget_accelerator()
        if "clipseg/finetune" in words:
            arguments = [*arguments, f"initialize.weights={clipseg}", *SHORT, "tracking.name=tensorboard"]
        elif verb == "train":
            arguments = [*arguments, *SHORT]
        main(arguments)
        ran.append(verb)
    assert ran == ["describe", "train", "train", "evaluate", "draw", "draw", "draw"]
    assert "the same unknown" not in capsys.readouterr().err
    for folder in (Path("outputs/mine"), Path("outputs/more")):
        names = {path.name for path in (folder / "figures").iterdir()}
        steps = {f"step_{step:08d}.png" for step in (0, 2, 4)}
        assert names == steps | {"curves.png", "worst.png", "best.png", "answers.html"}
        assert set(evaluations(folder)) == {0, 2, 4}
    page = Path("outputs/mine/figures/answers.html").read_text()
    assert page.count("<section>") == 6 and "worst: " in page and "best: " in page
    assert Image.open("outputs/mine/figures/step_00000004.png").width == 4 * (200 + 14) + 14
    assert Path("worst.html").exists() and Path("mine.png").exists() and Path("sheet.png").exists()
    assert Image.open("beside_the_truth.png").width == 2 * Image.open("mine.png").width - 14  # truth and agreement too
    told = EventAccumulator(str(next(Path("outputs/mine/tracking").rglob("*tfevents*")).parent)).Reload()
    pictures = {event.step: event.encoded_image_string for event in told.Images("validation/answers")}
    assert_pictures({step: io.BytesIO(content) for step, content in pictures.items()}, Path("outputs/mine"))


def assert_pictures(told: dict, folder: Path) -> None:
    """What a tracker was told, by step, is what the run's own folder shows."""
    assert told.keys() == {0, 2, 4}
    for step, file in told.items():
        own = Image.open(folder / "figures" / f"step_{step:08d}.png")
        assert ImageChops.difference(Image.open(file).convert("RGB"), own).getbbox() is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trackio_gets_the_pictures(example, clipseg, tmp_path):
    """In a process of its own, since trackio chooses its folder when it is imported."""
    words = ["train", "clipseg/finetune", f"initialize.weights={clipseg}", f"data.name={example}", *SHORT]
    words += [f"output_dir={tmp_path / 'run'}", "tracking.name=trackio", "tracking.project=mine"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-m", "hf_ris", *words], env=environment, check=True)
    pictures = list((tmp_path / "trackio" / "media").rglob("*.png"))
    assert_pictures({int(path.parent.name): path for path in pictures}, tmp_path / "run")


@pytest.mark.filterwarnings("error:.*not in the vocabulary")  # once is enough: the processor need not warn of them
def test_words_are_told_and_can_be_added(tmp_path, capsys):
    folder = write_example_folder(tmp_path / "crimson")
    said = (folder / "train.jsonl").read_text().replace("the red ball", "the crimson ball")
    (folder / "train.jsonl").write_text(said)
    of = [
        f"initialize.weights={ROOT / 'space/checkpoints/lts-refscenes'}",
        f"data.name={folder}",
        "training.batch_size=2",
    ]
    of += ["training.max_steps=1", "evaluation.at_start=false", "evaluation.pictures=0"]
    forget_accelerator()
    train(["finetune", *of, f"output_dir={tmp_path / 'told'}"])
    told = capsys.readouterr().out
    assert re.search(
        "training: .* are not in the vocabulary, such as .*'crimson'.*; initialize.extend_vocabulary=unknown adds them",
        told,
    )
    assert told.count("not in the vocabulary") == 2 == told.count("training: ") + told.count("validation: ")
    forget_accelerator()
    train(["finetune", *of, f"output_dir={tmp_path / 'added'}", "initialize.extend_vocabulary=unknown"])
    assert "2 words of the data are added to the vocabulary" in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(tmp_path / "added/best")
    assert not processor.unknown_words(["the crimson ball"]).unknown


def test_words_get_tokens_of_their_own(tiny_trio):
    """In word tables (LTS), BERT (LAVT) and CLIP (SegVLM, CLIPSeg); known words are read and answered as before."""
    texts = ["a tar star, left of a qux", "a tar"]
    for name in ("lts", "lavt", "segvlm", "clipseg_ris"):
        model, processor = tiny_trio(name, fresh=True)
        inputs, rows = processor(Image.new("RGB", (64, 64), "red"), "the star"), len(processor.tokenizer)
        with torch.no_grad():
            before = model(**inputs).logits
        unknown = ["tar", "qux"] if name == "lts" else []  # the others spell them
        assert extend_vocabulary(model, processor, texts) == unknown
        assert extend_vocabulary(model, processor, texts, spelled=True) == ([] if unknown else ["tar", "qux"])
        assert processor(Image.new("RGB", (64, 64)), "the star")["input_ids"].tolist() == inputs["input_ids"].tolist()
        (ids,) = processor.tokenizer(["tar star qux"], add_special_tokens=False)["input_ids"]
        assert (ids[0], ids[2]) == (rows, rows + 1) and ids[1] < rows and len(ids) == 3
        table = model.get_input_embeddings().weight.detach()
        assert len(table) == rows + 2 == model.word_config.vocab_size
        lengths, usual = table[rows:].norm(dim=1), table[2:rows].norm(dim=1).mean()
        assert (lengths > 0.5 * usual).all() and (lengths < 2 * usual).all()
        assert (table[rows] - table[rows + 1]).norm() > 0.5 * usual  # told apart even by a frozen encoder
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, before, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["clipseg", "bundle"])
def test_a_fine_tuning_learns_and_is_pushed_and_loaded_without_this_package(way, example, clipseg, tmp_path):
    output = tmp_path / "run"
    steps = ["training.evaluate_every=20", f"data.name={example}", f"output_dir={output}"]
    forget_accelerator()
    if way == "clipseg":
        own = [f"initialize.weights={clipseg}", "training.max_steps=40", "optimizer.learning_rate=3e-3"]
        train(["clipseg/finetune", *own, *steps])
    else:
        folder = ROOT / "space" / "checkpoints" / "lts-refscenes"
        train(["finetune", f"initialize.weights={folder}", "training.max_steps=40", *steps])
    scores = evaluations(output)
    assert max(scores.values()) >= scores[0] + 0.2, scores
    with HubServer() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_TOKEN": "hf_token", "HF_HOME": str(tmp_path / "home")}
        push = [sys.executable, "-m", "hf_ris", "push", str(output), "someone/mine"]
        subprocess.run(push, env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True)
        load_it = (
            "import sys; sys.modules['hf_ris'] = None\n"
            "from transformers import pipeline\n"
            "pipe = pipeline('referring-image-segmentation', model='someone/mine', trust_remote_code=True)\n"
            f"answer = pipe({str(example / 'images/000.jpg')!r}, ['the red ball'])\n"
            "assert answer[0]['mask'].size == (160, 120)\n"
        )
        subprocess.run([sys.executable, "-c", load_it], env=environment | {"PYTHONPATH": ""}, cwd=tmp_path, check=True)


def test_the_notebook_runs(example, clipseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget_accelerator()
    notebook = json.loads((ROOT / "docs" / "own-data.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('WEIGHTS = "encoders"', f"WEIGHTS = {str(clipseg)!r}")
            code = code.replace('"output_dir=outputs/mine"]', f'"output_dir=outputs/mine", *{SHORT!r}]')
            exec(compile(code, "own-data.ipynb", "exec"), names)
            assert not cell["outputs"]
    assert len(names["answer"]) == 2 and names["answer"][0]["mask"].size == (160, 120)
