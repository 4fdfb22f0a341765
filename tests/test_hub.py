"""What is pushed to a Hub is whole and loads without this package; what was cut off leaves nothing half there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer


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
