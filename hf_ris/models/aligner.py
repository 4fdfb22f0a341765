"""EAVL's queries and its Vision-Language Aligner, which CRIS, VLT and LAVT take too (`aligner=True`).

The multi-query generator makes N_q queries from an image and words, each with another emphasis. Of each query the
aligner makes a 3x3 kernel whose response is a mask (multi-mask generator) and a weight (multi-query estimator); the
prediction is the weighted sum of the masks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import MultiHeadAttention
from .convolutions import ConvNormReLU
from .fusion_neck import FusionNeck


class MultiQueryGenerator(nn.Module):
    """Queries F_q: words weighted by what the image holds (Eq. 6-10; the query generation module of VLT).

    What the words do not touch is `project`; it reads each position of its map, so the size of the input is fixed.

    Args:
        channels, target, neck_dim: of the dense neck (Eq. 6), see `FusionNeck`.
        side: of the neck's map, H_3 = W_3.
        text_dim: of a word of F_t.
        dim: C, of a query.
        num_queries: N_q.
        image_dim: of the global vision feature F_vg (Eq. 8); None is F_tv = F_t.
    """

    def __init__(
        self,
        channels: list[int],
        target: int,
        neck_dim: int,
        side: int,
        text_dim: int,
        dim: int,
        num_queries: int,
        image_dim: int | None = None,
    ):
        super().__init__()
        self.neck = FusionNeck(channels, target, neck_dim)
        half, quarter = max(neck_dim // 2, num_queries), max(neck_dim // 4, num_queries)
        self.reduce = nn.Sequential(  # the three convolutions of Eq. 7
            ConvNormReLU(neck_dim, half, 3), ConvNormReLU(half, quarter, 3), ConvNormReLU(quarter, num_queries, 3)
        )
        self.side = side
        self.dense = nn.Linear(side**2, dim)  # W_vd
        self.image = None if image_dim is None else nn.Linear(image_dim, dim)  # W_vg
        self.words = None if image_dim is None else nn.Linear(text_dim, dim)  # W_t
        text_dim = text_dim if image_dim is None else dim
        self.key = nn.Linear(text_dim, dim)  # W_a
        self.value = nn.Linear(text_dim, dim)  # W_tv

    def project(self, levels: list[Tensor]) -> Tensor:
        """Levels (B, C_i, h_i, w_i), finest first -> the image's half of Eq. 9, (B, N_q, C), not negative.

        Raises:
            ValueError: an image of another size than the model was made for.
        """
        dense = self.reduce(self.neck(self.neck.project(levels)))
        height, width = dense.shape[-2:]
        if (height, width) != (self.side, self.side):
            raise ValueError(
                f"The queries read a map of {self.side}x{self.side}, of images of the config's image_size; the map of "
                f"these has {height}x{width}."
            )
        return F.relu(self.dense(dense.flatten(2)))

    def forward(
        self, dense: Tensor, words: Tensor, attention_mask: Tensor, image_vector: Tensor | None = None
    ) -> Tensor:
        """`project` (N, N_q, C), F_t (N, L, D), mask (N, L), 1 = word, F_vg (N, image_dim) -> F_q (N, N_q, C)."""
        fused = self.fuse(words, image_vector)
        return self.attention(dense, fused, attention_mask) @ F.relu(self.value(fused))  # Eq. 10

    def fuse(self, words: Tensor, image_vector: Tensor | None) -> Tensor:
        """F_tv (Eq. 8)."""
        if self.image is None:
            return words
        return F.relu(self.words(words)) * F.relu(self.image(image_vector))[:, None]

    def attention(self, dense: Tensor, fused: Tensor, attention_mask: Tensor) -> Tensor:
        """A (N, N_q, L) of Eq. 9: weights of the words for each query; they sum to 1, none on padding."""
        scores = dense @ F.relu(self.key(fused)).transpose(1, 2)
        return scores.masked_fill(attention_mask[:, None] == 0, float("-inf")).softmax(-1)


class MultiMaskGenerator(nn.Module):
    """A 3x3 kernel and a bias from each query, and the mask they find (Eq. 11-12).

    Args:
        query_dim: C.
        feature_dim: C_p, of the map F_p that the kernels are applied to.
    """

    def __init__(self, query_dim: int, feature_dim: int):
        super().__init__()
        # W_p: F_q (N, N_q, C) -> W_q (N, N_q, 9 C_p + 1), nine cells of each of the C_p channels, then the bias
        self.kernels = nn.Linear(query_dim, 9 * feature_dim + 1)

    def forward(self, features: Tensor, kernels: Tensor) -> Tensor:
        """F_p (N, C_p, h, w), W_q (N, N_q, 9 C_p + 1) -> masks (N, N_q, h, w) as logits."""
        cells, biases = kernels.split([9 * features.shape[1], 1], -1)
        return dynamic_convolution(features, cells.unflatten(-1, (-1, 3, 3)), biases[..., 0])


def dynamic_convolution(features: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """Maps (N, C, h, w), each through its own kernels (N, Q, C, 3, 3), zero-padded, and biases (N, Q) -> (N, Q, h, w).

    One batched product gives what each of a kernel's nine cells finds at every position, and folding adds it up where
    it belongs. Unlike a convolution in N groups, it can be exported with any N.
    """
    size = features.shape[-2:]
    cells = kernels.flip(-1, -2).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (N, 9 Q, C)
    found = cells @ features.flatten(2)
    return F.fold(found, size, kernel_size=3, padding=1) + biases[..., None, None]


class MultiQueryEstimator(nn.Module):
    """How much each query's mask counts: self-attention of the queries, a linear layer, softmax (Eq. 13)."""

    def __init__(self, query_dim: int, heads: int):
        super().__init__()
        self.attention = MultiHeadAttention(query_dim, heads)
        self.score = nn.Linear(query_dim, 1, bias=False)  # W_s; the softmax would cancel a bias

    def forward(self, queries: Tensor) -> Tensor:
        """F_q (N, N_q, C) -> S_q (N, N_q), which sum to 1."""
        attended, _ = self.attention(queries, queries, queries)
        return self.score(attended)[..., 0].softmax(-1)


class VisionLanguageAligner(nn.Module):
    """Masks of the queries and their weighted sum (Eq. 11-14), in place of a fixed kernel.

    The sum of Eq. 14 is linear in the kernels, so the weighted sum of the masks is the mask of the weighted sum of the
    kernels. Training takes that shorter way and leaves the single masks out.

    Args:
        use_estimator: without it all masks weigh 1 / N_q (Table IV).
    """

    def __init__(self, query_dim: int, feature_dim: int, heads: int, use_estimator: bool = True):
        super().__init__()
        self.mask_generator = MultiMaskGenerator(query_dim, feature_dim)
        self.query_estimator = MultiQueryEstimator(query_dim, heads) if use_estimator else None

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """F_p (N, C_p, h, w), F_q (N, N_q, C) -> logits y (N, h, w), masks (N, N_q, h, w), weights (N, N_q).

        The masks are None in training.
        """
        kernels = self.mask_generator.kernels(queries)
        if self.query_estimator is None:
            weights = kernels.new_full(kernels.shape[:2], 1 / kernels.shape[1])
        else:
            weights = self.query_estimator(queries)
        if self.training:
            kernels = weights.to(kernels.dtype)[:, None] @ kernels
            return self.mask_generator(features, kernels)[:, 0], None, weights
        masks = self.mask_generator(features, kernels)
        return torch.einsum("nq,nqhw->nhw", weights.to(masks.dtype), masks), masks, weights


def map_side(image_size: int, stride: int) -> int:
    """Cells along a side of the map that the queries read. Raises ValueError where the stride does not divide it."""
    if image_size % stride:
        raise ValueError(f"image_size must be a multiple of {stride}, the stride of the fused map, got {image_size}.")
    return image_size // stride
