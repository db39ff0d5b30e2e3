"""DARE: drop entries of each delta at random and rescale the rest; then sum them, or elect signs as TIES does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from tunery_trainer.merging.deltas import Delta, Factored, Options, blocks, largest_rank
from tunery_trainer.merging.svd import truncate_dense
from tunery_trainer.merging.ties import elect_and_merge


def merge_linear(deltas: Sequence[Delta], options: Options) -> Factored:
    """Return Σ weight·drop(delta) (Yu et al. 2024), at a rank."""
    merged = torch.zeros(deltas[0].shape)
    for delta in deltas:
        drop = Drop(delta, options)
        for start, stop in blocks(delta.shape):
            merged[start:stop].add_(drop.rows(start, stop), alpha=delta.weight)
    return truncate_dense(merged, largest_rank(deltas, options), options.seed)


def merge_ties(deltas: Sequence[Delta], options: Options) -> Factored:
    """Return the TIES merge with DARE's random drop in place of the trimming, at a rank."""
    sparse = [Drop(delta, options).rows for delta in deltas]
    dense = elect_and_merge(sparse, deltas, options.majority_sign)
    return truncate_dense(dense, largest_rank(deltas, options), options.seed)


class Drop:
    """A delta whose entries are each kept with probability `density` and divided by it.

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
        return part.mul_(self.mask(start, part.shape)).div_(self.density)

    def mask(self, start: int, shape: torch.Size) -> torch.Tensor:
        """Draw the mask of the block that begins at row `start`."""
        key = f"{self.seed}/{self.delta.module}/{self.delta.source}/{start}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < self.density
