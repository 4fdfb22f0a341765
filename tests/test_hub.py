"""What is pushed to a Hub is whole and loads without this package; what was cut off leaves nothing half there."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard

import hf_ris
from hf_ris.models.inference_ris import recommended_dtype


ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["the red cup", "star"]


def run(script: str, hub: HubServer, cwd: Path, *arguments: str, python=sys.executable, path="", **environment: str):
    """A script in a process of its own that takes `hub` for the Hub; what it prints last, as JSON."""
    done = subprocess.run(
        [python, "-c", script, *arguments],
        cwd=cwd,
        env=hub.environment(cwd / "hf") | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- the client and a Hub that fails

CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import _http

_http.time.sleep = lambda seconds: None  # the client's waits between its tries
folder = Path("model")
folder.mkdir(exist_ok=True)
(folder / "config.json").write_text('{"model_type": "lts"}')
weights = folder / "model.safetensors"
weights.write_bytes(sys.argv[1].encode() * 2_000)
api = HfApi()

def push():
    try:
        name = api.create_repo("model", private=True, exist_ok=True).repo_id
        return api.upload_folder(repo_id=name, folder_path=folder).oid
    except Exception as error:
        return f"{error} {error.__cause__}"

def fetch(**options):
    try:
        return Path(hf_hub_download("someone/model", weights.name, **options)).read_bytes() == weights.read_bytes()
    except Exception as error:
        return type(error).__name__
"""
PUSH = CLIENT + "print(json.dumps(push()))"


@pytest.mark.parametrize("part_size", [None, 4_000])
def test_a_failure_that_passes_is_retried(part_size, tmp_path):
    with HubServer(part_size) as hub:
        hub.fail("PUT /upload/", "cut")
        hub.fail("PUT /upload/", 500)
        hub.fail("POST .*/preupload/", 429)
        hub.fail("POST .*/objects/batch", 500)
        hub.fail("GET /someone/model/resolve/.*safetensors", "cut", 2)
        told = "[push() == api.model_info('someone/model').sha, fetch(), api.whoami()['name']]"
        assert run(f"{CLIENT}print(json.dumps({told}))", hub, tmp_path, "weights") == [True, True, "someone"]
        assert not any(times for _, _, times in hub.failures)
        parts = 1 if part_size is None else 4
        assert sum(request.startswith("PUT /upload/") for request in hub.requests) == parts + 2
        assert hub.commits == ["someone/model"] and hub.private == {"someone/model"}


@pytest.mark.parametrize(
    "request_, how, says",
    [
        ("PUT /upload/", "cut", "Error while uploading 'model.safetensors' to the Hub"),
        ("PUT /upload/", 500, "500 Internal Server Error"),
        ("POST .*/commit/", 429, "429"),
        ("POST .*/commit/", "cut", ""),
    ],
)
def test_a_push_that_fails_leaves_the_old_commit(request_, how, says, tmp_path):
    with HubServer() as hub:
        first = run(PUSH, hub, tmp_path, "old")
        before = dict(hub.files["someone/model"])
        hub.fail(request_, how, 99)
        second = run(PUSH, hub, tmp_path, "new")
        assert first == hub.revision("someone/model") != second and says in second
        assert hub.files["someone/model"] == before and hub.commits == ["someone/model"]


def test_a_download_that_breaks_leaves_nothing_to_load(tmp_path):
    script = (
        CLIENT
        + """
found = [path.name for path in Path("hf").rglob("*/snapshots/*/*.safetensors")]
print(json.dumps([fetch(), found, fetch(local_files_only=True)]))
"""
    )
    with HubServer() as hub:
        run(PUSH, hub, tmp_path, "weights")
        hub.fail("GET .*safetensors", "cut", 99)
        broken, found, offline = run(script, hub, tmp_path, "weights")
        assert isinstance(broken, str) and found == [] and offline == "LocalEntryNotFoundError"
        hub.failures.clear()
        whole, _, offline = run(script, hub, tmp_path, "weights")
        assert whole is True and offline is True


# ---------------------------------------------------------------- metrics

METRIC = """
import json, sys
import evaluate
from huggingface_hub import HfApi

api = HfApi()
name = api.create_repo("ris_iou", repo_type="space", space_sdk="gradio").repo_id
api.upload_folder(repo_id=name, repo_type="space", folder_path=sys.argv[1], ignore_patterns="*.pyc")
print(json.dumps(evaluate.load(name).compute(intersection=[50, 90], union=[100, 100])["mIoU"]))
"""


def test_a_metric_is_a_space_that_evaluate_loads(tmp_path):
    with HubServer() as hub:
        folder = ROOT / "hf_ris" / "metrics" / "ris_iou"
        assert run(METRIC, hub, tmp_path, str(folder)) == 0.7
        assert hub.kinds == {"someone/ris_iou": "spaces"}
        assert {"app.py", "README.md", "requirements.txt", "iou_terms.py"} <= hub.files["someone/ris_iou"].keys()


# ---------------------------------------------------------------- pushed models, loaded without this package

PUSH_MODELS = """
import json, sys
import numpy as np, torch
from conftest import build_tiny
from PIL import Image
from transformers import pipeline

image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)).resize((112, 80))
image.save("photo.png")
texts, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for number, name in enumerate(names):
    model, processor = build_tiny(name)
    if number % 2:  # a model and a processor, or both at once
        pipeline("referring-image-segmentation", model=model, processor=processor).push_to_hub(f"someone/{name}")
    else:
        model.push_to_hub(f"someone/{name}", private=True, tags=["tiny"])
        processor.save_pretrained("saved", push_to_hub=True, repo_id=f"someone/{name}")
    with torch.no_grad():
        outputs = model(**processor(image, texts))
    answers = processor.post_process_referring_segmentation(outputs, [(80, 112)] * len(texts))
    masks = [answer["mask"].numpy() for answer in answers]
    np.savez(f"{name}.npz", logits=outputs.logits.numpy(), masks=masks)
print(json.dumps("pushed"))
"""

LOAD_MODELS = """
import json, sys
{hide}
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageSegmentation, AutoProcessor, pipeline

torch.set_num_threads(1)
image, told = Image.open("photo.png"), {{}}
texts, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name in names:
    expected, repo = np.load(f"{{name}}.npz"), f"someone/{{name}}"
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    inputs = processor(image, texts)
    gaps = []
    for auto in (AutoModel, AutoModelForImageSegmentation):
        model = auto.from_pretrained(repo, trust_remote_code=True).eval()
        with torch.no_grad():
            gaps.append(float((model(**inputs).logits - torch.from_numpy(expected["logits"])).abs().max()))
    pipe = pipeline("referring-image-segmentation", model=repo, trust_remote_code=True)
    masks = np.stack([np.asarray(answer["mask"]) > 0 for answer in pipe("photo.png", texts)])
    kind = type(AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)).__name__
    told[name] = [max(gaps), float((masks == expected["masks"]).mean()), kind, model.dtype is torch.float32]
absent = [name for name in ("hf_ris", "datasets", "evaluate", "pycocotools", "accelerate") if name not in sys.modules]
print(json.dumps([told, absent]))
"""

HIDE = """
from importlib.machinery import PathFinder

class Without(PathFinder):  # what a user of the Hub need not have is not found
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = ("hf_ris", "datasets", "evaluate", "pycocotools", "accelerate", "gradio", "spacy")
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def push_models(hub: HubServer, names: list[str], cwd: Path) -> None:
    assert run(PUSH_MODELS, hub, cwd, json.dumps(TEXTS), json.dumps(names), path=f"{ROOT}:{ROOT / 'tests'}") == "pushed"


def assert_loads(hub: HubServer, names: list[str], cwd: Path, hide: str = "", **options) -> None:
    script, home = LOAD_MODELS.format(hide=hide), str(cwd / "other")  # caches of the other process would help
    told, absent = run(script, hub, cwd, json.dumps(TEXTS), json.dumps(names), HF_HOME=home, **options)
    assert "hf_ris" in absent and "datasets" in absent
    # the pipeline runs in the recommended way, on some processors bfloat16
    alike = 1 if recommended_dtype(torch.device("cpu")) == torch.float32 else 0.98
    for name in names:
        gap, same_pixels, kind, full_precision = told[name]
        right = gap <= 1e-6 and same_pixels >= alike
        assert right and kind == "RisImageProcessor" and full_precision, (name, told[name])


@pytest.mark.slow
def test_pushed_models_are_whole_and_load_without_the_package(tmp_path):
    with HubServer() as hub:
        push_models(hub, ["lavt", "vatex"], tmp_path)
        assert hub.commits == ["someone/lavt", "someone/lavt", "someone/vatex"] and hub.private == {"someone/lavt"}
        for name in ("lavt", "vatex"):
            files = hub.files[f"someone/{name}"]
            code = {
                f"{kind}_{file}.py" for kind in ("modeling", "configuration", "processing") for file in (name, "ris")
            }
            settings = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
            assert code | settings | {"model.safetensors", "pipeline_ris.py", "README.md"} <= files.keys()
            assert not any(path.endswith((".bin", ".pt", ".pyc")) for path in files)
            card = ModelCard(files["README.md"].decode())
            assert card.data.license == "apache-2.0" and card.data.tags[:2] == ["referring-image-segmentation", name]
            assert f'model="someone/{name}"' in card.text and "no measured number" in card.text
        assert ModelCard(hub.files["someone/lavt"]["README.md"].decode()).data.tags[-1] == "tiny"
        assert_loads(hub, ["lavt", "vatex"], tmp_path, hide=HIDE)


@pytest.fixture(scope="session")
def fresh_python():
    """The Python of a new virtual environment that holds what a card asks for, in the versions at hand: 6 GB."""
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        needed = ("torch", "torchvision", "transformers", "timm", "open_clip_torch", "pillow")
        pinned = [f"{name}=={version(name)}" for name in needed]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pinned], check=True)
        yield python


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_architecture_loads_in_a_fresh_environment(fresh_python, tmp_path):
    names = sorted(hf_ris.ARCHITECTURES)
    with HubServer() as hub:
        push_models(hub, names, tmp_path)
        assert_loads(hub, names, tmp_path, python=fresh_python)
