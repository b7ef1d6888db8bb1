"""The order of samples: which positions of the (sub)set make up the batch of a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers import rng

__all__ = ["SampleOrder"]


class SampleOrder:
    """Batches as a pure function of the step: any step can be asked for, in any order.

    With at least a batch of samples, every epoch is a fresh permutation and its remainder is
    dropped. With fewer, permutations follow each other without a gap, so that every batch is full.
    Permutation k comes from stream "order" with counter k. Batches are global: ranks slice them.
    """

    def __init__(self, num_samples: int, batch_size: int, role: rng.Role, seed: int) -> None:
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"no batches of {batch_size} from {num_samples} samples")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self._role: rng.Role = role
        self._seed = seed
        self._permutations: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Positions in 0..num_samples-1 of the batch of `step` (from 0), (batch_size,)."""
        if self.num_samples >= self.batch_size:
            epoch, place = divmod(step, self.num_samples // self.batch_size)
            start = epoch * self.num_samples + place * self.batch_size
        else:
            start = step * self.batch_size
        return self._stream(start, start + self.batch_size)

    def batches(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Positions of the batches of steps first..first + count - 1, (count, batch_size)."""
        return np.stack([self.batch(step) for step in range(first, first + count)])

    def _stream(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Elements start..stop-1 of the endless stream of permutations."""
        first, last = start // self.num_samples, (stop - 1) // self.num_samples
        # Only the permutations of this batch are kept: the next batch mostly needs the same.
        self._permutations = {k: self._permutation(k) for k in range(first, last + 1)}
        n = self.num_samples
        parts = [p[max(start - k * n, 0) : stop - k * n] for k, p in self._permutations.items()]
        return np.concatenate(parts)

    def _permutation(self, counter: int) -> npt.NDArray[np.int64]:
        if counter in self._permutations:
            return self._permutations[counter]
        generator = rng.generator(self._role, self._seed, "order", counter)
        return generator.permutation(self.num_samples)
