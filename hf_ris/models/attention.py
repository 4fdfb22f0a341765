"""Attention over batch-first sequences, and the transformer layer of EAVL and VLT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.MultiheadAttention):
    """torch's parameters and names, batch first, through one fused attention in training and evaluation alike.

    torch's own forward takes another path in evaluation, which FLOP counters and compilers do not see into.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__(dim, heads, dropout=dropout, batch_first=True)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """query (N, Q, C), key and value (N, K, C) -> ((N, Q, C), None).

        attn_mask: broadcast to (N, heads, Q, K): boolean, True may be attended to; or added to the scores.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(query, key, value, self.num_heads, attn_mask, dropout)), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of projected (N, Q, C), (N, K, C), (N, K, C) in `heads` parts -> (N, Q, C)."""
    dtype = query.dtype
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    if query.is_cpu:  # whose operator takes several times longer for its backward pass in bfloat16
        wide = torch.promote_types(dtype, torch.float32)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(wide)
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.to(wide), key.to(wide), value.to(wide)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2).to(dtype)


class TransformerLayer(nn.Module):
    """Self-attention, with `cross` also attention to a memory, and feed-forward; each normalised before, added after.

    Positions are added to queries and keys, not to values, in every layer anew.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float, cross: bool):
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads, dropout)
        self.cross_norm = nn.LayerNorm(dim) if cross else None
        self.cross_attention = MultiHeadAttention(dim, heads, dropout) if cross else None
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        memory: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> Tensor:
        """x (N, T, C) with positions (T, C), memory (N, M, C) with positions (M, C); None is none -> (N, T, C)."""
        y = self.self_norm(x)
        query = placed(y, positions)
        x = x + self.dropout(self.self_attention(query, query, y)[0])
        if self.cross_attention is not None:
            query = placed(self.cross_norm(x), positions)
            x = x + self.dropout(self.cross_attention(query, placed(memory, memory_positions), memory)[0])
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


def placed(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x + positions
