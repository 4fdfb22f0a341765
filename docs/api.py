"""Build pages of the whole API with pdoc into outputs/docs.

python docs/api.py
"""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import pdoc


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that a clone works that is not installed

import hf_ris  # noqa: E402


def module_names() -> list[str]:
    """Every module but entry points and the apps of the metrics, which start when they are imported."""
    found = pkgutil.walk_packages(hf_ris.__path__, "hf_ris.")
    return ["hf_ris", *(one.name for one in found if not one.name.endswith((".app", "__main__")))]


def main() -> None:
    names = module_names()
    for name in names:
        module = import_module(name)
        for public in vars(module).get("__all__", []):  # pdoc does not ask a module's __getattr__
            vars(module)[public] = getattr(module, public)
    for name in names:  # a package that names its public names must name its modules too, or they are left out
        package, _, child = name.rpartition(".")
        if "__all__" in vars(sys.modules.get(package, sys)):
            sys.modules[package].__all__.append(child)
    out = ROOT / "outputs" / "docs"
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*names, output_directory=out)
    print(f"wrote {out / 'index.html'}: {len(names)} modules")


if __name__ == "__main__":
    main()
