"""Ref-DAVIS17 (Khoreva, Rohrbach, Schiele, ACCV 2018) from the downloads of DAVIS 2017 and of its expressions.

    DAVIS/{JPEGImages,Annotations_unsupervised}/480p/<video>/<frame>.{jpg,png}
    DAVIS/ImageSets/2017/{train,val}.txt    DAVIS/davis_semantics.json
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt    a line: video object "expression"

Two annotators described each object twice, by the first frame and by the whole video: four sets of annotations, 0 to 3
in that order, whose scores are averaged. Annotator 1's files are UTF-8, annotator 2's Latin-1. Some videos' names are
misspelt there. Value 255 in a map is void.
"""

import re

from .video_sets import VOID, Tree, VideoSource, index_map


PUBLISHED = {"train": 60, "val": 30}  # videos
ANNOTATION_FILES = (  # by annotation set: name, encoding
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_LINE = re.compile(r"""(?P<video>\S+)\s+(?P<object>\d+)\s+["'“]?(?P<text>.*?)["'”]?\s*$""")


def videos(tree: Tree) -> dict[str, list[VideoSource]]:
    """The videos of each split.

    Raises:
        ValueError: files that are missing or lines that cannot be understood.
    """
    said = _annotations(tree)
    categories = tree.json("DAVIS", "davis_semantics.json") if "davis_semantics.json" in tree.names("DAVIS") else {}
    found: dict[str, list[VideoSource]] = {}
    for split in PUBLISHED:
        listed = tree.read("DAVIS/ImageSets/2017", f"{split}.txt").decode("utf-8").split()
        found[split] = [_video(tree, name, said.pop(name, []), categories.get(name, {})) for name in listed]
    if said:
        raise ValueError(
            f"davis_text_annotations speaks of {', '.join(sorted(said)[:3])}, which DAVIS/ImageSets/2017 does not list"
        )
    return found


def _annotations(tree: Tree) -> dict[str, list[tuple[int, int, str]]]:
    """video -> (annotation set, object's number, text)."""
    said: dict[str, list[tuple[int, int, str]]] = {}
    for number, (file, encoding) in enumerate(ANNOTATION_FILES):
        data = tree.read("davis_text_annotations", file)
        try:
            lines = data.decode(encoding).splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"davis_text_annotations/{file} is not {encoding}: {error}") from error
        for place, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.lstrip("\ufeff").strip())
            if match is None or not match["text"].strip():
                raise ValueError(
                    f'davis_text_annotations/{file}, line {place}: not of the form video object "expression"'
                )
            video = MISSPELT.get(match["video"], match["video"])
            said.setdefault(video, []).append((number, int(match["object"]), match["text"].strip()))
    return said


def _video(tree: Tree, name: str, said: list[tuple[int, int, str]], categories: dict[str, str]) -> VideoSource:
    pictures, maps = f"DAVIS/JPEGImages/480p/{name}", f"DAVIS/Annotations_unsupervised/480p/{name}"
    frames, annotations = tree.names(pictures), tree.names(maps)
    if not frames or [file.rpartition(".")[0] for file in frames] != [file.rpartition(".")[0] for file in annotations]:
        raise ValueError(f"{pictures} has {len(frames)} frames and {maps} {len(annotations)} maps, which should agree")
    values = set()
    for file in annotations:
        values |= set(index_map(tree.read(maps, file), f"{maps}/{file}").ravel().tolist())
    numbers = sorted(values - {0, VOID})
    unknown = sorted({number for _, number, _ in said} - set(numbers))
    if unknown:
        raise ValueError(f"davis_text_annotations speaks of object {unknown[0]} of {name}, which {maps} does not show")
    expressions = [
        {"name": f"{part}_{number}", "text": text, "objects": [numbers.index(number)], "annotation_set": part}
        for part, number, text in said
    ]
    known = {int(number): category for number, category in categories.items()}
    return VideoSource(
        name,
        [(pictures, file) for file in frames],
        [(maps, file) for file in annotations],
        numbers,
        expressions,
        known,
    )
