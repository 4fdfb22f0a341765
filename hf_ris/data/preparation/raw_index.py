"""The annotations of a raw data set in an SQLite file, so that memory does not grow with them."""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .published import Counts
from .raw_files import ImageFiles, Packed


_TABLES = """
CREATE TABLE image (image_id INTEGER PRIMARY KEY, photo INTEGER, file_name TEXT, height INTEGER, width INTEGER,
    source INTEGER);
CREATE TABLE category (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE object (image_id INTEGER, object_id INTEGER, category, bbox TEXT, segmentation TEXT, crowd INTEGER,
    source INTEGER, UNIQUE (image_id, object_id));
CREATE TABLE expression (source INTEGER, split TEXT, image_id INTEGER, ref_id INTEGER, expression_id INTEGER,
    text TEXT, object_ids TEXT);
CREATE TABLE row (split TEXT, number INTEGER, image_id INTEGER, PRIMARY KEY (split, number));
"""
_SOURCE_STRIDE = 1_000_000_000  # between the ids of the sets that a joint one is made of


class Problem(NamedTuple):
    """Something that was left out: `expressions` of it with the image."""

    split: str
    image_id: int
    file_name: str
    problem: str
    detail: str
    expressions: int


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
        values = (image_id, image_id if photo is None else photo, file_name, height, width)
        if not all(type(value) is int for value in (image_id, height, width)) or min(height, width) < 1:
            raise ValueError(f"image {image_id!r} has height x width {height!r} x {width!r}")
        self._insert("image", values, ("image_id",))

    def add_category(self, number: int, name: str) -> None:
        self.db.execute("INSERT OR IGNORE INTO category VALUES (?, ?)", (number, name))

    def add_object(
        self, image_id: int, object_id: int, category: int | str, bbox: list, segmentation: Any, crowd: bool
    ) -> None:
        """category: the number of one that is added too, or its name."""
        numbers = isinstance(bbox, list) and all(type(value) in (int, float) and abs(value) < 1e6 for value in bbox)
        if not numbers or len(bbox) != 4:
            raise ValueError(f"annotation {object_id} has bbox {bbox!r}, not [x, y, width, height]")
        values = (image_id, object_id, category, json.dumps(bbox), json.dumps(segmentation), int(crowd))
        self._insert("object", values, ("image_id", "object_id"))

    def _insert(self, table: str, values: tuple, keys: tuple[str, ...]) -> None:
        """Insert, unless it is there already; ValueError if the same source has described it in another way."""
        marks = ", ".join("?" * (len(values) + 1))
        if self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", (*values, self.source)).rowcount:
            return
        where = " AND ".join(f"{key} = ?" for key in keys)
        known = self.db.execute(f"SELECT * FROM {table} WHERE {where}", values[: len(keys)]).fetchone()
        if known != (*values, self.source) and known[-1] == self.source:
            named = ", ".join(f"{key} {value}" for key, value in zip(keys, values))
            raise ValueError(f"the annotations describe the {table} with {named} twice, and not alike")

    def find_object(self, image_id: int, category: str, segmentation: Any) -> int | None:
        """The id of an object of this image with just this category and segmentation."""
        found = self.db.execute(
            "SELECT object_id FROM object WHERE image_id = ? AND category = ? AND segmentation = ?",
            (image_id, category, json.dumps(segmentation)),
        ).fetchone()
        return None if found is None else found[0]

    def add_expression(
        self, split: str, image_id: int, ref_id: int, expression_id: int, text: str, object_ids: list[int]
    ) -> None:
        if not isinstance(split, str) or not re.fullmatch(r"\w+", split):
            raise ValueError(f"reference {ref_id} is of the split {split!r}, but a split is a word")
        if not text.strip():
            problem = Problem(split, image_id, "", "blank expression", f"expression {expression_id}", 1)
            self.blank.append((self.source, problem))
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
        self._none(
            "SELECT o.object_id, o.category FROM object o LEFT JOIN category c ON c.id = o.category "
            "WHERE typeof(o.category) = 'integer' AND c.id IS NULL",
            "annotation {} has the category {}, which the annotations do not list",
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
                "SELECT o.object_id, COALESCE(c.name, o.category) AS category, o.bbox, o.segmentation, o.crowd "
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
        "CREATE TABLE packed (name TEXT PRIMARY KEY, archive TEXT, offset INTEGER, size INTEGER, method INTEGER, "
        "crc INTEGER)"
    )
    db.executemany("INSERT INTO folder VALUES (?)", ((folder,) for folder in images.folders))
    packed: Iterable[Packed] = images.packed()
    db.executemany("INSERT OR IGNORE INTO packed VALUES (?, ?, ?, ?, ?, ?)", packed)
    found = db.execute("SELECT (SELECT COUNT(*) FROM folder) + (SELECT COUNT(*) FROM packed)").fetchone()[0]
    db.commit()
    db.close()
    if not found:
        raise ValueError(
            f"no images were found: they are looked for in folders {' or '.join(images.folder_names)} and in zip "
            "archives below the raw folder; name others with --images"
        )
