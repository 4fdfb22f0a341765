"""From a raw download to a folder of Parquet shards of the one schema, with its report and data card.

The work is done in `OUT.partial`, which becomes `OUT` in one step when all of it is there. Shards are written under
temporary names, and what a shard holds follows from the raw files and the options alone: a run that was killed goes on
with the shards that are missing, and ends with the same bytes. Annotations lie in an SQLite file and images are read
one by one, so memory does not grow with the data.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..ground_truth import PREPARED_FEATURES, GroundTruth
from . import grefcoco, joint, phrasecut, refcoco, refer
from .card import data_card
from .published import JOINT, PUBLISHED, Counts, differences
from .raw_files import ImageFiles, RawFiles
from .raw_index import IndexReader, RawIndex, write_places
from .rows import Record, Shard, make_row


_ROWS_PER_GROUP = 50
_LISTED = 5  # problems named in a message; the report has all


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a prepared data set, besides its raw files.

    name: one of NAMES, or what another set in refer's format is called (`refer.py`).
    split_by: who split it: "umd" (default) or "google" for refcocog; the others have one, which a set of another name
        must be told only if several lie there. sets: what a joint set is made of. ground_truth, text: see
        `ground_truth.py` and `refcoco.fill`.
    """

    name: str
    split_by: str | None = None
    sets: tuple[str, ...] = ()
    ground_truth: GroundTruth = "union"
    text: str = "sent"
    images_per_shard: int = 500

    def __post_init__(self):
        choices = {**refcoco.SPLIT_BY, **grefcoco.SPLIT_BY, **phrasecut.SPLIT_BY, "joint": (None,)}
        if self.name not in choices:
            refer.check_name(self.name, self.split_by, tuple(choices))
            choices[self.name] = (self.split_by,)
        if self.split_by is None:
            object.__setattr__(self, "split_by", choices[self.name][0])
        if self.split_by not in choices[self.name]:
            known = " or ".join(map(str, choices[self.name]))
            raise ValueError(f"{self.name} is split by {known}, not by {self.split_by}")
        sets = tuple(self.sets) or (joint.DEFAULT_SETS if self.name == "joint" else ())
        object.__setattr__(self, "sets", sets)
        if self.name != "joint" and sets:
            raise ValueError(f"sets are for joint, not for {self.name}")
        if len(set(sets)) < len(sets) or set(sets) - set(JOINT):
            raise ValueError(f"a joint set is made of distinct ones of {', '.join(JOINT)}, not of {sets}")
        if self.ground_truth not in ("union", "sum_equals_one") or self.text not in ("sent", "raw"):
            raise ValueError(
                f"ground_truth is union or sum_equals_one and text sent or raw, not {self.ground_truth}, {self.text}"
            )
        if self.images_per_shard < 1:
            raise ValueError(f"images_per_shard must be at least 1, got {self.images_per_shard}")

    @property
    def title(self) -> str:
        """As `PUBLISHED` has it."""
        return self.name if self.split_by is None else f"{self.name} ({self.split_by})"


def prepare(
    raw: str | Path,
    out: str | Path,
    options: Options,
    *,
    images: Sequence[str | Path] = (),
    workers: int = 1,
    check_counts: bool = True,
    allow_problems: bool = False,
) -> dict[str, Any]:
    """Convert the raw download in `raw` to the folder `out`; returns its report (also `out/report.json`).

    Args:
        raw: the folder that holds the annotations (`refcoco/refs(unc).p`, ...) and the images, or zip archives of them.
        images: folders or zip archives to take the images from instead.
        workers: processes; 1 works in this one.
        check_counts: compare with the published counts of every split.
        allow_problems: leave out images that are missing, damaged or of another size, and blank expressions; the
            report lists them. Otherwise they end the run.

    Raises ValueError with one sentence when something is wrong, and then no `out` appears.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    raw = RawFiles(raw, several=options.name == "joint")
    plan = {"format": 2, **asdict(options), "sources": _sources(raw, options)}
    plan = json.loads(json.dumps(plan))
    if out.exists():
        return _finished(out, plan)
    _begin(partial, plan)
    try:
        _work(raw, partial, plan, options, images, workers, check_counts, allow_problems)
    except sqlite3.Error as error:
        raise ValueError(
            f"the work in {partial} cannot go on ({error}): make room, or remove the folder, and run the command again"
        ) from error
    os.rename(partial, out)
    return _finished(out, plan)


def _work(
    raw: RawFiles,
    partial: Path,
    plan: dict[str, Any],
    options: Options,
    images: Sequence[str | Path],
    workers: int,
    check_counts: bool,
    allow_problems: bool,
) -> None:
    """All of `partial`; the arguments are those of `prepare`."""
    work = partial / "progress"
    if not (work / "index.sqlite").exists():
        _build_index(work, raw, options)
    facts = _read_json(work / "facts.json")
    if check_counts:
        _check_counts(facts, options)
    roots, names = images or [raw.root], _picture_folders(options)
    every = _module(options.name) is refer
    write_places(work / "places.sqlite", ImageFiles(roots, names, given=bool(images), every=every))
    with IndexReader(work / "index.sqlite", work / "places.sqlite") as reader:
        sizes, shared = reader.sizes(), reader.shared_images()
    shards = list(_shards(partial, sizes, options))
    _write_shards(shards, work, workers)
    report = _report(plan, facts, shards, shared)
    problems = report["problems"]
    if problems and not allow_problems:
        raise ValueError(_describe_problems(problems, work))
    (partial / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(data_card(report), encoding="utf-8")


def _read_json(path: Path) -> Any:
    """What an earlier call wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove the folder it is in, and run the command again"
        ) from error


def _sources(raw: RawFiles, options: Options) -> list[dict[str, Any]]:
    """Name and hash of every annotation file."""
    if options.name == "joint":
        files = [file for name in options.sets for file in joint.find(raw, name)]
    else:
        files = list(_module(options.name).find(raw, options.name, options.split_by))
    return [{"file": file.name, "sha256": file.sha256()} for file in files]


def _module(name: str):
    return {"grefcoco": grefcoco, "phrasecut": phrasecut, **dict.fromkeys(refcoco.SPLIT_BY, refcoco)}.get(name, refer)


def _picture_folders(options: Options) -> list[str]:
    names = options.sets or (options.name,)
    return list(dict.fromkeys(folder for name in names for folder in _module(name).PICTURES))


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    report = out / "report.json"
    if not report.is_file():
        raise ValueError(f"{out} is there already and no prepared data set: give another --out")
    report = _read_json(report)
    if report["plan"] != plan:
        raise ValueError(f"{out} holds a data set of other raw files or options: remove it, or give another --out")
    shutil.rmtree(out / "progress", ignore_errors=True)
    return report


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    """Start `partial`, or find that it is of this same plan."""
    path = partial / "progress/plan.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(plan, indent=2))
    elif _read_json(path) != plan:
        raise ValueError(f"{partial} was begun with other raw files or options: remove it, or give another --out")
    (partial / "data").mkdir(exist_ok=True)
    (partial / "progress/shards").mkdir(exist_ok=True)
    for left in partial.glob("data/*.tmp"):
        left.unlink()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _build_index(work: Path, raw: RawFiles, options: Options) -> None:
    """`progress/index.sqlite` with all annotations, and `progress/facts.json` with what was counted on the way."""
    temporary = work / "index.sqlite.tmp"
    index = RawIndex(temporary)
    counts, dropped = {}, {}
    if options.name == "joint":
        for place, name in enumerate(options.sets):
            _, counts[name] = joint.add_source(index, raw, name, options.text, place)
        dropped = joint.drop_leaks(index, options.sets)
    else:
        arguments = () if options.name == "phrasecut" else (options.text,)
        _module(options.name).fill(index, raw, options.name, options.split_by, *arguments)
        counts[options.name] = index.counts()
    blank = [problem._asdict() for _, problem in index.blank]
    index.finish()
    _replace(work / "facts.json", json.dumps({"counts": counts, "dropped": dropped, "blank": blank}))
    os.replace(temporary, work / "index.sqlite")


def _check_counts(facts: dict[str, Any], options: Options) -> None:
    for name, counts in facts["counts"].items():
        title = options.title if name == options.name else Options(name).title
        if title not in PUBLISHED:
            continue
        published = PUBLISHED[title]
        if name == "phrasecut":  # its splits are files of their own, each of which may be absent
            published = {split: published[split] for split in counts}
        wrong = differences({split: Counts(*values) for split, values in counts.items()}, published)
        if wrong:
            raise ValueError(
                f"{title} is not the published data set: {'; '.join(wrong)}; --skip-count-check prepares it anyway"
            )


def _shards(partial: Path, sizes: dict[str, int], options: Options) -> Iterator[Shard]:
    step = options.images_per_shard
    for split, size in sizes.items():
        number = -(-size // step)
        for place in range(number):
            name = f"{split}-{place:05d}-of-{number:05d}"
            file, record = partial / f"data/{name}.parquet", partial / f"progress/shards/{name}.json"
            yield Shard(file, record, split, place * step, min((place + 1) * step, size), options.ground_truth)


def _write_shards(shards: list[Shard], work: Path, workers: int) -> None:
    """Write the shards that are missing, and those that had problems: the images may have been mended."""
    missing = [shard for shard in shards if not _is_done(shard)]
    total = sum(shard.stop - shard.start for shard in shards)
    left = sum(shard.stop - shard.start for shard in missing)
    with tqdm(total=total, initial=total - left, unit="image", desc="shards") as bar:
        if workers == 1:
            for shard in missing:
                bar.update(_write_shard(shard, work))
            return
        with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
            try:
                for future in as_completed([pool.submit(_write_shard, shard, work) for shard in missing]):
                    bar.update(future.result())
            except BrokenProcessPool as error:
                raise ValueError(
                    "a worker was ended from outside, perhaps for its memory: run the command again, which goes on "
                    "where it stands, with fewer --workers"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once."""

    def watch():
        connection.wait([parent_process().sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _is_done(shard: Shard) -> bool:
    if not shard.record.is_file():
        return False
    return not _read_json(shard.record)["problems"]


def _write_shard(shard: Shard, work: Path) -> int:
    """Write Parquet file and record of a shard; returns how many images it went through."""
    temporary = shard.file.with_name(f"{shard.file.name}.{os.getpid()}.tmp")
    record = Record()
    schema = PREPARED_FEATURES.arrow_schema
    with IndexReader(work / "index.sqlite", work / "places.sqlite") as reader, temporary.open("wb") as stream:
        # photographs are compressed already, and they are nearly all of it
        with pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer:
            rows = []
            for image, objects, expressions in reader.rows(shard.split, shard.start, shard.stop):
                row = make_row(reader, image, objects, expressions, record, shard)
                rows += [] if row is None else [row]
                if len(rows) == _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, shard.file)
    _replace(shard.record, json.dumps(asdict(record)))
    return shard.stop - shard.start


def _report(plan: dict[str, Any], facts: dict[str, Any], shards: list[Shard], shared: int) -> dict[str, Any]:
    """All that is known of the set: counts of splits, problems, hashes. Deterministic, so no date and no speed."""
    splits: dict[str, dict[str, Any]] = {}
    problems, remarks, digest = list(facts["blank"]), [], hashlib.sha256()
    for shard in shards:
        record = _read_json(shard.record)
        problems += record.pop("problems")
        remarks += record.pop("remarks")
        for line in record.pop("hashes"):
            digest.update(f"{line}\n".encode())
        total = splits.setdefault(shard.split, {"shards": 0})
        total["shards"] += 1
        for name, value in record.items():
            total[name] = total.get(name, 0) + value
    return {
        "plan": plan,
        "splits": splits,
        "raw_counts": facts["counts"],
        "dropped": facts["dropped"],
        "images_in_several_splits": shared,
        "images_sha256": digest.hexdigest(),
        "problems": problems,
        "remarks": remarks,
    }


def _describe_problems(problems: list[dict[str, Any]], work: Path) -> str:
    """One sentence, after writing them all to `progress/problems.jsonl`."""
    path = work / "problems.jsonl"
    _replace(path, "".join(f"{json.dumps(problem)}\n" for problem in problems))
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[problem["problem"]] = kinds.get(problem["problem"], 0) + 1
    named = [
        " ".join(filter(None, (problem["file_name"], f"({problem['problem']})", problem["detail"])))
        for problem in problems[:_LISTED]
    ]
    lost = sum(problem["expressions"] for problem in problems)
    counted = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return (
        f"{counted}, with {lost} expressions: {', '.join(named)}{', ...' * (len(problems) > _LISTED)}; all are listed "
        f"in {path}. Mend them and run the command again, which goes on where it stands, or leave them out with "
        "--allow-problems"
    )
