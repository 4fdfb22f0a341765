"""Put a Space together: a folder that the Hub installs and starts from alone.

    make space OUT=folder      # or: python space/assemble.py folder

A Space's builder installs `requirements.txt` before it sees any other file, so a wheel that lies beside it cannot be
named there. So the package goes into the folder as its wheel unpacks (code, recipes, cards), and `requirements.txt`
lists what the wheel depends on, and gradio (the Hub itself takes README.md's `sdk_version`). The package `spaces` of
ZeroGPU is the Space's own.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path


SPACE = Path(__file__).resolve().parent
LEFT_OUT = ("__pycache__", "assemble.py", "requirements.txt")


def requirements() -> list[str]:
    """What package and page need, out of pyproject.toml."""
    with (SPACE.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return project["dependencies"] + project["optional-dependencies"]["space"]


def assemble(out: Path) -> None:
    """Write the Space's folder; raises ValueError if there is something else at its place."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a folder that is new or empty.")
    shutil.copytree(SPACE, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (out / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
        subprocess.run([*command, str(SPACE.parent)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    try:
        assemble(parser.parse_args().out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
