"""How long examples are: exact percentiles and a histogram, in memory that grows with the lengths and not the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tunery_trainer.data.notes import LengthBin, LengthNotes

_SHARES: Final = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0, 2.0, 4.0)
"""Ends of the histogram's bins, as shares of maxLength: fine where most rows are; what is beyond it stands apart."""


class Lengths:
    """Examples counted by their tokens."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, tokens: int) -> None:
        """Count one more."""
        self._counts[tokens] += 1

    @property
    def total(self) -> int:
        """How many were counted."""
        return self._counts.total()

    def percentiles(self, shares: Sequence[float]) -> list[int]:
        """Return the length at each of `shares`, ascending, by nearest rank; 0 of nothing."""
        total, ordered = self.total, sorted(self._counts.items())
        ranks = [math.ceil(share * total) for share in shares]
        found: list[int] = []
        passed = 0
        for length, count in ordered:
            passed += count
            while len(found) < len(ranks) and ranks[len(found)] <= passed:
                found.append(length)
        return found + [0] * (len(ranks) - len(found))

    def notes(self, max_length: int) -> LengthNotes | None:
        """Return percentiles and histogram, bins without examples at either end left out; None of nothing."""
        if not self._counts:
            return None
        p50, p90, p99 = self.percentiles((0.5, 0.9, 0.99))
        return LengthNotes(
            p50=p50, p90=p90, p99=p99, longest=max(self._counts), histogram=list(self._histogram(max_length))
        )

    def _histogram(self, max_length: int) -> Iterator[LengthBin]:
        ends = sorted({max(1, math.ceil(share * max_length)) for share in _SHARES})
        counts = [0] * (len(ends) + 1)
        for length, count in self._counts.items():
            counts[next((index for index, end in enumerate(ends) if length <= end), len(ends))] += count
        filled = [index for index, count in enumerate(counts) if count]
        for index in range(filled[0], filled[-1] + 1):
            yield LengthBin(up_to=ends[index] if index < len(ends) else None, examples=counts[index])
