"""MagnitudePrune: keep the largest entries of each delta, then sum them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunery_trainer.merging.deltas import Delta, Options, blocks
from tunery_trainer.merging.methods.trim import Trim


def merge(deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return Σ weight·trim(delta) (PEFT's magnitude_prune, on true deltas), dense."""
    merged = torch.zeros(deltas[0].shape)
    for delta in deltas:
        trim = Trim(delta, options.density)
        for start, stop in blocks(delta.shape):
            merged[start:stop].add_(trim.rows(start, stop), alpha=delta.weight)
    return merged
