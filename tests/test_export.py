"""Exported files: the same logits as the model, with sizes of their own, by one command and in both formats."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import hf_ris
from hf_ris import export
from hf_ris.commands import export as command
from hf_ris.commands.export import main


EXPRESSIONS = ["the red star", "second ball from the left", "cup"]
WORDS = 6


def save(model, folder) -> None:
    """With room for few words, since it takes long to unroll a GRU over many."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_text_length": WORDS}))


def run_onnx(path, inputs) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path)
    assert [entry.name for entry in session.get_outputs()] == ["logits"]
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def run_pt2(path, inputs) -> torch.Tensor:
    return torch.export.load(path).module()(**inputs)


@pytest.mark.parametrize(("suffix", "run"), [(".onnx", run_onnx), (".pt2", run_pt2)])
def test_a_saved_model_becomes_a_file_that_takes_what_its_processor_makes(suffix, run, tiny_trio, tmp_path, capsys):
    model, processor = tiny_trio("lts")
    save(model, tmp_path / "model")
    path = tmp_path / f"model{suffix}"
    main(["--model", str(tmp_path / "model"), "--out", str(path)])
    said = capsys.readouterr().out
    assert float(said.split()[-1]) < 1e-4 and f"wrote {path}" in said
    images = [Image.effect_noise((90, 60), 60).convert("RGB") for _ in range(3)]
    inputs = dict(processor(images, [EXPRESSIONS[:1], EXPRESSIONS, EXPRESSIONS[1:]]))
    for name in ("input_ids", "attention_mask"):  # its GRU is unrolled over as many words
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, WORDS - inputs[name].shape[1]))
    with torch.no_grad():
        torch.testing.assert_close(run(path, inputs), model(**inputs).logits, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(hf_ris.ARCHITECTURES))
def test_every_architecture_in_onnx_runtime(architecture, tmp_path):
    """Other numbers of images, expressions and (but for a GRU) words than traced, within 1e-3."""
    model = export.small_model(architecture)
    path = tmp_path / "model.onnx"
    export.write(export.trace(model), list(export.example(model, 2, 3, 8)), path)
    assert export.difference(model, path) < export.TOLERANCE
    inputs = export.example(model, 1, 4, 5)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert expected.std() > 1e-3  # a constant would agree with anything
    torch.testing.assert_close(run_onnx(path, inputs), expected, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_video_model_becomes_a_file_for_clips_of_one_length(tiny_trio, tmp_path):
    model, processor = tiny_trio("vatex_video")
    program, names = export.trace(model, frames=3), list(export.example(model, 2, 3, 8, frames=3))
    side = model.config.image_size
    clips = [[Image.effect_noise((side, side), 40 + 9 * frame + clip) for frame in range(3)] for clip in range(3)]
    inputs = dict(processor(clips, [EXPRESSIONS[:1], EXPRESSIONS, EXPRESSIONS[1:]]))
    assert bool(inputs.pop("pixel_mask").all()) and "frame_mask" not in inputs
    with torch.no_grad():
        expected = model(**inputs).logits
    assert expected.shape[:2] == (6, 3) and expected.std() > 1e-3
    path = tmp_path / "model.pt2"
    export.write(program, names, path)
    assert export.difference(model, path, frames=3) < 1e-4
    torch.testing.assert_close(run_pt2(path, inputs), expected, atol=1e-4, rtol=0)


def test_clips_are_no_longer_than_a_window(tiny_trio, tmp_path):
    model = tiny_trio("vatex_video")[0]
    clips = export.example(model, 2, 3, 8, (64, 96))
    assert clips["pixel_values_videos"].shape == (2, 4, 3, 64, 96) and clips["video_index"].tolist() == [0, 1, 0]
    assert clips["clip_pixel_values"].shape[:2] == (2, model.config.prior_frames)
    with torch.no_grad():
        assert model(**export.example(model, 1, 2, 8, frames=2)).logits.shape[:2] == (2, 2)
    for name, frames, sentence in (
        ("vatex_video", "5", "--frames is from 1 to 4, the model's window_frames, not 5"),
        ("vatex_video", "0", "--frames is from 1 to 4"),
        ("lts", "2", "--frames is for video models, but lts takes images"),
    ):
        tiny_trio(name)[0].save_pretrained(tmp_path / name)
        with pytest.raises(SystemExit, match=sentence):
            main(["--model", str(tmp_path / name), "--out", str(tmp_path / "model.pt2"), "--frames", frames])
    with pytest.raises(SystemExit, match="A video model is exported as a torch.export program: give --out FILE.pt2"):
        main(["--model", str(tmp_path / "vatex_video"), "--out", str(tmp_path / "model.onnx")])
    assert not list(tmp_path.glob("model.*"))


def test_a_file_that_disagrees_is_not_passed_over(tiny_trio, tmp_path, monkeypatch):
    model, _ = tiny_trio("lts")
    save(model, tmp_path / "model")
    monkeypatch.setattr(export, "write", lambda *_: None)
    monkeypatch.setattr(export, "read", lambda path: lambda **inputs: model(**inputs).logits + 0.002)
    with pytest.raises(SystemExit, match=r"does not agree with the model: 2.0e-03 is more than 0.001"):
        main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "model.pt2")])


def test_the_table_has_a_difference_or_a_reason_in_every_cell(monkeypatch, capsys):
    def write(program, names, path):
        if path.suffix == ".onnx":
            raise RuntimeError("in step 3\n\nno function for aten.spin\n")

    monkeypatch.setattr(export, "trace", lambda model: None)
    monkeypatch.setattr(export, "write", write)
    monkeypatch.setattr(export, "difference", lambda model, path: 2.5e-7)
    main(["--table", "vlt", "cris"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| vlt | 2e-07 | no: no function for aten.spin | images, expressions |",
        "| cris | 2e-07 | no: no function for aten.spin | images, expressions, words |",
    ]


def test_pictures_of_another_size():
    model = export.small_model("segvlm")
    assert export.example(model, 2, 3, 8, (64, 96))["pixel_values"].shape == (2, 3, 64, 96)
    plain, side = export.example(model, 2, 3, 8), model.config.image_size
    assert plain["pixel_values"].shape == (2, 3, side, side) and plain["image_index"].tolist() == [0, 1, 0]
    assert np.array_equal(plain["attention_mask"].sum(1), [4, 8, 8])


def test_a_size_that_the_model_does_not_take_is_one_sentence(tiny_trio, tmp_path):
    tiny_trio("eavl")[0].save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"does not run on pictures of \(64, 96\): ") as refusal:
        main(["--model", str(tmp_path), "--out", str(tmp_path / "model.pt2"), "--size", "64", "96"])
    assert "\n" not in str(refusal.value) and not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arch", "lts"], "Give --out FILE.pt2 or --out FILE.onnx"),
        (["--arch", "lts", "--out", "model.pb"], "Give --out FILE.pt2 or --out FILE.onnx"),
        (["--table", "bert"], "There is no architecture bert; there are cris"),
        (["--arch", "lts", "--out", "lts.onnx"], "onnxruntime must be installed for ONNX: pip install"),
    ],
)
def test_what_is_missing_is_named(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(SystemExit):
        main(arguments)
    assert sentence in capsys.readouterr().err
