"""Trimming: the largest entries of a delta, found exactly and without holding or sorting it."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import torch

from tunery_trainer.merging.deltas import Delta, blocks

HALF: Final = 16
"""A float32 magnitude, read as an integer, orders like the number; it is searched in two halves of bits."""
NOTHING: Final = 2**31 - 1
"""A threshold above every finite magnitude."""


class Trim:
    """The ⌊density·n⌋ largest entries of a delta by magnitude; of equal ones the first in row order are kept."""

    def __init__(self, delta: Delta, density: Fraction) -> None:
        self.delta = delta
        self._threshold, equal, self._spare = self._search(int(density * delta.shape[0] * delta.shape[1]))
        # Where all entries that equal the threshold are kept, nothing needs counting.
        self._equal_before = self._count_equal() if equal > self._spare else None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows of the trimmed delta; `start` and `stop` as `blocks` gives them."""
        part = self.delta.rows(start, stop)
        bits = _magnitude(part)
        if self._equal_before is None:
            return part.mul_(bits >= self._threshold)
        kept = bits > self._threshold
        spare = max(0, self._spare - self._equal_before[start])
        equal = (bits == self._threshold).view(-1).nonzero()[:spare, 0]
        kept.view(-1)[equal] = True
        return part.mul_(kept)

    def _search(self, keep: int) -> tuple[int, int, int]:
        """Return the k-th largest magnitude as bits, how many entries equal it, and how many of them are kept."""
        if keep == 0:
            return NOTHING, 0, 0
        top, _, rest = _descend(self._histogram(None), keep)
        bottom, equal, spare = _descend(self._histogram(top), rest)
        return (top << HALF) | bottom, equal, spare

    def _histogram(self, top: int | None) -> torch.Tensor:
        """Count the high halves, or the low halves of the entries whose high half is `top`."""
        counts = torch.zeros(1 << HALF, dtype=torch.int64)
        for start, stop in blocks(self.delta.shape):
            bits = _magnitude(self.delta.rows(start, stop)).view(-1)
            high = bits >> HALF
            half = high if top is None else bits[high == top] & ((1 << HALF) - 1)
            counts += torch.bincount(half, minlength=1 << HALF)
        return counts

    def _count_equal(self) -> dict[int, int]:
        """Count the entries equal to the threshold before each block."""
        before: dict[int, int] = {}
        count = 0
        for start, stop in blocks(self.delta.shape):
            before[start] = count
            count += int((_magnitude(self.delta.rows(start, stop)) == self._threshold).sum())
        return before


def _magnitude(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().view(torch.int32)


def _descend(counts: torch.Tensor, keep: int) -> tuple[int, int, int]:
    """Return the bin that holds the k-th largest, the entries in it, and the kept ones among them."""
    above = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(above, keep))
    index = counts.numel() - 1 - position
    equal = int(counts[index])
    return index, equal, keep - (int(above[position]) - equal)
