"""Raw downloads as they lie: folders and zip archives (which stay packed), and JSON too large to load."""

import codecs
import hashlib
import io
import json
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from .brief import brief


_CHUNK = 1 << 20
LARGEST_PICTURE = 1 << 28  # bytes, of a file
_LARGEST_VALUE = 1 << 28  # signs of one value in a JSON file, of which the window must hold all
_LARGEST_RATIO = 200  # of an annotation file to its packed form; JSON and pickles of annotations have 3 to 30
_LONGEST_NAME = 255  # bytes, what file systems take
# What zipfile was seen to raise on archives with flipped bytes or of methods that it lacks.
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_PICTURES = (".jpg", ".jpeg", ".png")
_DEPTH = 5  # of folders below the raw folder in which pictures are looked for: images/mscoco/images/train2014


@dataclass(frozen=True)
class RawFile:
    """A file on disk, or `member` of the zip archive at `path`; `name` is what it is called in every layout."""

    name: str
    path: Path
    member: str | None = None

    def open(self) -> BinaryIO:
        """The content; ValueError, also while it is read, where the archive is damaged, packs it by a method that
        Python lacks, or packs it so tightly that it is no annotation file."""
        if self.member is None:
            return self.path.open("rb")
        return io.BufferedReader(_Unpacked(self.path, self.member), _CHUNK)

    def sha256(self) -> str:
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class _Unpacked(io.RawIOBase):
    """A member of a zip archive, unpacked while it is read."""

    def __init__(self, path: Path, member: str):
        self.what, self.position = f"{member} in {path}", 0
        try:
            self.archive = zipfile.ZipFile(path)
            info = self.archive.getinfo(member)
            if info.file_size > _LARGEST_RATIO * max(info.compress_size, 1 << 16):
                raise ValueError(f"it is {info.file_size:,} bytes in {info.compress_size:,}, which no annotations are")
            self.stream = self.archive.open(info)
        except (*_ZIP_DAMAGE, KeyError) as error:
            raise ValueError(f"{self.what} cannot be unpacked: {error}") from error

    def readable(self) -> bool:
        return True

    def tell(self) -> int:  # readers ask, to say where something is wrong
        return self.position

    def readinto(self, buffer) -> int:
        try:
            data = self.stream.read(len(buffer))
        except _ZIP_DAMAGE as error:
            raise ValueError(f"{self.what} cannot be unpacked: {error}") from error
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
            self.archive.close()
        super().close()


class Packed(NamedTuple):
    """Where a member of a zip archive lies, so that it can be read without the archive's directory in memory.

    size, unpacked: its bytes in the archive, and what it has unpacked.
    """

    name: str
    archive: str
    offset: int
    size: int
    unpacked: int
    method: int
    crc: int


class RawFiles:
    """Everything below `root`, a folder, and in the zip archives in it and in its subfolders; or one zip archive.

    several: the root holds several data sets, so that files in itself belong to none of them.

    Raises ValueError where an archive is damaged, encrypted or has an entry that leads outside it.
    """

    def __init__(self, root: str | Path, several: bool = False):
        self.root, self.several = Path(root).expanduser(), several
        if not self.root.exists():
            raise ValueError(f"there is no {self.root}: --raw takes the folder that the downloads lie in")
        is_folder = self.root.is_dir()
        found = [*self.root.glob("*.zip"), *self.root.glob("*/*.zip")] if is_folder else [self.root]
        self.archives = {path: _members(path) for path in sorted(found)}

    def find(self, folder: str, *names: str) -> RawFile:
        """The first of `names` that is there: in `folder`, in the root itself, or in an archive under that path."""
        places = [self.root / folder] if self.several else [self.root / folder, self.root]
        for name in names:
            for place in places:
                if (place / name).is_file():
                    return RawFile(f"{folder}/{name}", place / name)
            for path, members in self.archives.items():
                own = path.stem == folder
                for member in members:
                    if f"/{member}".endswith(f"/{folder}/{name}") or (own and PurePosixPath(member).name == name):
                        return RawFile(f"{folder}/{name}", path, member)
        wanted = " or ".join(f"{folder}/{name}" for name in names)
        raise ValueError(f"{self.root} holds no {wanted}, neither as a file nor in a zip archive")

    def names(self, folder: str, pattern: str) -> list[str]:
        """The names that `find` finds in `folder` and that the regular expression describes, sorted."""
        places = [self.root / folder] if self.several else [self.root / folder, self.root]
        found = {entry.name for place in places if place.is_dir() for entry in place.iterdir() if entry.is_file()}
        for path, members in self.archives.items():
            for member in map(PurePosixPath, members):
                if path.stem == folder or member.parent.name == folder:
                    found.add(member.name)
        return sorted(name for name in found if re.fullmatch(pattern, name))


class ImageFiles:
    """Pictures by file name: in the folders of these names below the roots, and in zip archives."""

    def __init__(self, roots: Sequence[str | Path], folder_names: Sequence[str], given: bool = False, every=False):
        """given: the roots are the picture folders themselves (or archives), not to be searched. every: folders of
        other names count too, after these."""
        self.folders: list[str] = []
        self.archives: list[Path] = []
        for root in map(Path, roots):
            if not root.exists():
                raise ValueError(f"there is no {root} to take the images from")
            if root.is_file():
                self.archives.append(root)
                continue
            self.folders += [str(root)] * given + _folders(root, set(folder_names), _DEPTH)
            if every:
                self.folders += [folder for folder in _folders(root, None, _DEPTH) if folder not in self.folders]
            self.archives += sorted([*root.glob("*.zip"), *root.glob("*/*.zip")])
        self.folder_names = tuple(folder_names)

    def packed(self) -> Iterator[Packed]:
        """Every picture in the archives; of two with one name the first counts."""
        for path in self.archives:
            _members(path)
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = PurePosixPath(info.filename).name
                    if name.lower().endswith(_PICTURES):
                        sizes = info.header_offset, info.compress_size, info.file_size
                        if max(sizes) >= 1 << 62:
                            raise ValueError(f"{path} is no whole zip archive: {name} would be of {max(sizes)} bytes")
                        yield Packed(name, str(path), *sizes, info.compress_type, info.CRC)


def read_packed(entry: Packed) -> bytes:
    """The content of a zip member, stored or deflated.

    Raises OSError where it is not what the archive's directory says, and where it is larger than any picture.
    """
    if max(entry.size, entry.unpacked) > LARGEST_PICTURE:
        raise OSError(f"{entry.name} would be {max(entry.size, entry.unpacked):,} bytes, more than any picture has")
    with open(entry.archive, "rb") as stream:
        stream.seek(entry.offset)
        header = stream.read(30)
        if header[:4] != b"PK\x03\x04":
            raise OSError(f"{entry.archive} has no member at byte {entry.offset}")
        stream.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        data = stream.read(entry.size)
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise OSError(f"{entry.archive} packs {entry.name} by method {entry.method}; stored and deflated can be read")
    try:
        if entry.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(wbits=-15).decompress(data, entry.unpacked + 1)
    except zlib.error as error:
        raise OSError(f"{entry.name} cannot be unpacked: {error}") from error
    if zlib.crc32(data) != entry.crc:
        raise OSError(f"{entry.name} does not have the checksum of the archive's directory")
    return data


def check_name(name: Any, what: str) -> str:
    """`name` if it is a plain file name; ValueError if it is a path, which could lead outside the picture folder."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(
            f"{what} names the image file {brief(name)}, but it must be a plain file name, without folders"
        )
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} names the image file {brief(name)}, which is no text") from error
    if length > _LONGEST_NAME:
        raise ValueError(f"{what} names the image file {brief(name)}, whose name is longer than {_LONGEST_NAME} bytes")
    return name


def _folders(root: Path, names: set[str] | None, depth: int) -> list[str]:
    """Folders of these names (None: all), at most `depth` levels below `root`, in order."""
    with os.scandir(root) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found = []
    for name in below:
        if names is None or name in names:
            found.append(str(root / name))
        if depth > 1:
            found += _folders(root / name, names, depth - 1)
    return found


def _members(path: Path) -> list[str]:
    """The names of an archive's entries, all of which stay inside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _ZIP_DAMAGE as error:
        raise ValueError(f"{path} is no whole zip archive: {error}") from error
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if ".." in parts or re.match(r"[/\\]|[A-Za-z]:", entry.filename):
            raise ValueError(f"{path} is refused: its entry {entry.filename!r} leads outside the archive")
        if entry.flag_bits & 1:
            raise ValueError(f"{path} is encrypted ({entry.filename}): unpack it first")
    return [entry.filename for entry in entries]


def iterate_json(stream: BinaryIO, name: str) -> Iterator[tuple[str | None, Any]]:
    """The content of a JSON file piece by piece, with one piece in memory.

    A top-level array gives (None, item) for each item. A top-level object gives, key by key, (key, item) for each item
    of an array and (key, value) for any other value.
    """
    text = _Text(stream, name)
    opening = text.next_sign()
    if opening == "[":
        for item in text.items():
            yield None, item
    elif opening == "{":
        while text.next_sign(expected='"}') == '"':
            key = text.value(text.position - 1)
            text.next_sign(expected=":")
            if text.peek() == "[":
                text.next_sign()
                for item in text.items():
                    yield key, item
            else:
                yield key, text.value()
            if text.next_sign(expected=",}") == "}":
                break
    else:
        raise ValueError(f"{name} is no JSON file: it begins with {opening!r}")


class _Text:
    """A window on a UTF-8 stream that the JSON decoder reads values from."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream, self.name = stream, name
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.decoder = json.JSONDecoder()
        self.window, self.position, self.ended = "", 0, False

    def read(self, size: int) -> bool:
        """Forget what was used and add more; False at the end."""
        if self.ended:
            return False
        data = self.stream.read(size)
        self.ended = not data
        try:
            more = self.decode(data, self.ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} is not UTF-8: {error}") from error
        self.window, self.position = self.window[self.position :] + more, 0
        return True

    def peek(self) -> str:
        """The next sign that is no white space; "" at the end."""
        while True:
            while self.position < len(self.window):
                if self.window[self.position] not in " \t\r\n":
                    return self.window[self.position]
                self.position += 1
            if not self.read(_CHUNK):
                return ""

    def next_sign(self, expected: str = "") -> str:
        sign = self.peek()
        if not sign or (expected and sign not in expected):
            raise ValueError(f"{self.name} is no whole JSON file: {sign or 'its end'!r} stands where {expected} fits")
        self.position += 1
        return sign

    def value(self, start: int | None = None) -> Any:
        """The value at `start`, by default the next one."""
        if start is None:
            self.peek()
        else:
            self.position = start
        size = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.position)
            except RecursionError as error:
                raise ValueError(f"{self.name} nests too deeply") from error
            except json.JSONDecodeError as error:
                if len(self.window) - self.position > _LARGEST_VALUE:
                    raise ValueError(f"{self.name} holds one value of more than {_LARGEST_VALUE:,} signs") from error
                if not self.read(size):
                    raise ValueError(f"{self.name} is no whole JSON file: {error}") from error
            except ValueError as error:  # of more digits than Python reads
                raise ValueError(f"{self.name} holds what is no whole number of at most 62 bits: {error}") from error
            else:
                # a number at the window's end may go on: of 0.5 the window has 0. perhaps
                if (end < len(self.window) and self.window[end] not in "0123456789.eE+-") or not self.read(size):
                    self.position = end
                    return value
            size *= 2  # a value of many chunks is not decoded again for each

    def items(self) -> Iterator[Any]:
        """Items of the array whose bracket was just read."""
        if self.peek() == "]":
            self.position += 1
            return
        while True:
            yield self.value()
            if self.next_sign(expected=",]") == "]":
                return
