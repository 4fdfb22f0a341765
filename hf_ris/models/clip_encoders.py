"""CLIP's image and text encoders, built by open_clip and opened up: maps for a vector, words beside the sentence.

`ClipResNet`, `ClipViT` and `ClipTextEncoder` each take a `ClipEncoderConfig`. Construction never downloads;
`load_clip_weights(config, image_encoder, text_encoder)` does.

Weights are CLIP's, the way through them is ours:
- The attention pool keeps its positions: every token attends to every token, and each gives a vector. So does the
  vision transformer. The table of positions is resized bicubically to the map at hand.
- The text transformer takes any length up to its table of positions. It is causal, so padding at the end changes no
  word before it, and the end token is the last that the attention mask admits, whatever pads the ids.
"""

import math
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.model import _build_text_tower, _build_vision_tower
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import MultiHeadAttention, attend
from .configuration_ris import ClipEncoderConfig
from .vision_encoders import Encoder


def resized_positions(table: Tensor, height: int, width: int) -> Tensor:
    """A table of positions (1 + side^2, C) without row 0, resized: (height * width, C)."""
    side = math.isqrt(table.shape[0] - 1)
    if (height, width) == (side, side):
        return table[1:]
    grid = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T


class PositionKeepingAttentionPool(AttentionPool2d):
    """CLIP's attention pool whose every position attends and answers, not the mean token alone.

    `keeps_mean_token` puts CLIP's mean token back among them (EAVL); without it, row 0 of the table of positions, which
    is that token's, is not used (CRIS).
    """

    keeps_mean_token = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, h, w) -> map (B, E, h, w), and the mean token's (B, E) if it is kept, else None."""
        height, width = x.shape[-2:]
        tokens, positions = x.flatten(2).transpose(1, 2), resized_positions(self.positional_embedding, height, width)
        if self.keeps_mean_token:
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
            positions = torch.cat([self.positional_embedding[:1], positions])
        tokens = tokens + positions.to(tokens.dtype)
        attended = attend(self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens), self.num_heads)
        pooled, mean = self.c_proj(attended), None
        if self.keeps_mean_token:
            mean, pooled = pooled[:, 0], pooled[:, 1:]
        return pooled.transpose(1, 2).unflatten(2, (height, width)), mean


class ClipResNet(Encoder):
    """CLIP's ModifiedResNet (RN50, RN101) as a pyramid of strides 8, 16 and 32, with its attention pool beside it.

    `channels` are those of the pyramid, `output_dim` is CLIP's joint width E, which the pool projects to.

    Raises:
        ValueError: a config whose image tower is no ResNet.
    """

    strides = (8, 16, 32)

    def __init__(self, config: ClipEncoderConfig, keeps_mean_token: bool = False):
        super().__init__()
        settings = clip_model_config(config)
        self.backbone = _tower(_build_vision_tower, config, "vision_cfg")
        if not isinstance(self.backbone, ModifiedResNet):
            raise ValueError(f"The image encoder must be one of CLIP's ResNets (RN50, RN101), got {config.name!r}.")
        self.backbone.attnpool.__class__ = PositionKeepingAttentionPool  # same state, other forward
        self.backbone.attnpool.keeps_mean_token = keeps_mean_token
        width = settings["vision_cfg"]["width"]
        self.channels, self.finer_channels = [8 * width, 16 * width, 32 * width], [4 * width]
        self.output_dim = settings["embed_dim"]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> C3, C4, C5: (B, channels[i], H / strides[i], W / strides[i])."""
        return self.pyramid(pixel_values)[1]

    def pyramid(self, pixel_values: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(B, 3, H, W) -> [C2] at stride 4, and C3, C4, C5."""
        c2 = self._run(self.backbone.layer1, self._run(self.backbone.stem, pixel_values))
        c3 = self._run(self.backbone.layer2, c2)
        c4 = self._run(self.backbone.layer3, c3)
        return [c2], (c3, c4, self._run(self.backbone.layer4, c4))

    def pool(self, c5: Tensor) -> tuple[Tensor, Tensor | None]:
        """C5 (B, channels[2], h, w) -> (B, E, h, w), and the mean token (B, E) if it is kept, else None."""
        return self.backbone.attnpool(c5)

    def joint(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) -> `pool` of C5, in CLIP's joint space: (B, E, H/32, W/32), and the mean token's (B, E)."""
        return self.pool(self(pixel_values)[-1])

    def _run(self, stage, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(stage, x, use_reentrant=False)
        return stage(x)


class _ImageTower(VisionTransformer):
    """open_clip's, whose every token is projected. Its raw parameters are read in its own forward alone."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """As `ClipViT.joint`."""
        patches = self.conv1(pixel_values)
        height, width = patches.shape[-2:]
        positions = resized_positions(self.positional_embedding, height, width)
        tokens = patches.flatten(2).transpose(1, 2) + positions.to(patches.dtype)
        summary = (self.class_embedding + self.positional_embedding[0]).to(tokens.dtype)
        tokens = torch.cat([summary.expand(tokens.shape[0], 1, -1), tokens], 1)
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens))) @ self.proj
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width)), tokens[:, 0]


class ClipViT(Encoder):
    """CLIP's vision transformer (ViT-B-16), of which every token is taken to CLIP's joint width E, `output_dim`.

    Raises:
        ValueError: a config whose image tower is no vision transformer.
    """

    def __init__(self, config: ClipEncoderConfig):
        super().__init__()
        settings = clip_model_config(config)
        self.backbone = _tower(_build_vision_tower, config, "vision_cfg")
        if type(self.backbone) is not VisionTransformer:
            raise ValueError(f"The image encoder must be one of CLIP's vision transformers, got {config.name!r}.")
        self.backbone.__class__ = _ImageTower
        for block in self.backbone.transformer.resblocks:
            block.attn.__class__ = MultiHeadAttention
        self.output_dim = settings["embed_dim"]
        self.strides = (self.backbone.patch_size[0],)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.backbone.set_grad_checkpointing(enable)

    def joint(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> patches (B, E, H/p, W/p) and the class token (B, E), projected and not normalised."""
        return self.backbone(pixel_values)


def build_clip_image_encoder(config: ClipEncoderConfig) -> ClipViT | ClipResNet:
    """The image tower of a config, with the token for the whole image that `joint` gives beside the map."""
    if isinstance(clip_model_config(config)["vision_cfg"]["layers"], (list, tuple)):
        return ClipResNet(config, keeps_mean_token=True)
    return ClipViT(config)


class _TextTower(TextTransformer):
    """open_clip's, for any length and with its words. Its raw parameters are read in its own forward alone."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `ClipTextEncoder.forward`."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        words = self.ln_final(self.transformer(x, attn_mask=causal))
        end = attention_mask.sum(1).clamp(min=1) - 1
        last = words.gather(1, end[:, None, None].expand(-1, 1, words.shape[-1]))[:, 0]
        return words, last @ self.text_projection


class ClipTextEncoder(Encoder):
    """CLIP's text transformer. `channels` is the width of its words, `output_dim` CLIP's joint width E."""

    def __init__(self, config: ClipEncoderConfig):
        super().__init__()
        self.config = config
        self.tower = _tower(_build_text_tower, config, "text_cfg")
        self.tower.__class__ = _TextTower
        del self.tower.attn_mask  # made for the length at hand instead
        for block in self.tower.transformer.resblocks:
            block.attn.__class__ = MultiHeadAttention
        self.channels, self.output_dim = self.tower.width, self.tower.output_dim
        self.max_length = self.tower.context_length

    @property
    def vocab_size(self) -> int:
        return self.tower.token_embedding.num_embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tower.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.tower.token_embedding = value

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.tower.set_grad_checkpointing(enable)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask, padding at the end -> words (N, L, C) after the final norm, sentences (N, E).

        Words are not projected; a sentence is its end token, projected; neither is normalised. What padding holds is
        for the caller to ignore.

        Raises:
            ValueError: more tokens than the table of positions has rows.
        """
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"CLIP's text encoder has {self.max_length} positions, but the expressions have {length}.")
        return self.tower(input_ids, attention_mask)


def _tower(build, config: ClipEncoderConfig, part: str) -> nn.Module:
    """One of open_clip's towers. Raises ValueError where open_clip cannot build it, with its reason."""
    settings = clip_model_config(config)
    try:
        return build(settings["embed_dim"], settings[part], settings["quick_gelu"])
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"ClipEncoderConfig: open_clip builds no {config.name!r} with these arguments ({type(error).__name__}: "
            f"{error!s:.200})."
        ) from error


def clip_model_config(config: ClipEncoderConfig) -> dict[str, Any]:
    """open_clip's model config (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`) with `config`'s overrides.

    Raises:
        ValueError: a name that open_clip does not know.
    """
    settings = open_clip.get_model_config(config.name)
    if settings is None:
        raise ValueError(f"open_clip has no model config {config.name!r}; RN101-quickgelu is one it has.")
    settings.setdefault("quick_gelu", False)
    for key, value in deepcopy(config.arguments or {}).items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    settings["text_cfg"]["vocab_size"] = config.vocab_size
    return settings


def load_clip_weights(
    config: ClipEncoderConfig, image_encoder: nn.Module | None, text_encoder: ClipTextEncoder
) -> None:
    """Load `config.pretrained`, a tag of open_clip or a file, into both towers.

    Args:
        image_encoder: has open_clip's image tower as `backbone`; None where the text tower is all that is wanted.

    Raises:
        OSError: weights that are neither there nor reachable; the message names them.
        ValueError: a config or a file whose weights do not fit.
    """
    state = _clip_state_dict(config)
    parts = {"": text_encoder.tower}
    if image_encoder is not None:
        parts["visual."] = image_encoder.backbone
    expected = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    # models with a text tower of their own have its keys under `text.`
    state = {key.removeprefix("text."): value for key, value in state.items()}
    wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{config.pretrained} holds another CLIP than the config: {', '.join(wrong[:4])}{more} are absent or of "
            "another shape."
        )
    for prefix, part in parts.items():
        part.load_state_dict({key: state[prefix + key] for key in part.state_dict()})


def _clip_state_dict(config: ClipEncoderConfig) -> dict[str, Tensor]:
    name, source = config.name, config.pretrained
    if get_pretrained_cfg(name, source):
        if config.arguments or config.vocab_size != ClipEncoderConfig().vocab_size:
            raise ValueError(
                f"No public weights fit {name} with arguments={config.arguments} and vocab_size={config.vocab_size}."
            )
        try:
            return open_clip.create_model(name, pretrained=source).state_dict()
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"The public weights {source!r} of open_clip's {name} could not be loaded ({error}). Connect to the "
                "Hub once, or build the model from its config alone, which needs no download."
            ) from error
    if not Path(source).is_file():
        raise OSError(f"{source!r} is neither a tag of weights that open_clip has for {name} nor a file.")
    try:
        return load_state_dict(source)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source} is damaged, or holds more than tensors, which was not run.") from error
