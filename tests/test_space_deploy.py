"""The folder that `make space` puts together, started in an environment that has the libraries and not our package."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from test_space import SPACE, assemble

import hf_ris


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "space"
    subprocess.run([sys.executable, SPACE / "assemble.py", out], check=True)
    return out


def test_a_folder_that_is_there_is_left_alone(folder):
    with pytest.raises(ValueError, match="is there already"):
        assemble.assemble(folder)


def test_what_it_needs_is_listed_and_at_hand(folder):
    lines = (folder / "requirements.txt").read_text().split()
    needed = {requirement.name: requirement for requirement in map(Requirement, lines)}
    assert {"torch", "transformers", "gradio"} <= set(needed) and "hf_ris" not in needed
    assert all(requirement.specifier.contains(version(name)) for name, requirement in needed.items())


def test_it_starts_alone_and_answers(folder, tmp_path):
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / "bin" / "python"
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "environment" / "lib" / name / "site-packages"
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPACE"))}
    environment = inherited | {"GRADIO_SERVER_PORT": str(port), "SPACE_ID": "owner/name", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([python, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/"
            for _ in range(2400):
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    if httpx.get(f"{address}config", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            result = Client(address, verbose=False).predict(
                handle_file(folder / "examples" / "fishes.png"), "the blue fish", api_name="/segment"
            )
        finally:
            process.terminate()
            process.wait(30)
    configs = [json.loads(file.read_text()) for file in (folder / "checkpoints").glob("*/config.json")]
    assert len(result["annotations"]) == sum(config["model_type"] in hf_ris.ARCHITECTURES for config in configs) > 0
    assert any(annotation["area"] for annotation in result["annotations"])
