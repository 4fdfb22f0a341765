"""The leaderboard: what `results.json` of each bundled model says, as a table and as plots, in HTML without a script.

Only numbers that the evaluation wrote are shown; a model whose file lacks one has a dash.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from comparison.entries import Entry, read_json
from hf_ris.hub.card import pretraining_seconds


PAPERS = {  # model type: where, address
    "lts": ("CVPR 2021", "https://arxiv.org/abs/2103.16284"),
    "cris": ("CVPR 2022", "https://arxiv.org/abs/2111.15174"),
    "segvlm": ("2023", None),
    "lavt": ("CVPR 2022", "https://arxiv.org/abs/2112.02244"),
    "vlt": ("TPAMI 2022", "https://arxiv.org/abs/2210.15871"),
    "eavl": ("2023", "https://arxiv.org/abs/2308.09779"),
    "mpg_lqgnet": ("CVIU 2025", "https://doi.org/10.1016/j.cviu.2025.104296"),
    "vatex": ("WACV 2025", "https://arxiv.org/abs/2404.08590"),
    "vatex_video": ("WACV 2025", "https://arxiv.org/abs/2404.08590"),
}
SPLITS = (("test", "test"), ("test_compositional", "unseen combinations"))
CONTROLS = {
    "other_scene_expression": "another scene's text",
    "other_object_expression": "another object's text",
    "shuffled_frames": "frames in a random order",
    "first_frame": "the first frame alone",
}
KINDS = ("ordinal", "negation")
INK = ("#4338ca", "#d97706", "#64748b", "#94a3b8")


@dataclass(frozen=True)
class Row:
    """A model and its results by split; each holds the metrics of its protocol, in [0, 1].

    scenes: images or videos of `test` that were measured. minutes: of training, with all that came before the last
        run's `steps`.
    """

    entry: Entry
    parameters: int
    scenes: int | None
    steps: int | None
    minutes: float | None
    seconds: float | None
    results: dict[str, dict[str, float]]

    def of(self, split: str, metric: str) -> float | None:
        value = self.results.get(split, {}).get(metric)
        return float(value) if isinstance(value, int | float) else None

    def controls(self, metric: str = "mIoU") -> dict[str, float]:
        """A metric of the controls, by what was changed."""
        found = {}
        for split in self.results:
            value = self.of(split, metric)
            if "/" in split and value is not None:
                found[split.rpartition("/")[2]] = value
        return found


def read_row(entry: Entry, speed: float | None = None, protocol: str = "original") -> Row:
    stored = read_json(entry.folder / "results.json")
    seconds = stored.get("training_seconds")
    results = {
        split: metrics_of(found.get("protocols", {}).get(protocol, {})) | _kinds(found.get("slices", {}))
        for split, found in stored.get("results", {}).items()
        if isinstance(found, dict)
    }
    minutes = (seconds + pretraining_seconds(stored)) / 60 if isinstance(seconds, int | float) else None
    of_test = stored.get("results", {}).get("test", {})
    scenes = of_test.get("images", of_test.get("videos"))
    return Row(entry, stored.get("parameters", 0), scenes, stored.get("steps"), minutes, speed, results)


def _kinds(slices: dict[str, Any]) -> dict[str, float]:
    """What results.json has of the kinds of expressions that the plot shows, as `mIoU (kind)`."""
    words = {f"mIoU ({label} words)": part.get("mIoU") for label, part in slices.get("words", {}).items()}
    others = {f"mIoU ({kind})": slices.get(kind, {}).get("with", {}).get("mIoU") for kind in KINDS}
    return {name: value for name, value in (words | others).items() if value is not None}


def metrics_of(report: dict[str, Any]) -> dict[str, float]:
    """A protocol's metrics as numbers: of all expressions, and `mIoU (kind)` of its slices.

    report: metrics themselves, or `overall` and `slices` whose metrics are {"value", "low", "high"}.
    """
    found = {name: plain(value) for name, value in report.get("overall", report).items()}
    for kinds in report.get("slices", {}).values():
        for label, part in kinds.items():
            if "mIoU" in part.get("metrics", {}):
                found[f"mIoU ({label})"] = plain(part["metrics"]["mIoU"])
    return found


def plain(value: Any) -> Any:
    """A metric without its interval."""
    return value["value"] if isinstance(value, dict) and "value" in value else value


def leaderboard_html(entries: list[Entry], seconds: Callable[[Entry], float | None] = lambda entry: None) -> str:
    """Table and plots of the models, best on `test` first.

    seconds: the median that a model took for a picture here, or None where nobody asked it yet.
    """
    rows = sorted(
        (read_row(entry, seconds(entry)) for entry in entries), key=lambda row: -(row.of("test", "mIoU") or 0)
    )
    plots = "".join((_splits_plot(rows), _kinds_plot(rows), _size_plot(rows)))
    return (
        "<div class='ris-board ris-colours'><p>RefScenes, protocol <code>original</code>, on as many scenes of "
        "<code>test</code> as the row says, measured by <code>hf-ris evaluate</code>; the files are "
        "<code>results.json</code> beside the bundled models. These are tiny models on drawn scenes: the numbers say "
        "nothing of photographs or of the papers' models.</p>"
        f"{_table(rows)}<div class='ris-plots'>{plots}</div></div>"
    )


def moving_board_html(entries: list[Entry]) -> str:
    """The table of the video models, best on `test` first; nothing without any."""
    rows = sorted(
        (read_row(entry, protocol="youtube_vos") for entry in entries), key=lambda row: -(row.of("test", "J&F") or 0)
    )
    if not rows:
        return ""
    return (
        "<div class='ris-board ris-colours'><p>Moving RefScenes, protocol <code>youtube_vos</code>: things that look "
        "alike are told apart by how they move.</p>"
        f"{_rows_table(rows, _moving_columns(rows), 'Leaderboard of video models')}</div>"
    )


def _moving_columns(rows: list[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    controls = sorted({name for row in rows for name in row.controls("J&F")})
    return [
        *((name, lambda row, name=name: _number(row.of("test", name))) for name in ("J&F", "J", "F")),
        ("J&F, unseen combinations", lambda row: _number(row.of("test_compositional", "J&F"))),
        *((_control(name), lambda row, name=name: _number(row.controls("J&F").get(name))) for name in controls),
        ("videos", lambda row: f"{row.scenes:,}" if isinstance(row.scenes, int) else "–"),
        *_costs(),
    ]


def _costs() -> list[tuple[str, Callable[[Row], str]]]:
    return [
        ("parameters", lambda row: f"{row.parameters / 1e6:.2f} M"),
        ("time on this machine", lambda row: "–" if row.seconds is None else f"{1000 * row.seconds:.0f} ms"),
        ("steps of the last run", lambda row: f"{row.steps:,}" if isinstance(row.steps, int) else "–"),
        ("minutes of all training", lambda row: "–" if row.minutes is None else f"{row.minutes:.0f}"),
    ]


def _table(rows: list[Row]) -> str:
    controls = sorted({name for row in rows for name in row.controls()})
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("mIoU", lambda row: _number(row.of("test", "mIoU"))),
        ("oIoU", lambda row: _number(row.of("test", "oIoU"))),
        ("Pr@0.5", lambda row: _number(row.of("test", "Pr@0.5"))),
        ("Pr@0.9", lambda row: _number(row.of("test", "Pr@0.9"))),
        ("Oc-IoU", lambda row: _number(row.of("test", "Oc-IoU"))),
        ("right object", lambda row: _number(row.of("test", "localization"))),
        ("mIoU, unseen combinations", lambda row: _number(row.of("test_compositional", "mIoU"))),
        *(
            (_control(name), lambda row, name=name: _number(row.controls().get(name)))
            for name in controls
        ),
        ("scenes", lambda row: f"{row.scenes:,}" if isinstance(row.scenes, int) else "–"),
        *_costs(),
    ]  # fmt: skip
    return _rows_table(rows, columns, "Leaderboard")


def _rows_table(rows: list[Row], columns: list[tuple[str, Callable[[Row], str]]], label: str) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name, _ in columns)
    body = "".join(
        f"<tr><th scope='row'>{escape(row.entry.title)}</th>{_links(row)}"
        + "".join(f"<td>{escape(value(row))}</td>" for _, value in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='ris-board-scroll' tabindex='0' role='region' aria-label='{label}'><table>"
        f"<thead><tr><th scope='col'>Model</th><th scope='col'>Paper and card</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _control(name: str) -> str:
    return f"control: {CONTROLS.get(name, name.replace('_', ' '))}"


def _links(row: Row) -> str:
    where, address = PAPERS.get(str(row.entry.model_type), ("", None))
    paper = f"<a href='{address}' rel='noopener' target='_blank'>{where}</a>" if address else escape(where)
    return f"<td>{paper} · <a href='#card-{escape(str(row.entry.model_type), quote=True)}'>card</a></td>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


# plots: plain SVG, one row a model, numbers in text for those who do not see them


def _figure(title: str, caption: str, height: int, content: str, described: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>"
        f"<svg viewBox='0 0 460 {height}' role='img' aria-label='{escape(described, quote=True)}'>{content}</svg>"
        "</figure>"
    )


def _axis(height: int, left: int, most: float) -> str:
    marks = []
    for k in range(6):
        value = most * k / 5
        x = left + (450 - left) * k / 5
        marks.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='6' y2='{height - 18}' class='ris-grid'/>")
        marks.append(f"<text x='{x:.1f}' y='{height - 4}' text-anchor='middle'>{100 * value:.0f}</text>")
    return "".join(marks)


def _dots(
    rows: list[Row], series: list[tuple[str, str, Callable[[Row], float | None]]], title: str, caption: str
) -> str:
    """A dot plot: series are (name, colour, value of a row)."""
    left, height = 96, 26 * len(rows) + 28
    content, said = [_axis(height, left, 1.0)], []
    for k, row in enumerate(rows):
        y = 18 + 26 * k
        content.append(f"<text x='{left - 8}' y='{y + 4}' text-anchor='end'>{escape(row.entry.title)}</text>")
        values = [(name, colour, value(row)) for name, colour, value in series]
        values = [(name, colour, value) for name, colour, value in values if value is not None]
        places = [left + (450 - left) * value for _, _, value in values]
        if places:
            content.append(f"<line x1='{min(places):.1f}' x2='{max(places):.1f}' y1='{y}' y2='{y}' class='ris-join'/>")
        for x, (name, colour, value) in zip(places, values):
            tip = f"{row.entry.title}, {name}: {100 * value:.1f}"
            content.append(
                f"<circle cx='{x:.1f}' cy='{y}' r='5.5' fill='{colour}'><title>{escape(tip)}</title></circle>"
            )
        said.append(f"{row.entry.title}: " + ", ".join(f"{name} {100 * value:.1f}" for name, _, value in values))
    key = "".join(f"<span><i style='background:{colour}'></i>{escape(name)}</span>" for name, colour, _ in series)
    figure = _figure(title, caption, height, "".join(content), "; ".join(said))
    return figure.replace("</figcaption>", f"<span class='ris-key'>{key}</span></figcaption>")


def _splits_plot(rows: list[Row]) -> str:
    series = [
        (label, colour, lambda row, split=split: row.of(split, "mIoU")) for (split, label), colour in zip(SPLITS, INK)
    ]
    names = sorted({name for row in rows for name in row.controls()})
    series += [
        (
            f"control: {CONTROLS.get(name, name.replace('_', ' '))}",
            colour,
            lambda row, name=name: row.controls().get(name),
        )
        for name, colour in zip(names, INK[2:])
    ]
    return _dots(
        rows,
        series,
        "Does it read?",
        "mIoU; with a text that is not about the object, a model that reads falls to the left.",
    )


def _kinds_plot(rows: list[Row]) -> str:
    """mIoU by kinds of expressions, which results name `mIoU (kind)`."""
    kinds = list(
        dict.fromkeys(name for row in rows for name in row.results.get("test", {}) if name.startswith("mIoU ("))
    )
    colours = (
        "#7dd3fc",
        "#38bdf8",
        "#0284c7",
        "#0c4a6e",
        "#d97706",
        "#9333ea",
        "#059669",
        "#be123c",
        "#64748b",
        "#0f172a",
    )
    series = [
        (name.removeprefix("mIoU (").rstrip(")"), colour, lambda row, name=name: row.of("test", name))
        for name, colour in zip(kinds, colours)
    ]
    return _dots(rows, series, "By kinds of expressions", "mIoU on test.") if series else ""


# Where a label may stand beside its point, in order of preference: offsets of its anchor, and which end that is.
LABEL_PLACES = (
    (-9, 4, "end"),
    (9, 4, "start"),
    (0, -10, "middle"),
    (0, 18, "middle"),
    (-7, -8, "end"),
    (7, -8, "start"),
    (-7, 16, "end"),
    (7, 16, "start"),
)


def _size_plot(rows: list[Row]) -> str:
    left, right, height = 40, 430, 236
    sizes, values = (
        [row.parameters / 1e6 for row in rows] or [0.0],
        [row.of("test", "mIoU") or 0 for row in rows] or [0.0],
    )
    least, most = max(0.0, min(sizes) - 0.2), max(sizes) + 0.2
    low, high = max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02)
    content, said = [], []
    for k in range(5):
        y = 206 - 196 * k / 4
        content.append(f"<line x1='{left}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}' class='ris-grid'/>")
        label = f"{100 * (low + (high - low) * k / 4):.1f}"
        content.append(f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>")
        x = left + (right - left) * k / 4
        content.append(f"<text x='{x:.1f}' y='226' text-anchor='middle'>{least + (most - least) * k / 4:.1f} M</text>")
    points = [
        (left + (right - left) * (size - least) / (most - least), 206 - 196 * (value - low) / (high - low or 1))
        for size, value in zip(sizes, values)
    ]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for row, value, (x, y) in zip(rows, values, points):
        content.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5.5' fill='{INK[0]}'/>")
        at, base, anchor = label_place(x, y, 6.2 * len(row.entry.title), taken, (left, right))
        content.append(f"<text x='{at:.1f}' y='{base:.1f}' text-anchor='{anchor}'>{escape(row.entry.title)}</text>")
        said.append(f"{row.entry.title}: {row.parameters / 1e6:.2f} million parameters, mIoU {100 * value:.1f}")
    return _figure("Size", "mIoU on test over parameters.", height, "".join(content), "; ".join(said))


def label_place(
    x: float, y: float, width: float, taken: list[tuple[float, float, float, float]], sides: tuple[float, float]
) -> tuple[float, float, str]:
    """Anchor and baseline of the label of a point at (x, y), where it covers least of the boxes `taken` (left, top,
    right, bottom), to which its own is added, and stays between the sides."""
    found = []
    for over, down, anchor in LABEL_PLACES:
        start = x + over - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        box = (start, y + down - 10, start + width, y + down + 2)
        covered = sum(
            max(0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        )
        beyond = max(0, sides[0] - box[0]) + max(0, box[2] - sides[1])
        found.append((covered + 100 * beyond, box, (x + over, y + down, anchor)))
    _, box, place = min(found, key=lambda one: one[0])
    taken.append(box)
    return place
