"""Groups of expressions of about equal size by length (VATEX, supplementary 2.8; numpy only)."""

import numpy as np


def length_groups(lengths: np.ndarray, groups: int = 4) -> list[tuple[str, np.ndarray]]:
    """`lengths` (N,) in words -> at most `groups` pairs (label such as "3" or "4-5", bool (N,)), short to long.

    The groups cover everything and never part one length. Each boundary lies after the length whose cumulative count
    comes nearest to its share of N; where one length spans several shares there are fewer groups.
    """
    lengths = np.asarray(lengths, np.int64)
    if groups < 1:
        raise ValueError(f"groups is {groups}, but at least one group is needed")
    if lengths.ndim != 1 or lengths.size == 0:
        raise ValueError(f"lengths is a list with at least one number of words, but its shape is {lengths.shape}")
    values, counts = np.unique(lengths, return_counts=True)
    shares = lengths.size * np.arange(1, groups) / groups
    nearest = np.abs(counts.cumsum()[None, :] - shares[:, None]).argmin(axis=1)
    last = values[np.unique(np.append(nearest, values.size - 1))]
    first = values[np.append(0, np.searchsorted(values, last[:-1]) + 1)]
    return [
        (f"{low}-{high}" if low < high else f"{low}", (lengths >= low) & (lengths <= high))
        for low, high in zip(first, last)
    ]
