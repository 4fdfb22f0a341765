"""Draw a model's answer on a photograph, or galleries of the answers in a file of predictions.

The mask of an expression on a photo, by a bundled or pushed model or a baseline:

    hf-ris draw --model florence-2 photo.jpg "the man in red" out.png
    hf-ris draw --model space/checkpoints/lts-refscenes scene.png "orange chair" figure4.png --heatmap

and beside the truth, where the data set that the photo is of (by its file name or image_id) says the same of it:

    hf-ris draw --model outputs/mine/best --data my_data --split train images/001.jpg "the red box" out.png

The worst answers of a file that `hf-ris evaluate --output` wrote, as a page that stands alone (or as a PNG); those of
one kind of expression; those that changed most between two models; a paper's figure of three models side by side:

    hf-ris draw --predictions a.jsonl --data refscenes --split test --show worst --count 20 worst.html
    hf-ris draw --predictions a.jsonl --data refscenes --split test --kind negation negation.png
    hf-ris draw --predictions a.jsonl b.jsonl --data refscenes --split test --show changed changed.html
    hf-ris draw figure.png --predictions a.jsonl b.jsonl c.jsonl --names LTS CRIS LAVT --expressions 12 40
"""

import argparse
from pathlib import Path

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="PHOTO EXPRESSION... OUT", help="with --predictions: OUT alone")
    parser.add_argument("--model", help="folder or Hub id of a saved model, or the name of a baseline")
    parser.add_argument("--threshold", type=float, help="of the probability (default: the model's own)")
    parser.add_argument("--heatmap", action="store_true", help="draw probabilities, and where it looks, too")
    parser.add_argument("--predictions", nargs="+", type=Path, metavar="FILE.jsonl", help="of one model each")
    parser.add_argument("--names", nargs="+", help="of the models, in the files' order (default: the files' names)")
    parser.add_argument("--data", help="data set of the predictions (default refscenes), or of the photo")
    parser.add_argument("--split", help="of the data set (default test)")
    parser.add_argument("--size", type=int, help="images of the data set that are read, as were evaluated, if not all")
    parser.add_argument("--image-size", type=int, help="side of RefScenes images that were evaluated")
    parser.add_argument("--show", choices=("worst", "best", "random", "changed"), help="which answers (default worst)")
    parser.add_argument("--count", type=int, help="how many (default 12)")
    parser.add_argument("--kind", choices=("location", "ordinal", "negation", "none"), help="of expressions alone")
    parser.add_argument("--expressions", nargs="+", type=int, metavar="ID", help="just these, in this order")
    parser.add_argument("--seed", type=int, help="of random answers (default 0)")


_OF_PREDICTIONS = "names show count kind expressions seed".split()


def run(options: argparse.Namespace) -> Path:
    if (options.model is None) == (options.predictions is None):
        raise ValueError("Give either --model with a photo and expressions, or --predictions with files.")
    if options.model is not None:
        command.refuse_unused(options, _OF_PREDICTIONS, "it is for --predictions")
        if options.data is None:
            command.refuse_unused(options, ["split", "size", "image_size"], "it is of --data")
        return draw_photo(options)
    command.refuse_unused(options, ["threshold", "heatmap"], "it is for --model")
    defaults = {"data": "refscenes", "split": "test", "show": "worst", "count": 12, "seed": 0}
    if options.expressions is not None:
        command.refuse_unused(options, ["show", "count", "kind", "seed"], "--expressions names what is drawn")
    command.fill_in(options, defaults)
    if len(options.words) != 1:
        raise ValueError(f"With --predictions give one file to write, as worst.html; got {' '.join(options.words)}.")
    return draw_predictions(options)


def draw_photo(options: argparse.Namespace) -> Path:
    """One strip per expression: the photo, the truth if it is known, the mask, and with --heatmap the probabilities."""
    import numpy as np

    from hf_ris.drawing import Panel, Strip, heatmap, save_gallery
    from hf_ris.evaluation.galleries import strip
    from hf_ris.models.images_ris import as_pil
    from hf_ris.one_line import pipeline

    if len(options.words) < 3:
        raise ValueError('Give a photo, one or several expressions, and the file to write: photo.jpg "a cup" out.png.')
    photo, *texts, out = options.words
    _check_out(out)
    image, truths = (as_pil(photo), {}) if options.data is None else _row_of(options, photo)
    strips = []
    for answer in pipeline(options.model)(image, texts, threshold=options.threshold):
        mask = np.asarray(answer["mask"]) > 0
        note = f"score {answer['score']:.2f}" if mask.any() else answer.get("remark") or "nothing found"
        drawn = strip(image, answer["text"], truths.get(_same(answer["text"])), {"answer": mask}, note)
        maps = {"probability": answer["heatmap"], "location": answer.get("location")} if options.heatmap else {}
        further = [Panel(heatmap(image, np.asarray(of) / 255), name) for name, of in maps.items() if of is not None]
        strips.append(Strip(drawn.heading, [*drawn.panels, *further], drawn.note))
    save_gallery(out, Path(options.model).name, strips, side=400)
    print(f"{len(strips)} expressions drawn: {out}")
    return Path(out)


def _row_of(options: argparse.Namespace, photo: str) -> tuple:
    """(image, masks bool (H, W) by text as `_same` gives it) of a photo in a data set.

    Raises:
        ValueError: the data set has no such photo.
    """
    from hf_ris.data import expression_mask, is_video_data, load_split

    split = options.split or "test"
    rows = load_split(options.data, split, options.size, options.image_size)
    if is_video_data(rows):
        raise ValueError(f"{options.data} holds videos; draw takes a data set of images.")
    names = rows["file_name"]
    wanted = {photo, Path(photo).resolve()}
    for place, (name, image_id) in enumerate(zip(names, rows["image_id"], strict=True)):
        if wanted & {name, str(image_id), Path(options.data, name).resolve()}:
            row = rows[place]
            texts = [_same(said["text"]) for said in row["expressions"]]
            # of a text that is said of several things, none is the truth
            once = [said for said, text in zip(row["expressions"], texts) if texts.count(text) == 1]
            return row["image"].convert("RGB"), {_same(said["text"]): expression_mask(row, said) for said in once}
    such = f", which are called as {names[0]}" if len(names) else ""
    raise ValueError(f"The split {split} of {options.data} has no image {photo} among its {len(names)}{such}.")


def _same(text: str) -> str:
    """Texts that differ in case and blanks alone are the same."""
    return " ".join(text.casefold().split())


def draw_predictions(options: argparse.Namespace) -> Path:
    from hf_ris.data import load_split
    from hf_ris.drawing import save_gallery
    from hf_ris.evaluation.galleries import choose, heading, strips_of
    from hf_ris.metrics.predictions import read_predictions

    out = _check_out(options.words[0])
    names = options.names or [path.stem for path in options.predictions]
    if len(set(names)) != len(options.predictions):
        raise ValueError(f"--names must name each of the {len(options.predictions)} files differently, got {names}.")
    models = dict(zip(names, map(read_predictions, options.predictions)))
    first, *others = models.values()
    if options.expressions is not None:
        by_id = {line["expression_id"]: line for line in first}
        missing = [key for key in options.expressions if key not in by_id]
        if missing:
            raise ValueError(f"{options.predictions[0]} has no expression {missing[0]}.")
        chosen, title = [by_id[key] for key in options.expressions], f"Answers of {' and '.join(names)}"
    else:
        other = others[0] if others else None
        chosen = choose(first, options.show, options.count, options.kind, other, options.seed)
        title = heading(options.show, len(chosen), names, options.kind)
    rows = load_split(options.data, options.split, options.size, options.image_size)
    save_gallery(out, f"{title} on {options.data} {options.split}", strips_of(chosen, rows, models))
    print(f"{len(chosen)} expressions drawn: {out}")
    return out


def _check_out(name: str) -> Path:
    """Before anything is loaded. Raises ValueError for a name that is neither a page's nor a picture's."""
    path = Path(name)
    if path.suffix not in (".html", ".png"):
        raise ValueError(f"The file to write is a .html page or a .png picture, so {name} must end in one of these.")
    return path


def main(arguments: list[str] | None = None) -> Path:
    return command.run("draw", arguments)
