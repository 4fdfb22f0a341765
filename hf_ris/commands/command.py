"""What every verb shares: reading its options, and one sentence with exit status 2 for what is the user's to mend.

A user's error is a ValueError (what this package raises for bad input), an OSError (a file, a disk, a network) or an
error of the Hub. Whatever else is raised is a fault of the program and keeps its traceback.
"""

import argparse
import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def user_errors() -> tuple[type[Exception], ...]:
    """Asked for when something was raised: their import takes time."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError

    return ValueError, OSError, HTTPError, StrictDataclassError


def run(verb: str, arguments: list[str] | None = None) -> Any:
    """Read the options of a verb and run it; returns what it returns. arguments: None takes those of the process."""
    module = importlib.import_module(f"hf_ris.commands.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"hf-ris {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    try:
        return module.run(options)
    except user_errors() as error:
        stop = SystemExit(f"{parser.prog}: {sentence(error)}")
        print(stop, file=sys.stderr)
        stop.code = 2
        raise stop from error


def sentence(error: BaseException) -> str:
    """An error's text on one line, with its cause where it says nothing of itself."""
    return " ".join(str(error).split()) or f"{type(error).__name__}: {error.__cause__ or 'nothing more is known'}"


@contextmanager
def loading(reference: str):
    """Errors of loading a saved model, by a folder or a Hub id, name it.

    Raises:
        ValueError: what is neither, or cannot be loaded.
    """
    if not Path(reference).is_dir() and "/" not in reference:
        raise ValueError(f"There is no folder {reference}, and a Hub id has the form user/name.")
    try:
        yield
    except user_errors() as error:
        raise ValueError(f"{reference} cannot be loaded: {sentence(error)}") from error


def read_object(path: str | Path | None) -> dict[str, Any]:
    """The JSON object of config fields in a file; {} for None.

    Raises:
        ValueError: what is none.
    """
    if path is None:
        return {}
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable JSON file ({error}).") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a JSON {type(fields).__name__}; it takes an object of config fields.")
    return fields


def refuse_unused(options: argparse.Namespace, names: list[str], reason: str) -> None:
    """ValueError if one of the options `names` was given (is not None or False), since it would be ignored."""
    given = [name for name in names if vars(options)[name] not in (None, False)]
    if given:
        listed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{listed} would be ignored: {reason}.")


def fill_in(options: argparse.Namespace, defaults: dict[str, Any]) -> None:
    """Defaults of options that were not given, after `refuse_unused` has looked."""
    for name, value in defaults.items():
        if vars(options)[name] is None:
            setattr(options, name, value)
