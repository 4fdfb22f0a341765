"""Files that lie beside the code in the repository and inside the package in a wheel: recipes, launch configs, cards.

A recipe is named `lavt/refcoco`, a launch config of accelerate `fsdp`, or either by the path of a file of one's own.
"""

from pathlib import Path

from . import ALIASES


_PACKAGE = Path(__file__).resolve().parent
# pyproject.toml puts the folders on the right into the wheel under the names on the left
_IN_REPOSITORY = {"recipes": "train/recipes", "accelerate": "train/accelerate", "model_cards": "model_cards"}


def folder(name: str) -> Path:
    """The folder of `recipes`, `accelerate` (launch configs) or `model_cards`."""
    installed = _PACKAGE / "_resources" / name
    return installed if installed.is_dir() else _PACKAGE.parent / _IN_REPOSITORY[name]


def recipe_names() -> list[str]:
    """`<architecture>/<data set>` of every recipe there is."""
    root = folder("recipes")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe by its name, as `lavt/refcoco`, or by its path.

    Raises:
        ValueError: neither a name nor a file, with the names that there are.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = recipe_names()
    architecture, slash, data = str(name_or_path).partition("/")
    name = ALIASES.get(architecture, architecture) + slash + data
    if name not in names:
        raise ValueError(f"There is no recipe {name_or_path}: give the path of a file, or one of {', '.join(names)}.")
    return folder("recipes") / f"{name}.yaml"


def model_card_template(architecture: str) -> Path:
    """The card of an architecture, which a trained model's card is made from.

    Raises:
        ValueError: an architecture without a card.
    """
    path = folder("model_cards") / f"{architecture}.md"
    if not path.is_file():
        raise ValueError(f"{architecture} has no card: {path.name} is missing in {path.parent.name}.")
    return path
