"""The annotations of a raw data set in an SQLite file, so that memory does not grow with them."""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .brief import brief
from .published import Counts
from .raw_files import ImageFiles, Packed


_TABLES = """
CREATE TABLE image (image_id INTEGER PRIMARY KEY, photo INTEGER, file_name TEXT, height INTEGER, width INTEGER,
    source INTEGER);
CREATE TABLE category (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE object (image_id INTEGER, object_id INTEGER, category, bbox TEXT, segmentation TEXT, crowd INTEGER,
    source INTEGER, problem TEXT, UNIQUE (image_id, object_id));
CREATE TABLE expression (source INTEGER, split TEXT, image_id INTEGER, ref_id INTEGER, expression_id INTEGER,
    text TEXT, object_ids TEXT);
CREATE TABLE row (split TEXT, number INTEGER, image_id INTEGER, PRIMARY KEY (split, number));
"""
_SOURCE_STRIDE = 1_000_000_000  # between the ids of the sets that a joint one is made of


_LARGEST = 1 << 62  # of ids, which SQLite keeps in 64 bits and a joint set moves
_LONGEST_SPLIT = 64  # signs; it becomes part of file names


class Problem(NamedTuple):
    """Something that was left out: `expressions` of it with the image."""

    split: str
    image_id: int
    file_name: str
    problem: str
    detail: str
    expressions: int


def is_text(value: Any) -> bool:
    """Whether it is a str that can be written: JSON may hold halves of characters."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _check_ids(**ids: Any) -> None:
    for name, value in ids.items():
        if type(value) is not int or abs(value) >= _LARGEST:
            raise ValueError(f"the {name} id {brief(value)} is no whole number of at most 62 bits")


def _as_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value)
    except RecursionError as error:
        raise ValueError(f"{what} nests too deeply") from error


class RawIndex:
    """What converters fill, by image: pictures, objects and expressions; then `finish` numbers the rows of each split.

    A joint set is filled from several sources, one after the other: `source` tells whose turn it is. Of an image or
    annotation that several of them describe, the first one's words count.
    """

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        self.db = sqlite3.connect(path, isolation_level=None)
        # a file that is not whole is thrown away: no journal is needed
        self.db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;" + _TABLES)
        self.source = 0
        self.blank: list[tuple[int, Problem]] = []  # with their source

    def add_image(self, image_id: int, file_name: str, height: int, width: int, photo: int | None = None) -> None:
        """photo: what tells whether two images are one photograph; by default its id."""
        photo = image_id if photo is None else photo
        _check_ids(image=image_id, photo=photo)
        if not all(type(side) is int and 0 < side < 1 << 31 for side in (height, width)):
            raise ValueError(f"image {image_id} has height x width {brief(height)} x {brief(width)}")
        values = (image_id, photo, file_name, height, width)
        if not self._insert("image", (*values, self.source), ("image_id",)):
            raise ValueError(f"the annotations describe the image with image_id {image_id} twice, and not alike")

    def add_category(self, number: int, name: str) -> None:
        _check_ids(category=number)
        if not is_text(name):
            raise ValueError(f"category {number} has the name {brief(name)}, which is no text")
        self.db.execute("INSERT OR IGNORE INTO category VALUES (?, ?)", (number, name))

    def add_object(
        self, image_id: int, object_id: int, category: int | str, bbox: list, segmentation: Any, crowd: bool
    ) -> None:
        """category: the number of one that is added too, or its name.

        Raises ValueError where something is wrong; `add_broken` then keeps the object for references to it.
        """
        _check_ids(image=image_id, annotation=object_id)
        numbers = isinstance(bbox, list) and all(type(value) in (int, float) and abs(value) < 1e6 for value in bbox)
        if not numbers or len(bbox) != 4:
            raise ValueError(f"annotation {object_id} has bbox {brief(bbox)}, not [x, y, width, height]")
        if not is_text(category):
            _check_ids(category=category)
        drawn = _as_json(segmentation, f"the segmentation of annotation {object_id}")
        values = (image_id, object_id, category, json.dumps(bbox), drawn, int(crowd), self.source, None)
        if not self._insert("object", values, ("image_id", "object_id")):
            self._spoil(
                f"the annotations describe the object with image_id {image_id}, object_id {object_id} twice, and not "
                "alike",
                "image_id = ? AND object_id = ?",
                (image_id, object_id),
            )

    def add_broken(self, image_id: int, object_id: int, problem: str) -> None:
        """An annotation that something is wrong with, which matters only if a reference speaks of it."""
        _check_ids(image=image_id, annotation=object_id)
        values = (image_id, object_id, "", "[]", "null", 0, self.source, problem)
        self._insert("object", values, ("image_id", "object_id"))

    def _spoil(self, problem: str, where: str, values: tuple = ()) -> None:
        self.db.execute(f"UPDATE object SET problem = ? WHERE {where}", (problem, *values))

    def _insert(self, table: str, values: tuple, keys: tuple[str, ...]) -> bool:
        """Insert, unless it is there already; False if the same source has described it in another way."""
        marks = ", ".join("?" * len(values))
        if self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values).rowcount:
            return True
        where = " AND ".join(f"{key} = ?" for key in keys)
        cursor = self.db.execute(f"SELECT * FROM {table} WHERE {where}", values[: len(keys)])
        known, source = cursor.fetchone(), [column[0] for column in cursor.description].index("source")
        return known == values or known[source] != self.source

    def find_object(self, image_id: int, category: str, segmentation: Any) -> int | None:
        """The id of an object of this image with just this category and segmentation."""
        found = self.db.execute(
            "SELECT object_id FROM object WHERE image_id = ? AND category = ? AND segmentation = ?",
            (image_id, category, _as_json(segmentation, "a segmentation")),
        ).fetchone()
        return None if found is None else found[0]

    def add_expression(
        self, split: str, image_id: int, ref_id: int, expression_id: int, text: str, object_ids: list[int]
    ) -> None:
        _check_ids(image=image_id, reference=ref_id, expression=expression_id)
        for number in object_ids:
            _check_ids(annotation=number)
        if not isinstance(split, str) or not re.fullmatch(rf"\w{{1,{_LONGEST_SPLIT}}}", split, re.ASCII):
            raise ValueError(f"reference {ref_id} is of the split {brief(split)}, but a split is a word")
        if not text.strip() or not is_text(text):
            kind = "unreadable expression" if text.strip() else "blank expression"
            self.blank.append((self.source, Problem(split, image_id, "", kind, f"expression {expression_id}", 1)))
            return
        offset = self.source * _SOURCE_STRIDE
        values = (self.source, split, image_id, ref_id + offset, expression_id + offset, text, json.dumps(object_ids))
        self.db.execute("INSERT INTO expression VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def finish(self) -> None:
        """Check that everything an expression names is there, and number the rows of each split by image_id."""
        self.db.execute("CREATE INDEX of_image ON expression (split, image_id)")
        self._none(
            "SELECT e.ref_id, e.image_id FROM expression e LEFT JOIN image i USING (image_id) WHERE i.image_id IS NULL",
            "reference {} speaks of image {}, which the annotations do not list",
        )
        self._none(
            "SELECT e.ref_id, t.value, e.image_id FROM expression e, json_each(e.object_ids) t LEFT JOIN object o ON "
            "o.image_id = e.image_id AND o.object_id = t.value WHERE o.object_id IS NULL",
            "reference {} speaks of annotation {} of image {}, which the annotations do not list",
        )
        self.db.execute(
            "UPDATE object SET problem = 'annotation ' || object_id || ' has the category ' || category || "
            "', which the annotations do not list' WHERE problem IS NULL AND typeof(category) = 'integer' AND "
            "category NOT IN (SELECT id FROM category)"
        )
        self._none(
            "SELECT expression_id, split FROM expression GROUP BY split, expression_id HAVING COUNT(*) > 1",
            "expression id {} comes twice in {}: ids must be unique, evaluation goes by them",
        )
        self.db.execute(
            "INSERT INTO row SELECT split, ROW_NUMBER() OVER (PARTITION BY split ORDER BY image_id) - 1, image_id "
            "FROM (SELECT DISTINCT split, image_id FROM expression)"
        )
        self.db.execute("COMMIT")
        self.db.close()

    def _none(self, query: str, message: str) -> None:
        found = self.db.execute(query + " LIMIT 1").fetchone()
        if found is not None:
            raise ValueError(message.format(*found))

    def counts(self) -> dict[str, Counts]:
        """Of every split of the present source, blank expressions included."""
        rows = self.db.execute(
            "SELECT split, COUNT(DISTINCT ref_id), COUNT(*), COUNT(DISTINCT image_id) FROM expression "
            "WHERE source = ? GROUP BY split ORDER BY MIN(rowid)",
            (self.source,),
        )
        blank = [problem.split for source, problem in self.blank if source == self.source]
        return {split: Counts(refs, said + blank.count(split), images) for split, refs, said, images in rows}


class IndexReader:
    """Rows of a finished index, and the pictures that belong to them, wherever they lie."""

    def __init__(self, index: Path, places: Path):
        self.db = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
        self.places = sqlite3.connect(f"file:{places}?mode=ro", uri=True)
        self.folders = [folder for (folder,) in self.places.execute("SELECT path FROM folder ORDER BY rowid")]

    def __enter__(self) -> "IndexReader":
        return self

    def __exit__(self, *_) -> None:
        self.db.close()
        self.places.close()

    def sizes(self) -> dict[str, int]:
        """Number of rows of each split, in the order in which the raw files have them."""
        order = "SELECT split, COUNT(*) FROM row GROUP BY split ORDER BY split != 'train', split != 'val', split"
        return dict(self.db.execute(order))

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[dict, list[dict], list[dict]]]:
        """(image, its objects, its expressions in this split) of the rows [start, stop), as the raw files have them."""
        self.db.row_factory = sqlite3.Row
        images = self.db.execute(
            "SELECT i.* FROM row JOIN image i USING (image_id) WHERE split = ? AND number >= ? AND number < ? "
            "ORDER BY number",
            (split, start, stop),
        )
        for image in images:
            objects = self.db.execute(
                "SELECT o.object_id, COALESCE(c.name, o.category) AS category, o.bbox, o.segmentation, o.crowd, "
                "o.problem "
                "FROM object o LEFT JOIN category c ON c.id = o.category WHERE image_id = ? ORDER BY o.rowid",
                (image["image_id"],),
            )
            expressions = self.db.execute(
                "SELECT * FROM expression WHERE split = ? AND image_id = ? ORDER BY rowid", (split, image["image_id"])
            )
            yield dict(image), [dict(entry) for entry in objects], [dict(entry) for entry in expressions]

    def shared_images(self) -> int:
        """Photographs that are in more than one split."""
        query = (
            "SELECT COUNT(*) FROM (SELECT photo FROM row JOIN image USING (image_id) GROUP BY photo "
            "HAVING COUNT(DISTINCT split) > 1)"
        )
        return self.db.execute(query).fetchone()[0]

    def place(self, file_name: str) -> Path | Packed | None:
        """Where a picture lies; None where it is missing."""
        for folder in self.folders:
            path = Path(folder, file_name)
            if path.is_file():
                return path
        found = self.places.execute("SELECT * FROM packed WHERE name = ?", (file_name,)).fetchone()
        return None if found is None else Packed(*found)


def write_places(path: Path, images: ImageFiles) -> None:
    """List picture folders and the members of archives, for `IndexReader.place`."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE folder (path TEXT)")
    db.execute(
        "CREATE TABLE packed (name TEXT PRIMARY KEY, archive TEXT, offset INTEGER, size INTEGER, unpacked INTEGER, "
        "method INTEGER, crc INTEGER)"
    )
    db.executemany("INSERT INTO folder VALUES (?)", ((folder,) for folder in images.folders))
    packed: Iterable[Packed] = images.packed()
    db.executemany("INSERT OR IGNORE INTO packed VALUES (?, ?, ?, ?, ?, ?, ?)", packed)
    found = db.execute("SELECT (SELECT COUNT(*) FROM folder) + (SELECT COUNT(*) FROM packed)").fetchone()[0]
    db.commit()
    db.close()
    if not found:
        raise ValueError(
            f"no images were found: they are looked for in folders {' or '.join(images.folder_names)} and in zip "
            "archives below the raw folder; name others with --images"
        )
