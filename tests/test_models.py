"""The contract of every architecture in the registry; a new one is covered by its line there and its recipe."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoProcessor,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_SEGMENTATION_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import hf_ris
from hf_ris.benchmark import FlopCounter
from hf_ris.models.configuration_ris import RisConfig


ARCHITECTURES = sorted(hf_ris.ARCHITECTURES)
MODELS = Path(hf_ris.__file__).parent / "models"

# Parameters of the paper's configuration and the tolerance; facts.md of the project's references names the sources.
PUBLISHED_PARAMETERS = {
    "cris": (161.25e6, 0.005),  # CLIP 120.74 + neck 23.09 + decoder 12.63 + projector 4.79 M
    "lavt": (227.74e6, 0.005),  # Swin-B 86.9 + fusion 11.3 + decoder 20.7 + BERT 108.9 M
    "mpg_lqgnet": (234.64e6, 0.005),  # 125.75 of its Table 7 + BERT 108.89 M
}

SENTENCES = ["the red cup", "star", "the small blue car on the left", "second ball from the right", "green fish"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request, tiny_trio):
    """(model in eval mode, processor) of an architecture's `refscenes` recipe, seeded."""
    return tiny_trio(request.param)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [
        Image.fromarray(random.integers(0, 255, (40, 56, 3), dtype=np.uint8)).resize((112, 80)) for _ in range(count)
    ]


def squares(count: int) -> list[np.ndarray]:
    masks = np.zeros((count, 80, 112), bool)
    for index in range(count):
        masks[index, 10 + 8 * index : 45 + 8 * index, 15 * index : 15 * index + 50] = True
    return list(masks)


def maps(outputs) -> dict[str, torch.Tensor]:
    """The per-expression tensors of an output."""
    names = ("logits", "prior_logits", "heatmap", "query_logits", "query_scores")
    return {name: outputs[name] for name in names if outputs.get(name) is not None}


def assert_same(first, second, atol=1e-5):
    first, second = maps(first), maps(second)
    assert first.keys() == second.keys()
    for name in first:
        gap = (first[name] - second[name]).abs().max().item()
        assert gap <= atol, f"{name}, of at most {second[name].abs().max().item()}, differs by {gap}"


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_paper_configuration_has_the_published_size(name):
    published, tolerance = PUBLISHED_PARAMETERS[name]
    prefix = hf_ris.ARCHITECTURES[name]
    with torch.device("meta"):
        model = vars(sys.modules[f"hf_ris.models.modeling_{name}"])[f"{prefix}ForReferringSegmentation"](
            AutoConfig.for_model(name)
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / published - 1) <= tolerance, f"{count:,} parameters, published {published:,.0f}"


def test_output_shapes(tiny):
    model, processor = tiny
    inputs = processor(pictures(2), [SENTENCES[:2], SENTENCES[2:]], [squares(2), squares(3)])
    with torch.no_grad():
        outputs = model(**inputs)
    assert outputs.logits.shape[0] == 5 and outputs.logits.ndim == 3
    assert outputs.loss.ndim == 0 and outputs.loss.isfinite()
    assert outputs.losses and all(term.ndim == 0 for term in outputs.losses.values())
    results = processor.post_process_referring_segmentation(outputs, [(80, 112)] * 5)
    assert all(result["mask"].shape == (80, 112) and result["mask"].dtype == torch.bool for result in results)
    del inputs["labels"]
    with torch.no_grad():
        assert model(**inputs).loss is None


def test_gradient_reaches_exactly_the_parameters_it_should(tiny):
    model, processor = tiny
    inputs = processor(pictures(2), [SENTENCES[:2], SENTENCES[2:]], [squares(2), squares(3)])
    model.train()
    model.zero_grad()
    model(**inputs).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    listed = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and any(re.search(pattern, name) for pattern in model._keys_without_gradient)
    }
    assert without == listed
    model.zero_grad()
    model.eval()


def test_padding_and_neighbours_change_nothing(tiny):
    model, processor = tiny
    images = pictures(2)
    with torch.no_grad():
        together = model(**processor(images, [SENTENCES[:2], SENTENCES[2:]]))
        single = model(**processor(images[0], SENTENCES[1]))
    assert_same({name: value[1:2] for name, value in maps(together).items()}, single)


def test_expressions_on_one_image_equal_separate_calls(tiny):
    model, processor = tiny
    image = pictures(1)[0]
    with torch.no_grad():
        together = model(**processor(image, SENTENCES))
        for index, sentence in enumerate(SENTENCES):
            separate = model(**processor(image, sentence))
            assert_same({name: value[index : index + 1] for name, value in maps(together).items()}, separate)


def test_image_is_encoded_once(tiny, monkeypatch):
    model, processor = tiny
    calls = []
    encode_image = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda *inputs: calls.append(inputs) or encode_image(*inputs))
    image = pictures(1)[0]
    counts = {}
    for number in (1, 5):
        with torch.no_grad(), FlopCounter() as counter:
            model(**processor(image, SENTENCES[-1:] * number))
        counts[number] = counter.get_total_flops()
    assert [len(pixels) for pixels, *_ in calls] == [1, 1]
    with torch.no_grad(), FlopCounter() as counter:
        encode_image(*calls[0])
    image_part = counter.get_total_flops()
    expression_part = counts[1] - image_part
    assert counts[5] == image_part + 5 * expression_part


def test_save_and_load_through_the_auto_classes(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    inputs = processor(pictures(2), SENTENCES[:2])
    with torch.no_grad():
        expected = model(**inputs)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    for name, value in again(pictures(2), SENTENCES[:2]).items():
        torch.testing.assert_close(value, inputs[name])
    for auto in (AutoModel, AutoModelForImageSegmentation):
        loaded = auto.from_pretrained(tmp_path).eval()
        assert type(loaded) is type(model)
        with torch.no_grad():
            assert_same(expected, loaded(**inputs), atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    for config in (first, second):  # loading fills in the dtype of the encoders' configs
        for name in model.config.sub_configs:
            config[name].pop("dtype")
    assert first == second


FRESH = """
import json, sys
import numpy as np, torch
from PIL import Image
{imports}
from transformers import AutoConfig, AutoModel, AutoModelForImageSegmentation, AutoProcessor, pipeline
torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    AutoConfig.from_pretrained(folder, {trust})
    processor = AutoProcessor.from_pretrained(folder, {trust})
    image = Image.open(folder + "/image.png")
    inputs = processor(image, ["the red cup", "star"])
    for auto in (AutoModel, AutoModelForImageSegmentation):
        model = auto.from_pretrained(folder, {trust}).eval()
        with torch.no_grad():
            logits = model(**inputs).logits
        expected = torch.from_numpy(np.load(folder + "/logits.npy"))
        assert (logits - expected).abs().max() < 1e-5, (folder, (logits - expected).abs().max())
    pipe = pipeline("referring-image-segmentation", {pipe})
    results = pipe(image, ["the red cup", "star"])
    assert [r["text"] for r in results] == ["the red cup", "star"] and results[0]["mask"].size == image.size
{after}
"""


@pytest.mark.parametrize("part", [0, 1], ids=["some", "others"])  # each in half a minute where cores are busy
@pytest.mark.parametrize("way", ["installed", "remote_code"])
def test_fresh_process(way, part, tiny_trio, tmp_path):
    """Every architecture's saved folder, loaded where `hf_ris` is imported and where it cannot be."""
    folders = []
    for name in ARCHITECTURES[part::2]:
        model, processor = tiny_trio(name)
        folder = tmp_path / name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        image = pictures(1)[0]
        image.save(folder / "image.png")
        with torch.no_grad():
            np.save(folder / "logits.npy", model(**processor(image, ["the red cup", "star"])).logits.numpy())
        folders.append(str(folder))
    if way == "installed":
        script = FRESH.format(imports="import hf_ris", trust="", pipe="model=model, processor=processor", after="")
    else:
        script = FRESH.format(
            imports="sys.modules['hf_ris'] = None  # any import of the package fails",
            trust="trust_remote_code=True",
            pipe="model=folder, trust_remote_code=True",
            after="assert not [m for m in sys.modules if m.startswith('hf_ris.')]",
        )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(folders)],
        cwd=tmp_path,
        env=environment | ({"PYTHONPATH": str(MODELS.parents[1])} if way == "installed" else {"PYTHONPATH": ""}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_pipeline(tiny):
    model, processor = tiny
    pipe = pipeline("referring-image-segmentation", model=model, processor=processor)
    image = pictures(1)[0]
    results = pipe(image, SENTENCES[:3])
    assert [result["text"] for result in results] == SENTENCES[:3]
    assert all(result["mask"].size == image.size and 0 <= result["score"] <= 1 for result in results)
    everything = pipe(image, SENTENCES[0], threshold=0.0)[0]
    nothing = pipe(image, SENTENCES[0], threshold=1.0)[0]
    assert np.asarray(everything["mask"]).min() == 255
    assert np.asarray(nothing["mask"]).max() == 0
    batch = pipe([{"image": image, "text": SENTENCES[:2]}, {"image": image, "text": SENTENCES[2]}])
    assert [len(one) for one in batch] == [2, 1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_overfits_one_batch(name, tiny_trio):
    side = tiny_trio(name)[0].config.image_size // 2  # a quarter of the time
    model, processor = build_tiny(name, f"model.image_size={side}")
    model.train()
    inputs = processor(pictures(2), [SENTENCES[:2], SENTENCES[2:4]], [squares(2), squares(2)])
    optimizer = torch.optim.AdamW(model.parameters())
    first = None
    for step in range(70):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (70 - step) / 30)  # it settles, in any order of sums
        loss = model(**inputs).loss
        first = first if first is not None else loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predicted = model(**inputs).logits.sigmoid() > processor.threshold
    targets = torch.nn.functional.interpolate(inputs["labels"][:, None], size=predicted.shape[-2:])[:, 0] > 0.5
    iou = (predicted & targets).sum((1, 2)) / (predicted | targets).sum((1, 2))
    assert loss.item() < first / 3, f"loss {first} -> {loss.item()}"
    assert iou.mean() > 0.7, f"IoU {iou.tolist()}"


def test_bfloat16_autocast(tiny):
    model, processor = tiny
    inputs = processor(pictures(1), [SENTENCES[:2]], [squares(2)])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32 and outputs.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    with torch.no_grad():
        reference = model(**inputs)
    assert (outputs.logits.sigmoid() - reference.logits.sigmoid()).abs().mean() < 0.05


@pytest.mark.slow
def test_compiles(tiny):
    model, processor = tiny
    inputs = processor(pictures(1), [SENTENCES[:2]])
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # one graph, which no operator cuts
    with torch.no_grad():
        assert_same(model(**inputs), compiled(**inputs))


def test_gradient_checkpointing_gives_the_same_gradients(tiny_trio):
    for name in ARCHITECTURES:
        model, processor = tiny_trio(name, fresh=True)
        inputs = processor(pictures(1), [SENTENCES[:2]], [squares(2)])
        model.train()
        for module in model.modules():  # the recomputation would draw other dropout masks
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
        norms = []
        for enable in (False, True):
            if enable:
                model.activation_checkpointing_enable()
            model.zero_grad()
            torch.manual_seed(0)  # some losses look at random points
            model(**inputs).loss.backward()
            norms.append({n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None})
        assert norms[0].keys() == norms[1].keys()
        for key, value in norms[0].items():
            assert torch.allclose(norms[1][key], value, atol=1e-5, rtol=1e-3), f"{name} {key}"


def test_the_vocabulary_can_grow(tiny_trio, tmp_path):
    """Words are added to tokenizer and model, known words answer as before, and it is saved and loaded so."""
    for name in ARCHITECTURES:
        model, processor = tiny_trio(name, fresh=True)
        inputs = processor(pictures(1), SENTENCES[:1])
        with torch.no_grad():
            before = model(**inputs).logits
        words = len(processor.tokenizer)
        processor.tokenizer.add_tokens(["scalpel"])
        model.resize_token_embeddings(len(processor.tokenizer))
        assert model.get_input_embeddings().num_embeddings == words + 1 == model.word_config.vocab_size
        for part in (model, processor):
            part.save_pretrained(tmp_path / name)
        loaded = AutoModel.from_pretrained(tmp_path / name).eval()
        again = AutoProcessor.from_pretrained(tmp_path / name)
        assert words in again(pictures(1), "scalpel")["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, before, atol=1e-5, rtol=1e-4)
            assert loaded(**again(pictures(1), "scalpel")).logits.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configuration_is_strict_and_every_field_is_read(name):
    config = AutoConfig.for_model(name)
    with pytest.raises(ValueError, match="no field learning_rate"):
        type(config)(learning_rate=1)
    with pytest.raises(Exception, match="image_size"):
        type(config)(image_size="large")
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        type(config)(image_size=0)
    kinds = MODEL_FOR_IMAGE_SEGMENTATION_MAPPING[type(config)].__mro__ + PROCESSOR_MAPPING[type(config)].__mro__
    files = {kind.__module__ for kind in kinds if kind.__module__.startswith("hf_ris.")}  # of their bases too
    sources = "".join(Path(sys.modules[file].__file__).read_text() for file in files)
    own = {field.name for field in fields(config)} - {field.name for field in fields(RisConfig.__bases__[0])}
    unread = [field for field in own if not re.search(rf"config\.{field}\b", sources)]
    assert not unread, f"config fields that nothing reads: {unread}"


def test_pretrained_encoders_that_cannot_fit_are_refused(tiny):
    model, _ = tiny
    config = copy.deepcopy(model.config)
    if "clip_config" in config.sub_configs:  # where the recipe names a file of its own
        config.clip_config.pretrained = "openai"
    with pytest.raises(ValueError, match="No public weights fit"):
        type(model).from_pretrained_encoders(config)


def test_model_files_are_flat():
    """transformers copies single-dot siblings only: anything else would be missing from a Hub repository."""
    allowed = {
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "open_clip",
        "numpy",
        "PIL",
        "tokenizers",
        "huggingface_hub",
        "av",
        "tqdm",
    }
    for path in MODELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and "." not in (node.module or ""), f"{path.name}: {ast.unparse(node)}"
            elif isinstance(node, (ast.ImportFrom, ast.Import)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for imported in names:
                    top = imported.split(".")[0]
                    assert top in allowed | set(sys.stdlib_module_names), f"{path.name} imports {imported}"
