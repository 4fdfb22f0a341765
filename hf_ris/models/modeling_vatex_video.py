"""VATEX on video: Vision-Aware Text Features for referring video segmentation.

Paper: Nguyen-Truong, Nguyen, Vu, Tran, Hua, Yeung. "Improving Referring Image Segmentation using Vision-Aware Text
Features" (with its supplementary), https://arxiv.org/abs/2404.08590; its Tables 2 and 4, supplementary Tables 5, 6 and
8. Original repository: to be found from https://nero1342.github.io/VATEX_RIS, without a licence; this file holds no
code of it and is written from the paper and from facts about it. Licence of this file: Apache-2.0.

The modules are those of VATEX (`modeling_vatex.py`), and their weights carry the same names, so that an image model's
weights begin a video model (`load_base_weights`). Words and pixels of all frames read each other at once; the queries
are shared by the frames, so that one query is one object through the clip; the CLIP prior is the mean over frames;
queries are matched, and losses taken, for a clip as a whole. A clip of one frame gives the image model's numbers.

Deviations and readings:
- The paper says "minor adaptations to handle temporal information" and no more; what they are is taken from the public
  program: Video-Swin with patches of 1x4x4, frames in the batch axis for image encoders, the pixel encoder and
  convolutions, attention over T*h*w pixels, 3-D positions, a shared answer.
- 3-D positions are the image model's 2-D sines plus sines of time in turns of the clip, taken relative to the first
  frame (the cosine less 1): one frame's term is 0.
- Each frame of a mask is looked at in `loss_points` points; Dice and matching costs are over all frames' points.
- Videos longer than `window_frames` go in windows when they are answered, so that memory does not grow with the video.
  Window k of n holds the frames k, k + n, k + 2n, ...: each spans the whole video, as the clips of training do (drawn
  from the whole video and sorted), where consecutive windows would see a fraction of a second; 4 frames, as the clips
  of the public program's training are. All windows begin with the same queries (their CLIP prior is that of all
  frames), and one query, the most probable on the mean over windows, answers in all of them. The public program shows
  the model the whole video at once.
- An expression's answer does not depend on the batch: padded frames (`frame_mask`) and padded pixels are read by none.
- `temporal_shift` is ours and off by default: the paper's ResNet sees each frame by itself, and then a small model
  hardly learns which of two like things moves.
- A program of `torch.export` takes clips of one length, at most `window_frames`, and one shape: how many windows there
  are, and where a video's padding begins, depend on the data.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_vatex_video import VatexVideoConfig
from .lazy_videos import LazyVideos
from .losses import binary_cross_entropy, dice_loss, point_sample, uncertain_points
from .modeling_ris import RisOutput
from .modeling_vatex import (
    BidirectionalAttention,
    ContextualMultimodalDecoder,
    MaskedAttentionDecoder,
    Prediction,
    Side,
    VatexForReferringSegmentation,
    upsample,
)
from .pipeline_video_ris import VIDEO_TASK, ReferringVideoSegmentationPipeline
from .positions import sine_positions
from .video_encoders import build_video_encoder
from .vision_encoders import inside


_VIEWS = 32  # that CLIP sees at a time


class Extent(NamedTuple):
    """What of n padded videos is no padding, at one level: rows and columns (n, 2) long or None, and frames (n,) or
    None; None is all."""

    content: Tensor | None
    lengths: Tensor | None

    def positions(self, x: Tensor) -> Tensor:
        """3-D positions (n or 1, T*h*w, C) of maps (n, T, C, h, w)."""
        frames, channels = x.shape[1:3]
        space = sine_positions(x[:, 0], self.content)  # (hw, C) or (n, hw, C)
        space = space if space.ndim == 3 else space[None]
        time = time_positions(frames, channels, self.lengths, x.device).to(x.dtype)
        return (time[:, :, None] + space[:, None]).flatten(1, 2)

    def readable(self, frames: int, height: int, width: int) -> Tensor | None:
        """(n, T*h*w) bool: no padding; None where nothing is."""
        if self.content is None and self.lengths is None:
            return None
        mask = None
        if self.lengths is not None:
            mask = (torch.arange(frames, device=self.lengths.device) < self.lengths[:, None])[:, :, None, None]
            mask = mask.expand(-1, -1, height, width)
        if self.content is not None:
            places = inside(self.content, height, width)[:, None].expand(-1, frames, -1, -1)
            mask = places if mask is None else mask & places
        return mask.flatten(1)

    def of(self, index: Tensor) -> "Extent":
        return Extent(*(None if x is None else x.index_select(0, index) for x in self))


def time_positions(frames: int, channels: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """(n or 1, T, C) float32: sines and cosines of time in turns of the clip, less those of the first frame."""
    frequencies = torch.arange(channels // 2, device=device, dtype=torch.float32)
    frequencies = 2 * math.pi * (frequencies * (-2 * math.log(10_000) / channels)).exp()
    turns = torch.arange(frames, device=device, dtype=torch.float32)[None]
    turns = turns / frames if lengths is None else turns / lengths[:, None]
    angles = turns[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos() - 1], -1)


def tokens(x: Tensor) -> Tensor:
    """(n, T, C, h, w) -> (n, T*h*w, C)."""
    return x.transpose(2, 3).transpose(3, 4).flatten(1, 3)


class VideoBidirectionalAttention(BidirectionalAttention):
    """Words read the pixels of all frames (Eq. 2), then the pixels read those words (Eq. 3)."""

    def side(self, visual: Tensor, extent: Extent) -> Side:
        """V_i (n, T, C, h, w) -> the pixels' side, tokens (n, T*h*w, C)."""
        pixels = tokens(visual)
        placed = pixels + extent.positions(visual)
        key = value = None
        if self.to_text is not None:
            key, value = self.to_text.key(placed), self.to_text.value(pixels)
        return Side(visual, self.to_visual.query(placed), key, value)

    def forward(self, side: Side, words: Tensor, word_mask: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """F_{i-1}^w (N, L, C) and mask (N, 1, 1, L) -> V'_i (N, T, C, h, w), F_i^w (N, L, C)."""
        frames, _, height, width = side.visual.shape[1:]
        if self.to_text is not None:
            mask = extent.readable(frames, height, width)
            mask = None if mask is None else mask[:, None, None]
            words = words * self.to_text(self.to_text.query(words), side.key, side.value, mask)
        attention = self.to_visual
        read = attention(side.query, attention.key(words), attention.value(words), word_mask)
        read = read.unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3)
        return side.visual * read, words


class VideoContextualMultimodalDecoder(ContextualMultimodalDecoder):
    """CMD over the frames of a clip: attention over all of them, convolutions in each (Eq. 2-4)."""

    def __init__(self, config: VatexVideoConfig, channels: list[int]):
        super().__init__(config, channels)
        dim, heads = config.hidden_dim, config.num_heads
        self.attentions = nn.ModuleList(VideoBidirectionalAttention(dim, heads, config.cmd) for _ in channels)

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        """The encoder's levels (B, T, c, h, w), coarsest first -> V_1 to V_4, each (B, T, C, h, w)."""
        frames = maps[0].shape[1]
        return [x.unflatten(0, (-1, frames)) for x in super().project([level.flatten(0, 1) for level in maps])]

    def forward(
        self, sides: list[Side], words: Tensor, word_mask: Tensor, extents: list[Extent]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """f_w (N, L, C), mask (N, 1, 1, L) -> F_1^v to F_4^v, each (N, T, C, h, w), and f_w with each new F_i^w."""
        maps, states = [], [words]
        frames = sides[0].visual.shape[1]
        below, last = None, None
        for side, block, convolution, own in zip(sides, self.attentions, self.convolutions, extents, strict=True):
            x, words = block(side, words, word_mask, own)
            x = x.flatten(0, 1)
            content = None if own.content is None else own.content.repeat_interleave(frames, 0)
            if below is not None:
                x = x + upsample(below, last)
            if content is not None:  # beyond the content lies what a convolution pads with
                x = x * inside(content, *x.shape[-2:])[:, None]
            below, last = convolution(x), content
            maps.append(below.unflatten(0, (-1, frames)))
            if block.to_text is not None:
                states.append(words)
        return maps, states


class VideoMaskedAttentionDecoder(MaskedAttentionDecoder):
    """Mask2Former's decoder with queries that the frames share; mask logits are (N, Q, T, h, w)."""

    def forward(self, start: Tensor, maps: list[Tensor], extents: list[Extent]) -> list[Prediction]:
        """f_o (N, C), F_1^v to F_4^v (N, T, C, h, w) -> predictions before the first and after each layer."""
        values = [
            tokens(level) + embedding for level, embedding in zip(maps[:3], self.level_embeddings.weight, strict=True)
        ]
        keys = [value + own.positions(level) for value, level, own in zip(values, maps, extents)]
        real = [own.readable(level.shape[1], *level.shape[-2:]) for level, own in zip(maps, extents)]
        positions = self.query_positions.weight
        x = start[:, None].expand(-1, len(positions), -1)
        predictions = [self.predict(x, maps[3])]
        for index, layer in enumerate(self.layers):
            level = index % 3
            mask = video_attention_mask(predictions[-1].masks, maps[level].shape[-2:], real[level])
            x = layer(x, positions, keys[level], values[level], mask)
            predictions.append(self.predict(x, maps[3]))
        return predictions

    def predict(self, x: Tensor, pixels: Tensor) -> Prediction:
        """Queries (N, Q, C), F_4^v (N, T, C, h, w) -> Eq. 7 without its sigmoid, and the classes."""
        x = self.norm(x)
        return Prediction(self.class_head(x), torch.einsum("nqc,ntchw->nqthw", self.mask_head(x), pixels))


def video_attention_mask(mask_logits: Tensor, size: tuple[int, int], real: Tensor | None) -> Tensor:
    """Masks (N, Q, T, H, W) -> pixels that a query may read, (N, 1, Q, T*h*w): all where its mask is empty in the whole
    clip; `real` (N, T*h*w) are those that are no padding."""
    logits = F.interpolate(mask_logits.detach().flatten(1, 2), size=tuple(size), mode="bilinear", align_corners=False)
    mask = (logits >= 0).unflatten(1, mask_logits.shape[1:3]).flatten(2)
    real = torch.ones_like(mask) if real is None else real[:, None].expand_as(mask)
    mask = mask & real
    return (mask | (real & ~mask.any(-1, keepdim=True)))[:, None]


class EncodedVideo(NamedTuple):
    """What the frames of a window give without any expression, for B videos: V_1 to V_4 (B, T, C, h, w), coarsest
    first, and CMD's sides, None where words change the levels first."""

    levels: list[Tensor]
    sides: list[Side] | None


class VatexVideoForReferringSegmentation(VatexForReferringSegmentation):
    """VATEX on video. Logits are those of the most probable query, (N, T, h, w) at stride 4 of the padded input."""

    config_class = VatexVideoConfig
    main_input_name = "pixel_values_videos"
    pipeline_task: ClassVar[str] = VIDEO_TASK
    pipeline_class: ClassVar[type] = ReferringVideoSegmentationPipeline
    attention_class: ClassVar[type[nn.Module]] = VideoBidirectionalAttention
    cmd_class: ClassVar[type[nn.Module]] = VideoContextualMultimodalDecoder
    decoder_class: ClassVar[type[nn.Module]] = VideoMaskedAttentionDecoder

    @staticmethod
    def build_vision_encoder(config: VatexVideoConfig) -> nn.Module:
        return build_video_encoder(config.vision_config, config.temporal_shift)

    @property
    def own_weights(self) -> tuple[str, ...]:
        """Beyond an image VATEX's: those of a backbone that sees time."""
        seen = self.config.vision_config.name.startswith("swin3d_")
        return ("vision_encoder.", "cmd.projections.") if seen else ()

    def forward(
        self,
        pixel_values_videos: Tensor | LazyVideos,
        input_ids: Tensor,
        attention_mask: Tensor,
        video_index: Tensor | None = None,
        frame_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        object_index: Tensor | None = None,
        labels: Tensor | None = None,
        clip_pixel_values: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        clip_frame_mask: Tensor | None = None,
    ) -> RisOutput:
        """Segment N expressions over B videos.

        Args:
            pixel_values_videos: (B, T, 3, H, W), normalised, padded right, below and at the end, or what makes them.
            input_ids, attention_mask: (N, L), padding at the end.
            video_index: (N,) long, the video of each expression; None is one expression per video.
            frame_mask: (B, T), 1 = frame, 0 = padding at the end, where no answer means anything; None is no padding.
            pixel_mask: (B, H, W), 1 = picture, 0 = padding, the same in all frames; None is no padding.
            object_index: (N,) long, expressions of one object share a number; None leaves the consistency loss out.
            labels: (N, T, H, W) masks in [0, 1].
            clip_pixel_values: (B, K, 3, S, S), CLIP's view of all or some of the frames, K at least 1; as the next two,
                for a model with prior.
            prompt_ids, prompt_mask: (N, P, L), P prompts for each expression.
            clip_frame_mask: (B, K), 1 = view, 0 = padding at the end; None is no padding.

        Returns:
            `RisOutput` with logits (N, T, h, w), query_logits (N, Q, T, h, w), query_scores (N, Q), text_states (level
            0 is f_w; of several windows their mean), input_size, with prior heatmap (N, h', w'), the mean over frames,
            and with labels `loss` and `losses`.

        Raises:
            ValueError: CLIP's view or prompts missing, or inputs whose counts do not match.
        """
        self.check_prior(clip_pixel_values, prompt_ids, prompt_mask)
        check_videos(pixel_values_videos, frame_mask, pixel_mask, labels)
        index = self.image_index_of(pixel_values_videos, input_ids, video_index)
        size, stride = pixel_values_videos.shape[-2:], self.config.stride
        padded = tuple(side + -side % stride for side in size)
        extent = Extent(self.content_of(pixel_mask, padded), lengths_of(frame_mask))
        words = self.encode_text(input_ids, attention_mask)
        view, prompts = (clip_pixel_values, clip_frame_mask), (prompt_ids, prompt_mask)
        start, heatmap = self.start(self.sentence(words, attention_mask), index, view, prompts)
        said = (words, attention_mask, start)
        if labels is None and pixel_values_videos.shape[1] > self.config.window_frames:
            masks, scores, states = self.answer_in_windows(pixel_values_videos, padded, extent, said, index)
        else:
            video = self.encode_video(self.read(pixel_values_videos, padded, index.device), extent)
            predictions, states = self.segment(video, extent, said, index)
            masks, scores = self.answers(predictions[-1], extent.of(index).content)
        best = scores.argmax(1)[:, None, None, None, None].expand(-1, 1, *masks.shape[2:])
        output = RisOutput(
            logits=masks.gather(1, best)[:, 0],
            heatmap=heatmap,
            query_logits=masks,
            query_scores=scores,
            text_states=states,
            input_size=padded,
        )
        if labels is not None:
            own = extent.of(index)
            extents = self.extents(own.content, size, padded, labels)
            losses = self.clip_losses(predictions, labels, *extents, own.lengths)
            output.loss, output.losses = self.weighed(losses, states[-1], object_index, index)
        return output

    def check_prior(self, *inputs: Tensor | None) -> None:
        """ValueError where a model with prior lacks one of them: what CLIP looks at, and what it reads."""
        if self.clip_prior is not None and any(given is None for given in inputs):
            raise ValueError(
                "VATEX with its prior takes clip_pixel_values, prompt_ids and prompt_mask, as its processor makes them."
            )

    def start(
        self,
        sentence: Tensor,
        index: Tensor,
        view: tuple[Tensor | None, Tensor | None],
        prompts: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """F_s (N, C), and CLIP's view and prompts with their masks -> f_o, which is F_s and what the prior adds to it,
        and the heatmap (N, h', w'); without prior F_s and None."""
        if self.clip_prior is None:
            return sentence, None
        prior = (x.index_select(0, index) for x in self.encode_prior(*view))
        heatmap, whole = mean_cosines(*prior, self.encode_prompts(*prompts))
        return sentence + self.clip_prior(heatmap, whole), heatmap

    def encode_prior(self, clip_pixel_values: Tensor, clip_frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K, 3, S, S) and mask (B, K) -> means over frames of CLIP's patches (B, E, h, w) and whole frames (B, E),
        each of unit length before the mean, float32."""
        views = clip_pixel_values.flatten(0, 1).to(self.dtype)
        # how many parts there are would be a constant of an exported program
        views = (views,) if torch.compiler.is_compiling() else views.split(_VIEWS)
        with torch.no_grad():
            patches, whole = (torch.cat(parts) for parts in zip(*map(self.clip_image_encoder.joint, views)))
        shape = clip_pixel_values.shape[:2]
        mask = torch.ones(shape, device=whole.device) if clip_frame_mask is None else clip_frame_mask.float()
        weights = mask / mask.sum(1, keepdim=True)
        patches, whole = F.normalize(patches.float(), dim=1), F.normalize(whole.float(), dim=1)
        patches = (patches.unflatten(0, shape) * weights[:, :, None, None, None]).sum(1)
        return patches, (whole.unflatten(0, shape) * weights[:, :, None]).sum(1)

    def read(
        self,
        videos: Tensor | LazyVideos,
        padded: tuple[int, int],
        device: torch.device,
        where: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> Tensor:
        """Slices of videos and frames, padded to (H, W). Lazy ones go to the `device` of the other inputs, since an
        offloaded model's own is none."""
        chosen = videos[where]
        if isinstance(videos, LazyVideos):
            chosen = chosen.to(device, self.dtype)
        margin = (0, padded[1] - chosen.shape[-1], 0, padded[0] - chosen.shape[-2])
        return F.pad(chosen, margin) if any(margin) else chosen  # which would be a copy

    def encode_video(self, videos: Tensor, extent: Extent) -> EncodedVideo:
        """All that does not depend on text, of videos (B, T, 3, H, W) whose sides are multiples of the stride."""
        levels = self.cmd.project(self.vision_encoder(videos, extent.content, extent.lengths)[::-1])
        sides = None
        if self.early_fusion is None and self.pixel_encoder is None:
            sides = self.cmd.sides(levels, self.extents_of_levels(extent))
        return EncodedVideo(levels, sides)

    def extents_of_levels(self, extent: Extent) -> list[Extent]:
        """Of V_1 to V_4, in cells."""
        return [Extent(content, extent.lengths) for content in self.content_of_levels(extent.content)]

    def segment(
        self, video: EncodedVideo, extent: Extent, said: tuple[Tensor, Tensor, Tensor], index: Tensor
    ) -> tuple[list[Prediction], tuple[Tensor, ...]]:
        """f_w, its mask and f_o of N expressions -> each layer's predictions, and the sentences F_s of each level."""
        words, attention_mask, start = said
        extents = self.extents_of_levels(extent.of(index))
        maps, states = self.fuse_video(video, words, attention_mask, index, extents)
        return self.decoder(start, maps, extents), tuple(self.sentence(state, attention_mask) for state in states)

    def fuse_video(
        self, video: EncodedVideo, words: Tensor, attention_mask: Tensor, index: Tensor, extents: list[Extent]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """f_w (N, L, C) and the videos -> F_1^v to F_4^v, and f_w with each F_i^w."""
        word_mask = attention_mask.bool()[:, None, None]
        if video.sides is not None:
            return self.cmd([side.of(index) for side in video.sides], words, word_mask, extents)
        levels = [level.index_select(0, index) for level in video.levels]
        if self.early_fusion is not None:
            for number, (block, own) in enumerate(zip(self.early_fusion, extents, strict=True)):
                levels[number], _ = block(block.side(levels[number], own), words, word_mask, own)
        if self.pixel_encoder is not None:
            frames = levels[0].shape[1]
            contents = [None if e.content is None else e.content.repeat_interleave(frames, 0) for e in extents[:3]]
            encoded = self.encode_pixels([level.flatten(0, 1) for level in levels[:3]], contents)
            levels[:3] = [level.unflatten(0, (-1, frames)) for level in encoded]
        return self.cmd(self.cmd.sides(levels, extents), words, word_mask, extents)

    def encode_pixels(self, levels: list[Tensor], contents: list[Tensor | None]) -> list[Tensor]:
        """The pixel encoder on maps (B*T, C, h, w); one by one where no gradient is asked for, since what it samples of
        all is the largest of all tensors."""
        if torch.is_grad_enabled():
            return self.pixel_encoder(levels, contents)
        each = zip(*(level.split(1) for level in levels))
        own = [[None] * len(levels[0]) if content is None else content.split(1) for content in contents]
        return [torch.cat(maps) for maps in zip(*map(self.pixel_encoder, each, zip(*own)))]

    def answer_in_windows(
        self,
        videos: Tensor | LazyVideos,
        padded: tuple[int, int],
        extent: Extent,
        said: tuple[Tensor, Tensor, Tensor],
        index: Tensor,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Videos one by one, each in interleaved windows and each window encoded once, expressions one by one: mask
        logits (N, Q, T, h, w), probabilities (N, Q) and sentences, both means over windows."""
        count, stride = videos.shape[1], self.vision_encoder.strides[0]
        size = [side // stride for side in padded]
        shape = (len(index), self.config.num_queries, count, *size)
        masks = torch.zeros(shape, dtype=self.dtype, device=index.device)
        scores: dict[int, Any] = {}
        states: dict[int, Any] = {}
        for number in range(len(videos)):
            members = (index == number).nonzero()[:, 0].tolist()
            length = count if extent.lengths is None else int(extent.lengths[number])
            own = Extent(None if extent.content is None else extent.content[number : number + 1], None)
            windows = -(-length // self.config.window_frames)
            for window in range(windows if members else 0):
                where = slice(number, number + 1), slice(window, length, windows)
                video = self.encode_video(self.read(videos, padded, index.device, where), own)
                for n in members:
                    one = tuple(x[n : n + 1] for x in said)
                    predictions, found = self.segment(video, own, one, index.new_zeros(1))
                    answered, probability = self.answers(predictions[-1], own.content)
                    masks[n, :, window:length:windows] = answered[0].to(masks.dtype)
                    scores[n] = scores.get(n, 0) + probability[0] / windows
                    states[n] = [a + b / windows for a, b in zip(states.get(n, [0] * len(found)), found)]
        order = range(len(index))
        sentences = tuple(torch.cat(level) for level in zip(*(states[n] for n in order)))
        return masks, torch.stack([scores[n] for n in order]), sentences

    def answers(self, prediction: Prediction, content: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mask logits (N, Q, T, h, w), whose edges are repeated in the padding, and probabilities (N, Q)."""
        classes, masks = prediction
        flat, scores = super().answers(Prediction(classes, masks.flatten(1, 2)), content)
        return flat.unflatten(1, masks.shape[1:3]), scores

    def clip_losses(
        self,
        predictions: list[Prediction],
        labels: Tensor,
        extent: Tensor,
        label_extent: Tensor,
        lengths: Tensor | None,
    ) -> dict[str, Tensor]:
        """Class, mask and Dice losses of every prediction against its cheapest query, over the points of all frames of
        a clip, summed over predictions. labels (N, T, H, W); extents (N, 2); lengths (N,): frames that count."""
        losses = dict.fromkeys(("class", "mask", "dice"), labels.new_zeros(()))
        frames, count = labels.shape[1], self.config.loss_points
        flat_labels = labels.flatten(0, 1)[:, None].float()
        extent, to_labels = (x.repeat_interleave(frames, 0) for x in (extent, label_extent / extent))
        real = None
        if lengths is not None:
            real = torch.arange(frames, device=labels.device) < lengths[:, None]
            real = real[:, :, None].expand(-1, -1, count).flatten(1)  # (N, T*P)
        for classes, masks in predictions:
            chosen = self.match_clip(classes, masks, flat_labels, extent, to_labels, real)
            mask = masks.gather(1, chosen[:, None, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0].flatten(
                0, 1
            )
            points = uncertain_points(mask, count, extent)
            logits = point_sample(mask[:, None], points).unflatten(0, (-1, frames)).flatten(1)
            targets = point_sample(flat_labels, points * to_labels[:, None]).unflatten(0, (-1, frames)).flatten(1)
            losses["class"] = losses["class"] + self.class_loss(classes, chosen)
            if real is None:
                entropy = binary_cross_entropy(logits, targets)
            else:
                entropy = _mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), real)
                entropy = entropy.mean()
                logits, targets = logits.masked_fill(~real, -100.0), targets * real
            losses["mask"] = losses["mask"] + entropy
            losses["dice"] = losses["dice"] + dice_loss(logits, targets).mean()
        return losses

    @torch.no_grad()
    def match_clip(
        self, classes: Tensor, masks: Tensor, labels: Tensor, extent: Tensor, to_labels: Tensor, real: Tensor | None
    ) -> Tensor:
        """The query (N,) that costs least: by its probability and, at random points of all frames, by its mask.

        masks (N, Q, T, h, w); labels (N*T, 1, H, W); extents (N*T, 2); real (N, T*P) bool, None is all.
        """
        class_weight, mask_weight, dice_weight, _ = self.config.loss_weights
        queries, frames = masks.shape[1:3]
        points = torch.rand(len(labels), self.config.loss_points, 2, device=masks.device) * extent[:, None]
        logits = point_sample(masks.transpose(1, 2).flatten(0, 1), points)  # (N*T, Q, P)
        logits = logits.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2)
        targets = point_sample(labels, points * to_labels[:, None])[:, 0].unflatten(0, (-1, frames)).flatten(1)
        targets = targets[:, None].expand(-1, queries, -1)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        if real is not None:
            real = real[:, None]
            logits, targets = logits.masked_fill(~real, -100.0), targets * real
        if self.config.class_loss == "softmax":
            probability = classes.float().softmax(-1)[..., 0]
        else:
            probability = classes[..., 0].float().sigmoid()
        cost = mask_weight * _mean(entropy, real) + dice_weight * dice_loss(logits, targets)
        return (cost - class_weight * probability).argmin(1)


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """Over the last axis, of what is `real` (bool, broadcast); None is all."""
    return x.mean(-1) if real is None else (x * real).sum(-1) / real.sum(-1)


def mean_cosines(patches: Tensor, whole: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Means of unit vectors over frames, patches (N, E, h, w) and whole frames (N, E), and text (N, E) -> the means of
    their cosines, (N, h, w) and (N,), float32."""
    text = F.normalize(text.float(), dim=1)
    return (patches * text[:, :, None, None]).sum(1), (whole * text).sum(1)


def lengths_of(frame_mask: Tensor | None) -> Tensor | None:
    """(B, T) -> frames that are no padding (B,); None where all are."""
    if frame_mask is None:
        return None
    lengths = frame_mask.bool().sum(1)
    if not torch.compiler.is_compiling() and bool((lengths == frame_mask.shape[1]).all()):
        return None
    return lengths


def check_videos(videos: Tensor, frame_mask: Tensor | None, pixel_mask: Tensor | None, labels: Tensor | None) -> None:
    """ValueError with one sentence for shapes that do not fit (B, T, 3, H, W)."""
    if videos.ndim != 5 or videos.shape[2] != 3:
        raise ValueError(f"pixel_values_videos is (videos, frames, 3, height, width), got {tuple(videos.shape)}.")
    if frame_mask is not None and frame_mask.shape != videos.shape[:2]:
        raise ValueError(f"frame_mask must have shape {tuple(videos.shape[:2])}, got {tuple(frame_mask.shape)}.")
    expected = (videos.shape[0], *videos.shape[-2:])  # len() would be a constant of an exported program
    if pixel_mask is not None and pixel_mask.shape != expected:
        raise ValueError(f"pixel_mask must have shape {expected}, got {tuple(pixel_mask.shape)}.")
    if labels is not None and (labels.ndim != 4 or labels.shape[1] != videos.shape[1]):
        raise ValueError(
            f"labels are (expressions, {videos.shape[1]} frames, height, width), got {tuple(labels.shape)}."
        )


VatexVideoForReferringSegmentation.register_for_auto_class("AutoModel")
