"""The order of rows that are put together by their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class ByLength(LengthGroupedSampler):  # type: ignore[misc]  # transformers is not typed for us
    """Puts rows of similar length into a step, in an order that seed and epoch alone decide.

    transformers' own draws from the process's random numbers, so that a resume saw other rows than were left.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        super().__init__(rows_per_step, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this pass over the data; accelerate calls it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the rows."""
        self.generator.manual_seed(self._seed + self._epoch)
        return iter(list(super().__iter__()))
