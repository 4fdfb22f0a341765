"""Images and expressions to tensors, and logits back to masks: one image processor, one processor base.

A geometry is an axis-aligned map from pixels of the original image to pixels of the model's input:

- `squash`: both sides become `image_size`; the aspect ratio is not kept (LTS, LAVT, EAVL, MPG-LQGNet).
- `letterbox`: one scale, centred on an `image_size` square, border in `fill` (CRIS, SegVLM, VLT). One affine warp with
  bicubic sampling, corner pixels at integer coordinates, as their public preprocessing has it.
- `short_side`: the short side becomes `image_size`, the batch is padded right and below with a pixel mask (VATEX).
- `center_crop`: the short side becomes `image_size`, and of the long one its middle is kept (CLIP's own).

Post-processing evaluates the inverse map at every original pixel centre, so it is exact for all of them. The map is
axis-aligned, so this is done axis by axis (`resampling.py`), in bands of rows.
"""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.processing_utils import ProcessorMixin

from .arguments_ris import (
    argument_names,
    check_expression,
    check_return_tensors,
    check_whole,
    checked_sizes,
    checked_threshold,
    checked_triple,
    refuse_unknown,
)
from .configuration_ris import RisConfig
from .hub_ris import HubMixin
from .images_ris import binary_mask, pictures, show
from .masks_ris import cut, known_logits
from .resampling import Taps, resample, sample_grid, taps
from .vocabulary import UnknownWords, unknown_words


GEOMETRIES = ("squash", "letterbox", "short_side", "center_crop")

MAX_CANVAS_PIXELS = 2**24  # of `short_side`, whose canvas follows the images: a long strip would take all memory

# What transformers writes into a processor's JSON beside its arguments.
_WRITTEN_BY_TRANSFORMERS = frozenset(("image_processor_type", "feature_extractor_type", "processor_class", "auto_map"))
# What tells `from_pretrained` where the files are, not what the processor does.
_LOADING_ARGUMENTS = frozenset(
    "cache_dir force_download local_files_only token revision subfolder proxies trust_remote_code code_revision "
    "user_agent repo_type config use_fast _from_auto _from_pipeline _commit_hash".split()
)


class RisImageProcessor(BaseImageProcessor):
    """Image geometry and normalisation of one architecture.

    Args:
        geometry: one of `GEOMETRIES`.
        image_size: side of the square, or the short side, in pixels.
        image_mean, image_std: of values in [0, 1].
        fill: RGB in [0, 255] of the letterbox border; None is the mean colour.
        max_size: `short_side` only: limit of the long side (the scale shrinks to meet it).
        size_divisor: `short_side` only: the padded sides are multiples of this.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        geometry: str = "squash",
        image_size: int = 480,
        image_mean: list[float] | tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        image_std: list[float] | tuple[float, ...] = IMAGENET_DEFAULT_STD,
        fill: list[float] | None = None,
        max_size: int | None = None,
        size_divisor: int = 32,
        **kwargs,
    ):
        owner = type(self).__name__
        refuse_unknown(owner, set(kwargs) - _WRITTEN_BY_TRANSFORMERS, argument_names(RisImageProcessor.__init__))
        super().__init__(**kwargs)
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry must be one of {', '.join(GEOMETRIES)}, got {show(geometry)}.")
        check_whole(owner, image_size=image_size, max_size=max_size, size_divisor=size_divisor)
        self.geometry = geometry
        self.image_size = image_size
        self.image_mean = checked_triple(owner, "image_mean", image_mean)
        self.image_std = checked_triple(owner, "image_std", image_std)
        if min(self.image_std) <= 0:
            raise ValueError(f"{owner}: image_std must be above 0, got {self.image_std}.")
        self.fill = None if fill is None else checked_triple(owner, "fill", fill)
        self.max_size = max_size
        self.size_divisor = size_divisor

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """As in transformers; an argument that nothing would read is refused."""
        own = argument_names(cls.__init__)
        unused = {"return_unused_kwargs"} | _LOADING_ARGUMENTS
        refuse_unknown(f"{cls.__name__}.from_pretrained", set(kwargs) - unused - set(own), own)
        changed = {name: kwargs.pop(name) for name in own if name in kwargs}
        return super().from_dict(image_processor_dict | changed, **kwargs)

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in input pixels that an image of this size covers (without border or padding)."""
        if self.geometry in ("squash", "center_crop"):
            return self.image_size, self.image_size
        if self.geometry == "letterbox":
            scale = self.image_size / max(height, width)
        else:
            scale = self.image_size / min(height, width)
            if self.max_size is not None:
                scale = min(scale, self.max_size / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def canvas_size(self, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        """(height, width) of the input tensor for a batch of images of these original sizes."""
        if self.geometry != "short_side":
            return self.image_size, self.image_size
        contents = [self.content_size(*size) for size in sizes]
        divisor = self.size_divisor
        return tuple(math.ceil(max(sides) / divisor) * divisor for sides in zip(*contents))

    def affine(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(scale_y, offset_y, scale_x, offset_x): original pixel index i maps to input index scale * i + offset."""
        if self.geometry == "letterbox":
            scale = min(self.image_size / height, self.image_size / width)
            return scale, (self.image_size - scale * height) / 2, scale, (self.image_size - scale * width) / 2
        content_h, content_w = self.content_size(height, width)
        left, top, right, bottom = self.box(height, width)
        scale_y, scale_x = content_h / (bottom - top), content_w / (right - left)
        # pixel centres at half-integers
        return scale_y, scale_y * (0.5 - top) - 0.5, scale_x, scale_x * (0.5 - left) - 0.5

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in original pixels of what the model sees: all but for `center_crop`."""
        if self.geometry != "center_crop":
            return 0, 0, width, height
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def preprocess(self, images, return_tensors: str | None = "pt", **unknown) -> BatchFeature:
        """One image or a list -> pixel_values (B, 3, H, W) float32; pixel_mask (B, H, W) long for `short_side`.

        Raises:
            ValueError: an image that cannot be read, or images too long and narrow for one canvas.
            TypeError: an unknown argument.
        """
        refuse_unknown(type(self).__name__, unknown, ("images", "return_tensors"))
        check_return_tensors(return_tensors)
        images = pictures(images)
        canvas = self.checked_canvas(images)
        data = {"pixel_values": self.write_pixels(torch.zeros(len(images), 3, *canvas), images)}
        if self.geometry == "short_side":
            data["pixel_mask"] = self.pixel_mask(images, canvas)
        return BatchFeature(data, tensor_type=return_tensors)

    def checked_canvas(self, images: list[Image.Image]) -> tuple[int, int]:
        """`canvas_size` of images. Raises ValueError for one that is out of proportion."""
        sizes = [(image.height, image.width) for image in images]
        canvas = self.canvas_size(sizes)
        if self.geometry == "short_side" and math.prod(canvas) > max(MAX_CANVAS_PIXELS, self.image_size**2):
            raise ValueError(
                f"Images of {', '.join(f'{height} x {width}' for height, width in sizes[:8])} (height x width) need a "
                f"canvas of {canvas[0]} x {canvas[1]}, more than {MAX_CANVAS_PIXELS:,} pixels: cut strips into pieces, "
                "and give upright and lying ones apart."
            )
        return canvas

    def write_pixels(self, out: Tensor, images: list[Image.Image]) -> Tensor:
        """Normalised pixels of n RGB images into `out`, zeros (n, 3, H, W) of a canvas, one by one: a long video is in
        memory once."""
        for place, image in zip(out, images, strict=True):
            content = self._pixels(image)
            place[:, : content.shape[1], : content.shape[2]] = content
        return out

    def pixel_mask(self, images: list[Image.Image], canvas: tuple[int, int]) -> Tensor:
        """(n, H, W) long: 1 = picture, 0 = padding right and below."""
        mask = torch.zeros(len(images), *canvas, dtype=torch.long)
        for row, image in zip(mask, images):
            height, width = self.content_size(image.height, image.width)
            row[:height, :width] = 1
        return mask

    def preprocess_mask(self, mask, canvas: tuple[int, int]) -> Tensor:
        """(H, W) mask of the original image, see `binary_mask` -> (h, w) float32 in [0, 1] at input size."""
        mask = np.ascontiguousarray(binary_mask(mask), dtype=np.uint8)
        if self.geometry == "letterbox":
            warped = self._warp(torch.from_numpy(mask)[None].float(), "bilinear", torch.zeros(1))
            return warped[0].clamp(0, 1)
        height, width = self.content_size(*mask.shape)
        if (height, width) != mask.shape:
            box = self.box(*mask.shape)
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box))
        return self._place(torch.from_numpy(mask.copy())[None].float(), canvas)[0]

    def _pixels(self, image: Image.Image) -> Tensor:
        """Normalised content (3, h, w) of one RGB image."""
        mean, std = torch.tensor(self.image_mean)[:, None, None], torch.tensor(self.image_std)[:, None, None]
        if self.geometry == "letterbox":
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
            fill = torch.tensor(self.fill) if self.fill is not None else torch.tensor(self.image_mean) * 255
            pixels = self._warp(pixels, "bicubic", fill).round().clamp(0, 255)
        else:
            height, width = self.content_size(image.height, image.width)
            if (height, width) != (image.height, image.width):
                image = image.resize((width, height), Image.Resampling.BILINEAR, self.box(image.height, image.width))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return (pixels / 255 - mean) / std

    def _warp(self, pixels: Tensor, mode: str, fill: Tensor) -> Tensor:
        """(C, H, W) through the letterbox map, sampling at input pixels; outside the image is `fill` (C,)."""
        height, width = pixels.shape[-2:]
        if height == width == self.image_size:
            return pixels
        scale_y, offset_y, scale_x, offset_x = self.affine(height, width)
        y = (torch.arange(self.image_size) - offset_y) / scale_y
        x = (torch.arange(self.image_size) - offset_x) / scale_x
        fill = fill[:, None, None]
        return sample_grid((pixels - fill)[None], y, x, mode, "zeros")[0] + fill

    @staticmethod
    def _place(content: Tensor, canvas: tuple[int, int]) -> Tensor:
        height, width = content.shape[-2:]
        return F.pad(content, (0, canvas[1] - width, 0, canvas[0] - height))

    def sampling(
        self, size: tuple[int, int], canvas: tuple[int, int], grid: tuple[int, int], mode: str = "bilinear"
    ) -> tuple[Taps, Taps]:
        """Where maps of `grid` (h, w) cells over a canvas are read for an image's original (height, width) pixels."""
        scale_y, offset_y, scale_x, offset_x = self.affine(*size)
        axes = zip(size, (scale_y, scale_x), (offset_y, offset_x), grid, canvas)
        rows, columns = (
            taps((torch.arange(side, dtype=torch.float64) * scale + offset + 0.5) * cells / pixels - 0.5, cells, mode)
            for side, scale, offset, cells, pixels in axes
        )
        return rows, columns

    def unmap(self, maps: Tensor, size: tuple[int, int], canvas: tuple[int, int], mode: str = "bilinear") -> Tensor:
        """(K, h, w) maps over a canvas, at any resolution, to (K, H, W) at an image's original size."""
        rows, columns = self.sampling(size, canvas, maps.shape[-2:], mode)
        return resample(maps.float(), rows.to(maps.device), columns.to(maps.device))


# a saved folder names it, so that AutoProcessor finds it there without this package
RisImageProcessor.register_for_auto_class("AutoImageProcessor")


class RisProcessor(HubMixin, ProcessorMixin):
    """Image processor and tokenizer of one architecture, and the way back from logits to masks.

    Args:
        image_processor: a `RisImageProcessor`.
        tokenizer: a fast tokenizer that pads on the right.
        max_text_length: tokens kept, special tokens included; longer expressions are cut.
        threshold: a pixel belongs to the mask where its probability is greater.
        enlarges: what is taken from the model's resolution to the original size, "probabilities" or "logits", which
            draw finer outlines if the model was trained at full size (`loss_size` of its config).
    """

    loaded_by_pipeline = False  # `transformers.pipeline` read processor and model from where it was told to
    warns_of_unknown_words = True  # once; not at all where somebody told of them already
    calibration: dict | None = None  # how the threshold was chosen, as `hf-ris evaluate --calibrate` tells it
    interpolation = "bilinear"  # of probabilities, from the model's resolution to the original size
    keeps_end_token = True  # of an expression that is cut; False keeps the first tokens only

    def __init__(
        self,
        image_processor,
        tokenizer,
        max_text_length: int = 20,
        threshold: float = 0.5,
        enlarges: str = "probabilities",
    ):
        owner = type(self).__name__
        if tokenizer is None:
            raise TypeError(f"{owner} takes a tokenizer; see hf_ris.models.text_encoders for those that need no file.")
        super().__init__(image_processor, tokenizer)
        if tokenizer.padding_side != "right":
            raise ValueError(f"{owner}: the models read padding at the end; set the tokenizer's padding_side='right'.")
        if enlarges not in ("probabilities", "logits"):
            raise ValueError(f"{owner}: enlarges is probabilities or logits, got {enlarges!r}.")
        check_whole(owner, max_text_length=max_text_length)
        self.max_text_length = max_text_length
        self.threshold = checked_threshold(threshold)
        self.enlarges = enlarges

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "RisProcessor":
        """As in transformers; arguments of the constructor take the place of those that were saved.

        Raises:
            TypeError: an argument that nothing would read.
        """
        own = argument_names(cls.__init__)
        unknown = set(kwargs) - _LOADING_ARGUMENTS - set(own)
        of_pipeline = "_from_pipeline" in kwargs
        if of_pipeline:  # it gives the processor the model's arguments too
            kwargs = {name: value for name, value in kwargs.items() if name not in unknown}
        else:
            refuse_unknown(f"{cls.__name__}.from_pretrained", unknown, own)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.loaded_by_pipeline = of_pipeline
        return processor

    def to_dict(self, *args, **kwargs) -> dict:
        told = {} if self.calibration is None else {"calibration": self.calibration}
        return super().to_dict(*args, **kwargs) | told

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        made = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = made[0] if isinstance(made, tuple) else made
        processor.calibration = processor_dict.get("calibration")
        return made

    @classmethod
    def _get_arguments_from_pretrained(cls, *args, **kwargs):
        """Tokenizer and image processor, which would take the processor's own arguments for theirs."""
        own = argument_names(cls.__init__)
        return super()._get_arguments_from_pretrained(*args, **{k: v for k, v in kwargs.items() if k not in own})

    @property
    def architecture(self) -> str:
        return type(self).__module__.rpartition("processing_")[2]

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "RisProcessor":
        """The architecture's preprocessing at the config's image and text size; here `squash`, others override."""
        return cls(RisImageProcessor(image_size=config.image_size), tokenizer, **cls.settings(config))

    @staticmethod
    def settings(config: RisConfig) -> dict:
        """Arguments that follow from every architecture's config."""
        enlarges = "logits" if config.loss_size == "full" else "probabilities"
        return {"max_text_length": config.max_text_length, "enlarges": enlarges}

    def __call__(self, images, text, masks=None, return_tensors: str | None = "pt", **unknown) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images: one image or a list of B (PIL, path, URL, array or tensor; see `images_ris.as_pil`).
            text: one expression; a list (several of one image, or one for each image); or a list of lists.
            masks: masks (H, W) of the original, upright images, nested like `text`: booleans, 0 and 1, or 0 and 255.
                They become `labels`.

        Returns:
            pixel_values (B, 3, H, W), input_ids and attention_mask (N, L), image_index (N,), for `short_side` also
            pixel_mask (B, H, W), with masks also labels (N, H, W) float32.

        Raises:
            ValueError: an image, expression or mask that cannot be read, or counts or sizes that do not match; the
                message names which.
            TypeError: an unknown argument.
        """
        refuse_unknown(type(self).__name__, unknown, ("images", "text", "masks", "return_tensors"))
        check_return_tensors(return_tensors)
        images = pictures(images)
        texts = _nest(text, len(images), "expressions")
        flat = [expression for group in texts for expression in group]
        inputs = self._tokenize(flat)
        inputs["image_index"] = torch.tensor([index for index, group in enumerate(texts) for _ in group])
        inputs.update(self.image_processor(images, return_tensors="pt"))
        if masks is not None:
            inputs["labels"] = self._labels(images, texts, masks, inputs["pixel_values"].shape[-2:])
        return BatchFeature(inputs, tensor_type=return_tensors)

    def clean(self, text: str) -> str:
        """An expression as the tokenizer wants it."""
        return text

    def unknown_words(self, texts: Iterable[str]) -> UnknownWords:
        """The words of expressions that the tokenizer does not know, for the start of a training or an evaluation."""
        return unknown_words(self.tokenizer, map(self.clean, texts))

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        for number, expression in enumerate(texts):
            check_expression(expression, f"Expression {number}")
        cleaned = [self.clean(text) for text in texts]
        encoded = self.tokenizer(
            cleaned,
            padding=True,
            truncation=self.keeps_end_token,
            max_length=self.max_text_length if self.keeps_end_token else None,
            return_tensors="pt",
            return_token_type_ids=False,
            return_special_tokens_mask=True,
            verbose=False,
        )
        words = encoded["attention_mask"] * (1 - encoded.pop("special_tokens_mask"))
        empty = (words.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"Expression {empty[0]} ({texts[empty[0]][:40]!r}) holds no word; write what to segment.")
        if self.warns_of_unknown_words and bool((words.bool() & (encoded["input_ids"] == self._unknown_id)).any()):
            self._tell_unknown_words(texts)
        return {name: encoded[name][:, : self.max_text_length] for name in ("input_ids", "attention_mask")}

    def _tell_unknown_words(self, texts: list[str]) -> None:
        found = self.unknown_words(texts)
        if found.unknown:
            self.warns_of_unknown_words = False
            warnings.warn(f"{found}; the model reads each as the same unknown word. This is said once.", stacklevel=4)

    @property
    def _unknown_id(self) -> int:
        return -1 if self.tokenizer.unk_token_id is None else self.tokenizer.unk_token_id

    def _labels(self, images: list[Image.Image], texts: list[list[str]], masks, canvas: tuple[int, int]) -> Tensor:
        nested = _nest(masks, len(images), "masks")
        labels = []
        for index, (image, group, of_image) in enumerate(zip(images, texts, nested)):
            if len(group) != len(of_image):
                raise ValueError(
                    f"Image {index} has {len(group)} expressions and {len(of_image)} masks; give one each."
                )
            for number, mask in enumerate(of_image):
                mask = binary_mask(mask, f"Mask {number} of image {index}")
                if mask.shape != (image.height, image.width):
                    raise ValueError(
                        f"A mask of image {index} has shape {mask.shape}; the image is {(image.height, image.width)}."
                    )
                labels.append(self.image_processor.preprocess_mask(mask, canvas))
        return torch.stack(labels)

    @torch.no_grad()
    def post_process_referring_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]],
        threshold: float | None = None,
        probabilities: bool = True,
    ) -> list[dict]:
        """Masks at the original size, one per expression.

        Args:
            outputs: a `RisOutput` with logits (N, h, w).
            target_sizes: (height, width) of the original image of each of the N expressions.
            threshold: of the probability, in [0, 1]; None is the processor's own.
            probabilities: False leaves `probability` out, and with it a float map of each image's full size.

        Returns:
            N dicts: `mask` bool (H, W); `probability` float32 (H, W) in [0, 1]; `score` in [0, 1], the mean probability
            inside the mask, 0 for an empty mask. Where logits are not finite, probabilities are NaN and the mask is
            False; the score of such an expression is NaN, and a warning names it.

        Raises:
            ValueError: logits, sizes or a threshold that do not fit.
        """
        threshold = checked_threshold(self.threshold if threshold is None else threshold)
        maps, unknown = known_logits(outputs.logits)
        if self.enlarges == "probabilities":
            maps = maps.sigmoid()
        # a pipeline drops the fields that are None
        samplings = self._samplings(maps, target_sizes, outputs.get("input_size"))
        rest = (threshold, self.enlarges == "logits", probabilities)
        results = [cut(m, *sampling, *rest) for m, sampling in zip(maps, samplings)]
        for index in unknown:
            results[index]["score"] = math.nan
        return results

    def phrase(self, expression: str) -> str | None:
        """What of an expression the model's prior speaks of; None for architectures whose prior takes no such part."""
        return None

    def post_process_heatmaps(self, heatmaps: Tensor, target_sizes: list[tuple[int, int]]) -> list[Tensor]:
        """`RisOutput.heatmap` (N, h, w) to N tensors (H, W) at the original sizes.

        Raises:
            ValueError: an architecture that has no heatmap; one that has overrides this.
        """
        raise ValueError(f"{type(self).__name__} has no heatmaps to draw: its architecture gives none.")

    def sampling(self, size: tuple[int, int], canvas: tuple[int, int], grid: tuple[int, int]) -> tuple[Taps, Taps]:
        """As the image processor's, for what this processor enlarges."""
        mode = "bilinear" if self.enlarges == "logits" else self.interpolation
        return self.image_processor.sampling(size, canvas, grid, mode)

    def post_process_maps(
        self, maps: Tensor, target_sizes: list[tuple[int, int]], input_size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """(N, K, h, w) maps to N tensors (K, H, W) at the original sizes, undoing the geometry.

        input_size: of the output, (height, width) of the canvas. Without it, the canvas of `short_side` is recomputed
            from `target_sizes`, which must then be those of a whole batch.
        """
        maps = maps.float()
        return [resample(m, *sampling) for m, sampling in zip(maps, self._samplings(maps, target_sizes, input_size))]

    def _samplings(
        self, maps: Tensor, target_sizes: list[tuple[int, int]], input_size: tuple[int, int] | None
    ) -> list[tuple[Taps, Taps]]:
        """Of each of N maps (N, ..., h, w) the rows and columns at which it is read; made once for each size."""
        sizes = checked_sizes(target_sizes, len(maps))
        canvas = input_size or self.image_processor.canvas_size(sizes)
        grid = maps.shape[-2:]
        of_size = {
            size: tuple(axis.to(maps.device) for axis in self.sampling(size, canvas, grid)) for size in set(sizes)
        }
        return [of_size[size] for size in sizes]


def _nest(values, images: int, what: str) -> list[list]:
    """Expressions or masks as one list per image, from a single one, a list or a list of lists."""
    if isinstance(values, (list, tuple)):
        values = list(values)
    else:
        values = [values]
    if all(isinstance(value, (list, tuple)) for value in values) and values:
        nested = [list(value) for value in values]
    elif images == 1:
        nested = [values]
    else:
        nested = [[value] for value in values]
    if len(nested) != images:
        raise ValueError(f"{images} images and {what} for {len(nested)}; give one list of {what} per image.")
    if not any(nested):
        raise ValueError(f"No {what}: give at least one.")
    return nested
