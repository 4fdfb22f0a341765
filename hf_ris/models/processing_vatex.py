"""Processor of VATEX: short side 480, CLIP's view of the image, CLIP's byte pairs, prompts for CLIP, threshold 0.5."""

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from transformers import BatchFeature

from .arguments_ris import check_return_tensors, checked_sizes
from .clip_tokenizer import clean_text
from .configuration_ris import RisConfig
from .images_ris import pictures
from .noun_phrase import noun_phrase, resolved_method
from .processing_ris import RisImageProcessor, RisProcessor, _nest


class VatexProcessor(RisProcessor):
    """Makes the inputs of VATEX and turns its logits into masks.

    Beside the inputs of every architecture it gives clip_pixel_values (B, 3, S, S), and prompt_ids and prompt_mask
    (N, P, L): P prompts for each expression.

    Args:
        image_processor: None is the paper's: short side 480, ImageNet's mean and deviation.
        tokenizer: from `clip_tokenizer.clip_tokenizer`, or a small one that puts a token before and after the words;
            its length is the `vocab_size` of the model's `clip_config`.
        max_text_length: in tokens, start and end included; longer expressions are cut.
        threshold: of the probability.
        clip_image_size: side S of CLIP's view; None leaves it and the prompts out, for a model without prior.
        clip_crop: CLIP sees the central square, not the whole image squashed.
        prompt: `object` is `template` with the main noun phrase, `expression` the expression itself, `imagenet` the
            noun phrase in each of ImageNet's prompts.
        template: text with `{}` for the noun phrase.
        noun_phrases: `spacy`, `rules`, or `auto`, which becomes `spacy` where it is installed: a saved processor says
            which of the two it was.
        enlarges: "logits", as the published program does and as the losses at points read them; or "probabilities".

    Raises:
        ValueError: `spacy`, where spaCy or its model is not installed; `noun_phrases="rules"` goes without.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 77,
        threshold: float = 0.5,
        clip_image_size: int | None = 224,
        clip_crop: bool = False,
        prompt: str = "object",
        template: str = "a photo of {}",
        noun_phrases: str = "auto",
        enlarges: str = "logits",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(geometry="short_side", image_size=480)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)
        if prompt not in ("object", "expression", "imagenet"):
            raise ValueError(f"prompt must be object, expression or imagenet, got {prompt!r}.")
        self.clip_image_size = clip_image_size
        self.clip_crop = clip_crop
        self.prompt = prompt
        self.template = template
        self.noun_phrases = resolved_method(noun_phrases)

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "VatexProcessor":
        """The preprocessing that goes with a `VatexConfig`."""
        return cls(
            RisImageProcessor(geometry="short_side", image_size=config.image_size, size_divisor=config.stride),
            tokenizer,
            **cls.settings(config),
            clip_image_size=config.clip_image_size if config.clip_prior else None,
            clip_crop=config.prior_crop,
            prompt=config.prior_prompt,
            template=config.prior_template,
            noun_phrases=config.noun_phrases,
        )

    @staticmethod
    def settings(config: RisConfig) -> dict:
        return RisProcessor.settings(config) | {"enlarges": "logits"}

    def __call__(self, images, text, masks=None, return_tensors: str | None = "pt", **unknown) -> BatchFeature:
        """As `RisProcessor`, and CLIP's view and prompts."""
        check_return_tensors(return_tensors)
        images = pictures(images)
        inputs = super().__call__(images, text, masks, **unknown)
        if self.clip_image_size is not None:
            inputs["clip_pixel_values"] = self.clip_view()(images)["pixel_values"]
            inputs |= self.prompts([said for group in _nest(text, len(images), "expressions") for said in group])
        return BatchFeature(inputs, tensor_type=return_tensors)

    def clip_view(self, image_size: int | None = None) -> RisImageProcessor:
        """What makes CLIP's view of an image; another `image_size` gives a finer or coarser heatmap."""
        return RisImageProcessor(
            geometry="center_crop" if self.clip_crop else "squash",
            image_size=image_size or self.clip_image_size,
            image_mean=OPENAI_DATASET_MEAN,
            image_std=OPENAI_DATASET_STD,
        )

    def phrase(self, expression: str) -> str | None:
        """What of an expression the prompts speak of; None where the model has no prior."""
        if self.clip_image_size is None:
            return None
        return expression if self.prompt == "expression" else noun_phrase(expression, self.noun_phrases)

    def prompts(self, expressions: list[str]) -> dict[str, Tensor]:
        """prompt_ids and prompt_mask, (N, P, L)."""
        phrases = [self.phrase(expression) for expression in expressions]
        templates = {"object": [self.template.format], "expression": ["{}".format]}
        templates = templates.get(self.prompt, OPENAI_IMAGENET_TEMPLATES)
        tokens = self._tokenize([template(phrase) for phrase in phrases for template in templates])
        shape = (len(phrases), len(templates))
        return {
            "prompt_ids": tokens["input_ids"].unflatten(0, shape),
            "prompt_mask": tokens["attention_mask"].unflatten(0, shape),
        }

    def clean(self, text: str) -> str:
        return clean_text(text)

    def post_process_heatmaps(self, heatmaps: Tensor, target_sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Cosines (N, h, w) of `RisOutput.heatmap` to N tensors (H, W); edges that CLIP did not see repeat its edge."""
        view = self.clip_view()
        canvas = (view.image_size, view.image_size)
        sizes = checked_sizes(target_sizes, len(heatmaps))
        return [view.unmap(map[None], size, canvas)[0] for map, size in zip(heatmaps, sizes)]


VatexProcessor.register_for_auto_class("AutoProcessor")
