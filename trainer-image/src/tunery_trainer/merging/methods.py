"""Every method of merging: one file each, listed here; and the way back to a low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from tunery_api.adaptermerge import MergeMethod
from tunery_trainer.merging import dare, linear, magnitude_prune, ties
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.svd import truncate_dense

METHODS: Final[dict[MergeMethod, Callable[[Sequence[Delta], Options], torch.Tensor]]] = {
    MergeMethod.LINEAR: linear.merge,
    MergeMethod.TIES: ties.merge,
    MergeMethod.DARE_LINEAR: dare.merge_linear,
    MergeMethod.DARE_TIES: dare.merge_ties,
    MergeMethod.MAGNITUDE_PRUNE: magnitude_prune.merge,
}
"""Each takes the deltas of one module (all of one shape, at least one) and gives the merged delta, dense."""


def merge(method: MergeMethod, deltas: Sequence[Delta], options: Options) -> Factored:
    """Return the merged delta at the rank that `result_rank` tells; Linear never forms the dense one."""
    if method == MergeMethod.LINEAR:
        return linear.factor(deltas, options)
    rank = result_rank(method, [delta.rank for delta in deltas], deltas[0].shape, options.rank)
    return truncate_dense(METHODS[method](deltas, options), rank, options.seed)


def result_rank(method: MergeMethod, ranks: Sequence[int], shape: tuple[int, int], rank: int | None) -> int:
    """Return the rank of the result, which is known before any tensor is read.

    Linear without a rank is exact, at the sum of the ranks; the others default to the largest input rank.
    """
    if method == MergeMethod.LINEAR and (rank is None or rank >= sum(ranks)):
        return sum(ranks)
    return min(rank or max(ranks), *shape)
