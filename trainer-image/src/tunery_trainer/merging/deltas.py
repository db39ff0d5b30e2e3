"""The true change of one module by one adapter, B·A·scaling, made in blocks of rows when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import torch

from tunery_api.adaptermerge import MajoritySign

BLOCK_ELEMENTS: Final = 1 << 18
"""Entries of a delta that exist at once."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A low-rank change of a module: `b` (out × rank) times `a` (rank × in), times `scaling`."""

    module: str
    source: str
    """Digest of the adapter it comes from: seeds the random masks, so that the order of adapters has no say."""
    weight: float
    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows of the unweighted delta in float32."""
        return (self.b[start:stop] @ self.a) * self.scaling


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, beside the method."""

    density: Fraction = Fraction(1, 2)
    """Share of a delta's entries that is kept."""
    majority_sign: MajoritySign = MajoritySign.TOTAL
    rank: int | None = None
    """Rank of the result; None: left open."""
    seed: int = 42

    def at(self, rank: int | None) -> Options:
        """Return the same with another rank."""
        return replace(self, rank=rank)


@dataclass(frozen=True, slots=True)
class Factored:
    """A merged change: `b` (out × rank) times `a` (rank × in), times `scaling`."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float = 1.0
    error: float = 0.0
    """Relative error (Frobenius) against the merged delta that the rank cannot hold."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about BLOCK_ELEMENTS entries; they depend on the shape alone, as the DARE masks do."""
    step = max(1, BLOCK_ELEMENTS // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
