"""Two evaluations of the same rows: how far they are apart, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FEWEST_ROWS: Final = 8
"""With fewer rows the spread between them says nothing."""


@dataclass(frozen=True)
class RowLosses:
    """What each held-out row adds to the loss, always in the same order; the loss is sum(sums) / sum(counts).

    Copies of a row stand there once, with what all of them add: they move alike, and tell no more than one does.
    """

    sums: tuple[float, ...]
    """Nats of each row; of a preference task, its loss."""
    counts: tuple[float, ...]
    """Tokens that count in each row; of a preference task 1 each, of ORPO the row's share of all."""

    @property
    def loss(self) -> float:
        """The loss on all rows; NaN where nothing counts."""
        total = math.fsum(self.counts)
        return math.fsum(self.sums) / total if total else math.nan

    def merged(self, contents: Sequence[bytes]) -> RowLosses:
        """Return the same with rows of one content as one, where the first of them stands."""
        copies: dict[bytes, list[int]] = {}
        for at, each in enumerate(contents):
            copies.setdefault(each, []).append(at)
        if len(copies) == len(contents):
            return self
        sums, counts = (
            tuple(math.fsum(values[at] for at in group) for group in copies.values())
            for values in (self.sums, self.counts)
        )
        return RowLosses(sums, counts)


@dataclass(frozen=True)
class Difference:
    """How far a loss is from another one on the same rows."""

    value: float
    """In the unit of the loss; negative where the newer one is lower."""
    error: float
    """Its standard error: how far it would move with other rows of the same kind."""
    ratio_error: float | None = None
    """Standard error of the difference as a share of the older loss, which would move with other rows, too; None where
    that loss is 0."""

    @property
    def z(self) -> float:
        """The difference in standard errors; infinite where every row moved alike."""
        if self.error:
            return self.value / self.error
        return math.copysign(math.inf, self.value) if self.value else 0.0

    def share_error(self, of: float) -> float:
        """Return the standard error of the difference as a share of `of`, the older loss."""
        return self.error / abs(of) if self.ratio_error is None else self.ratio_error


def paired(now: RowLosses, before: RowLosses) -> Difference | None:
    """Return how `now` differs from `before`; None where the rows are fewer than FEWEST_ROWS, or not the same.

    The ratio estimator for clusters of unequal size (Cochran, Sampling Techniques, 6.4): a row with many tokens weighs
    as much as it does in the loss, and what both evaluations have in common cancels row by row. As a share it is the
    ratio of the two losses, in which the counts cancel: where each row lost the same share of its loss, it is certain.
    """
    rows, total = len(now.counts), math.fsum(now.counts)
    if rows < FEWEST_ROWS or now.counts != before.counts or not total:
        return None
    changes = [new - old for new, old in zip(now.sums, before.sums, strict=True)]
    value = math.fsum(changes) / total
    return Difference(value, _error(changes, value, now.counts), _ratio_error(now.sums, before.sums))


def _ratio_error(now: Sequence[float], before: Sequence[float]) -> float | None:
    whole = math.fsum(before)
    return _error(now, math.fsum(now) / whole, before) if whole else None


def _error(parts: Sequence[float], ratio: float, of: Sequence[float]) -> float:
    """Return the standard error of `ratio`, which is sum(parts) / sum(of), by the delta method."""
    rows = len(of)
    residuals = (part - ratio * each for part, each in zip(parts, of, strict=True))
    spread = math.fsum(residual * residual for residual in residuals) * rows / (rows - 1)
    return math.sqrt(spread) / abs(math.fsum(of))
