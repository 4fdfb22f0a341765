"""The order of a run's data as a pure function of (seed, step): nothing to save, nothing to skip when it is resumed."""

from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A 32-bit seed from several numbers (run's seed, step, rank) that do not run into each other as sums do."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class StepBatches(torch.utils.data.Sampler):
    """Batches of keys (epoch, index) for one process, from step `start` on.

    Every epoch is a permutation of its own, cut into batches of `batch_size`; what is left over is not seen in that
    epoch. A batch is dealt to `processes * accumulation` pieces, so that the batches of all processes together are the
    same however many there are.

    Args:
        length: number of rows. batch_size: rows of an optimizer step over all processes and accumulation pieces.
        start, stop: optimizer steps. rank: of this process.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
    ):
        pieces = processes * accumulation
        if batch_size % pieces:
            raise ValueError(
                f"training.batch_size {batch_size} is over all processes: {processes} processes times "
                f"{accumulation} accumulation pieces must divide it."
            )
        if length < batch_size:
            raise ValueError(f"The training split has {length} rows, fewer than a batch of {batch_size}.")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.steps = range(start, stop)
        self.pieces = [piece * processes + rank for piece in range(accumulation)]
        self.per_piece = batch_size // pieces

    def __len__(self) -> int:
        return len(self.steps) * len(self.pieces)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order, steps_per_epoch = -1, None, self.length // self.batch_size
        for step in self.steps:
            if epoch != step // steps_per_epoch:
                epoch = step // steps_per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            offset = step % steps_per_epoch * self.batch_size
            for piece in self.pieces:
                first = offset + piece * self.per_piece
                yield [(epoch, int(index)) for index in order[first : first + self.per_piece]]
