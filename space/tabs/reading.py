"""What a person or a program sends, as it comes: numbers as text, one name or a list; each refusal is one sentence."""

import math
from pathlib import Path
from typing import Any

from comparison.entries import Entry
from comparison.pictures import Picture, Refusal, open_image, open_picture
from comparison.zoo import Zoo
from tabs.examples import Example, examples


def read_example(value: Any) -> Example | None:
    """`{"example": name}` -> the example picture; None for anything else. Raises Refusal for one that is not there."""
    if not isinstance(value, dict) or "example" not in value:
        return None
    found = examples().get(value["example"]) if isinstance(value["example"], str) else None
    if found is None:
        raise Refusal(f"There is no example “{str(value['example'])[:40]}”; there are {', '.join(examples())}.")
    return found


def read_picture(value: Any, whole: bool = False) -> Picture:
    """An example, or an uploaded file's data as gradio hands it over after its check -> the picture. Raises Refusal.

    whole: keep it at its own size, for what is cut out of it.
    """
    example = read_example(value)
    if example is not None:
        path, name = example.file, example.file.name
    elif value is None:
        path = name = None
    elif not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise Refusal("The picture must be an uploaded file (gradio_client's handle_file makes one of a path).")
    else:
        path, name = value["path"], value.get("orig_name")
    if whole:
        image = open_image(path)
        return Picture(image, image.width, image.height, Path(path).name)
    return open_picture(path, name if isinstance(name, str) else None)


def read_request(value: Any) -> dict[str, Any]:
    """What the page sends with an event: an object. Raises Refusal."""
    if not isinstance(value, dict):
        raise Refusal("The request must be an object with “picture”, “expressions” and “models”.")
    return value


def read_names(value: Any) -> list[str]:
    """Names of models, as a list or as one text with commas. Raises Refusal."""
    names = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal("Models are names: one, several with commas between them, or a list of names.")
    return [name.strip() for name in names if name.strip()]


def read_models(zoo: Zoo, value: Any) -> list[Entry]:
    """Keys or titles, as a list or as one text with commas -> entries. Raises Refusal."""
    titles = {entry.title.casefold(): entry.key for entry in zoo.offered}
    return zoo.choose([titles.get(name.casefold(), name) for name in read_names(value)])


def read_threshold(value: Any) -> float | None:
    """A probability as a number or as text, None for each model's own. Raises Refusal."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise Refusal(f"The threshold is a probability in [0, 1], not {str(value)[:40]}.")
    return number


def read_thresholds(value: Any, entries: list[Entry], own: list[float]) -> list[float]:
    """`{model: threshold}` -> one per entry, `own` where it names none. Raises Refusal."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Refusal("Thresholds are an object of model and probability.")
    given = [read_threshold(value.get(entry.key)) for entry in entries]
    return [default if threshold is None else threshold for threshold, default in zip(given, own, strict=True)]
