"""The rank of a result that was left open: the smallest that holds nearly all of it, within what servers load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunery_api.adaptermerge import OPEN_RANK_ERROR
from tunery_trainer.merging.deltas import Factored


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How much of a module's merged delta each rank holds."""

    squares: torch.Tensor
    """Squared singular values that were found, largest first, in float64."""
    rest: float
    """Squared norm of what lies beyond them."""

    def error(self, rank: int) -> float:
        """Return the relative error (Frobenius) at a rank, which is at most the number of values that were found."""
        tail = float(self.squares[rank:].sum()) + self.rest
        total = float(self.squares.sum()) + self.rest
        return math.sqrt(tail / total) if total else 0.0


def spectrum_of(merged: Factored) -> Spectrum:
    """Return the spectrum of a delta that was brought to a rank by low_rank.py: each row of A has √s for its norm."""
    squares = merged.a.double().square().sum(dim=1).square()
    caught, share = float(squares.sum()), merged.error**2
    return Spectrum(squares, caught * share / (1 - share) if share < 1 else 0.0)


def smallest_rank(spectra: Sequence[Spectrum], floor: int, limit: int) -> int:
    """Return the smallest rank from `floor` to `limit` at which no module is off by more than OPEN_RANK_ERROR.

    It is `limit` where even that does not reach it.
    """
    return next((rank for rank in range(floor, limit) if largest_error(spectra, rank) <= OPEN_RANK_ERROR), limit)


def largest_error(spectra: Sequence[Spectrum], rank: int) -> float:
    """Return the largest relative error of a module at a rank."""
    return max((spectrum.error(rank) for spectrum in spectra), default=0.0)


def cut(merged: Factored, rank: int) -> Factored:
    """Return the best approximation of a delta at a lower rank; low_rank.py puts the largest singular values first."""
    return Factored(merged.a[:rank], merged.b[:, :rank], merged.scaling, spectrum_of(merged).error(rank))
