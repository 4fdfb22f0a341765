"""What a person or a program sends, as it comes: numbers as text, one name or a list; each refusal is one sentence."""

import math
from typing import Any

from entries import Entry
from pictures import Picture, Refusal, open_picture
from zoo import Zoo


def read_picture(value: Any) -> Picture:
    """An uploaded file's data, as gradio hands it over after its check -> the picture. Raises Refusal."""
    if value is None:
        return open_picture(None)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise Refusal("The picture must be an uploaded file (gradio_client's handle_file makes one of a path).")
    name = value.get("orig_name")
    return open_picture(value["path"], name if isinstance(name, str) else None)


def read_models(zoo: Zoo, value: Any) -> list[Entry]:
    """Keys or titles, as a list or as one text with commas -> entries. Raises Refusal."""
    names = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal("Models are names: one, several with commas between them, or a list of names.")
    titles = {entry.title.casefold(): entry.key for entry in zoo.offered}
    return zoo.choose([titles.get(name.strip().casefold(), name.strip()) for name in names if name.strip()])


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
