"""DARE: drop entries of each delta at random and rescale the rest; then sum them, or elect signs as TIES does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from tunery_trainer.merging.deltas import Delta, Options, blocks
from tunery_trainer.merging.methods.ties import elect_and_merge


def merge_linear(deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return Σ weight·drop(delta) (Yu et al. 2024), dense."""
    merged = torch.zeros(deltas[0].shape)
    for delta in deltas:
        drop = Drop(delta, options)
        for start, stop in blocks(delta.shape):
            merged[start:stop].add_(drop.rows(start, stop), alpha=delta.weight)
    return merged.div_(float(options.density))


def merge_ties(deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return the TIES merge with DARE's random drop in place of the trimming, dense."""
    sparse = [Drop(delta, options).rows for delta in deltas]
    return elect_and_merge(sparse, deltas, options.majority_sign).div_(float(options.density))


class Drop:
    """A delta whose entries are each kept with probability `density`.

    DARE divides what it keeps by the density; that is done once, to the merged result, which is the same and keeps
    entries that cancel out exactly from getting a sign by rounding.

    The mask depends on the seed, the module and the adapter's digest only: neither the order of modules nor that
    of adapters changes it, and a retry draws the same.
    """

    def __init__(self, delta: Delta, options: Options) -> None:
        self.delta = delta
        self.density = float(options.density)
        self.seed = options.seed

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows of the sparse delta; `start` and `stop` as `blocks` gives them."""
        part = self.delta.rows(start, stop)
        return part.mul_(self.mask(start, part.shape))

    def mask(self, start: int, shape: torch.Size) -> torch.Tensor:
        """Draw the mask of the block that begins at row `start`."""
        key = f"{self.seed}/{self.delta.module}/{self.delta.source}/{start}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < self.density
