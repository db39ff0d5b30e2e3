"""Linear: the weighted sum of the true deltas; exact, or the best approximation at the asked rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunery_trainer.merging.deltas import Delta, Factored, Options, blocks
from tunery_trainer.merging.low_rank import stack, truncate_product


def factor(deltas: Sequence[Delta], options: Options) -> Factored:
    """Return Σ weight·B·A (Ilharco et al. 2023, task arithmetic), at most at the sum of the ranks.

    One adapter alone keeps its own factors, so that even a 16-bit result equals it.
    """
    total = sum(delta.rank for delta in deltas)
    if options.rank is not None and options.rank < total:
        return truncate_product(*stack(deltas), options.rank)
    alone = len(deltas) == 1 and deltas[0].weight * deltas[0].scaling > 0
    scaling = deltas[0].weight * deltas[0].scaling if alone else 1.0
    a, b = stack(deltas, scaling)
    return Factored(a, b, scaling)


def merge(deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return Σ weight·B·A, dense: what `factor` approximates. No option changes it."""
    del options
    merged = torch.zeros(deltas[0].shape)
    for delta in deltas:
        for start, stop in blocks(delta.shape):
            merged[start:stop].add_(delta.rows(start, stop), alpha=delta.weight)
    return merged
