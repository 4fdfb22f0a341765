"""Export of a model as a `torch.export` program (.pt2) or as ONNX, and the check of the file against the model.

The program takes the tensors that the processor makes, by their names, and gives the logits (N, h, w);
`processor.post_process_referring_segmentation` turns these into masks. Images, expressions and words may be as many as
one likes, but for two things: a GRU is unrolled over the words it is traced with, so that LTS and VLT take expressions
padded to the config's `max_text_length`; and pictures have one size, by default the config's square. VATEX is exported
without `pixel_mask`, so its pictures must share that shape.

A video model is exported, as .pt2, for clips of one length, by default its `window_frames`; a longer video would go in
windows, whose number depends on the data. The logits are (N, T, h, w), and clips share shape and length, without
`pixel_mask` and `frame_mask`.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageSegmentation

from hf_ris.benchmark import random_inputs
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


FORMATS = (".pt2", ".onnx")
TOLERANCE = 1e-3  # of a logit
TRACED = (2, 3)  # images and expressions; one of either would be taken for a constant
WORDS = 8
OF_WORDS = {"input_ids", "attention_mask", "prompt_ids", "prompt_mask"}  # inputs whose last axis counts words
SMALL_VOCABULARY = 400


class LogitsOf(nn.Module):
    """A model whose output is its logits alone. (A program that takes `**inputs` does not run in torch 2.15.)"""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        clip_pixel_values: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Tensor:
        """The last three are for a model with VATEX's prior."""
        prior = {"clip_pixel_values": clip_pixel_values, "prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
        prior = {name: value for name, value in prior.items() if value is not None}
        return self.model(pixel_values, input_ids, attention_mask, image_index, **prior).logits


class ClipLogitsOf(LogitsOf):
    """A video model whose output is its logits alone; the inputs of an exported program bear these names."""

    def forward(
        self,
        pixel_values_videos: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        video_index: Tensor,
        clip_pixel_values: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Tensor:
        """As `LogitsOf`, in the same order."""
        prior = (clip_pixel_values, prompt_ids, prompt_mask)
        return super().forward(pixel_values_videos, input_ids, attention_mask, video_index, *prior)


def takes_clips(model: nn.Module) -> bool:
    return model.main_input_name == "pixel_values_videos"


def words_are_fixed(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def example(
    model: nn.Module,
    images: int,
    expressions: int,
    words: int,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
) -> dict[str, Tensor]:
    """Random inputs by name, the first expression shorter than the others.

    size: (height, width) of the pictures. Of a video model images are clips, of `frames`; None is its `window_frames`.
    """
    words = model.config.max_text_length if words_are_fixed(model) else words
    inputs = random_inputs(model.config, expressions, torch.device("cpu"), words, images)
    inputs["attention_mask"][0, words // 2 :] = 0
    if size is not None:
        inputs["pixel_values"] = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(1))
    return _of_clips(model.config, inputs, frames) if takes_clips(model) else inputs


def _of_clips(config, inputs: dict[str, Tensor], frames: int | None) -> dict[str, Tensor]:
    """Inputs of a video model: a clip in place of each image."""
    frames, generator = frames or config.window_frames, torch.Generator().manual_seed(2)
    count, *picture = inputs["pixel_values"].shape
    clips = {"pixel_values_videos": torch.randn(count, frames, *picture, generator=generator)}
    clips |= {name: inputs[name] for name in ("input_ids", "attention_mask")}
    clips["video_index"] = inputs["image_index"]
    if "clip_pixel_values" in inputs:  # of as many frames as its processor shows CLIP
        view = inputs["clip_pixel_values"].shape[-3:]
        clips["clip_pixel_values"] = torch.randn(count, config.prior_frames or frames, *view, generator=generator)
        clips |= {name: inputs[name] for name in ("prompt_ids", "prompt_mask")}
    return clips


@torch.no_grad()
def trace(
    model: nn.Module, size: tuple[int, int] | None = None, frames: int | None = None
) -> torch.export.ExportedProgram:
    """The model's logits as a program of any number of images (or clips) and expressions, and of words where it can
    be."""
    inputs = example(model, *TRACED, WORDS, size, frames)
    free = torch.export.Dim.DYNAMIC
    axes = {name: {0: free} for name in inputs}
    if not words_are_fixed(model):
        axes |= {name: {0: free, inputs[name].ndim - 1: free} for name in OF_WORDS & inputs.keys()}
    logits = ClipLogitsOf(model) if takes_clips(model) else LogitsOf(model)
    return torch.export.export(logits, (), inputs, dynamic_shapes=axes)


# Without gradient, as traced: with a mask that has one (Swin's), attention is another operator with other strides.
@torch.no_grad()
def write(program: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """Save a program in the format of the file's name; `names` are those of its inputs."""
    if path.suffix == ".pt2":
        torch.export.save(program, path)
    else:
        torch.onnx.export(program, input_names=names, output_names=["logits"], verbose=False).save(path)


def read(path: Path) -> Callable[..., Tensor]:
    """What a written file computes, from inputs by name to logits."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime  # not above: of the extra `export`

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: torch.from_numpy(session.run(["logits"], {k: v.numpy() for k, v in inputs.items()})[0])


@torch.no_grad()
def difference(model: nn.Module, path: Path, size: tuple[int, int] | None = None, frames: int | None = None) -> float:
    """The largest difference of a logit between model and file: at the sizes traced, with one of each, with more."""
    program, gap = read(path), 0.0
    for images, expressions, words in ((*TRACED, WORDS), (1, 1, WORDS), (3, 5, WORDS - 2)):
        inputs = example(model, images, expressions, words, size, frames)
        gap = max(gap, (program(**inputs) - model(**inputs).logits).abs().max().item())
    return gap


def small_model(architecture: str) -> nn.Module:
    """With random weights, at the size of its `refscenes` recipe."""
    recipe = load_recipe(f"{architecture}/refscenes")
    torch.manual_seed(0)
    return AutoModelForImageSegmentation.from_config(build_config(recipe, SMALL_VOCABULARY)).eval()


def table(architectures: list[str]) -> str:
    """Markdown: per architecture and format the largest difference of a logit, or what the exporter could not take."""
    lines = ["| | `torch.export` | ONNX | any number of |", "| --- | --- | --- | --- |"]
    for architecture in architectures:
        model, cells = small_model(architecture), []
        with tempfile.TemporaryDirectory() as folder:
            for suffix in FORMATS:
                path = Path(folder) / f"model{suffix}"
                try:
                    write(trace(model), list(example(model, *TRACED, WORDS)), path)
                    cells.append(f"{difference(model, path):.0e}")
                except RuntimeError as error:  # what both exporters raise
                    cells.append(f"no: {str(error).strip().splitlines()[-1]}")
        free = "images, expressions" + ("" if words_are_fixed(model) else ", words")
        lines.append(f"| {architecture} | {' | '.join(cells)} | {free} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def export(model: nn.Module, out: Path, size: tuple[int, int] | None = None, frames: int | None = None) -> float:
    """Write the file and return the largest difference of a logit between it and the model.

    Args:
        size: (height, width) of the pictures; None is the config's square.
        frames: of a video model's clips; None is its `window_frames`.

    Raises:
        ValueError: pictures of that size, or clips of that length, do not fit the model, or the file disagrees with it;
            a video model as ONNX.
    """
    if takes_clips(model) and out.suffix != ".pt2":
        raise ValueError("A video model is exported as a torch.export program: give --out FILE.pt2.")
    if frames is not None:
        check_frames(model, frames)
    try:
        with torch.no_grad():
            model(**example(model, *TRACED, WORDS, size, frames))
    except (ValueError, RuntimeError) as error:  # layers that do not fit each other raise the latter
        raise ValueError(f"The model does not run on pictures of {size or 'its own size'}: {error}") from error
    write(trace(model, size, frames), list(example(model, *TRACED, WORDS, size, frames)), out)
    gap = difference(model, out, size, frames)
    if not gap <= TOLERANCE:
        raise ValueError(f"{out} does not agree with the model: {gap:.1e} is more than {TOLERANCE}.")
    return gap


def check_frames(model: nn.Module, frames: int) -> None:
    """ValueError unless a clip of so many frames is answered at once."""
    if not takes_clips(model):
        raise ValueError(f"--frames is for video models, but {model.config.model_type} takes images.")
    longest = model.config.window_frames
    if not 1 <= frames <= longest:
        raise ValueError(
            f"--frames is from 1 to {longest}, the model's window_frames, not {frames}: a longer video goes in windows."
        )


def load(reference: str | None, architecture: str | None) -> nn.Module:
    """A saved model in float32, or an architecture's paper configuration with random weights."""
    if reference is not None:
        model = AutoModelForImageSegmentation.from_pretrained(reference, dtype=torch.float32)
    else:
        model = AutoModelForImageSegmentation.from_config(AutoConfig.for_model(architecture))
    return model.eval()
