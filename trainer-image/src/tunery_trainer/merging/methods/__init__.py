"""Every method of merging: one file each, listed here; and the way back to a low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch

from tunery_api.adaptermerge import OPEN_RANK_LIMIT, MergeMethod
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.low_rank import truncate_dense
from tunery_trainer.merging.methods import dare, knots, linear, magnitude_prune, ties

METHODS: Final[dict[MergeMethod, Callable[[Sequence[Delta], Options], torch.Tensor]]] = {
    MergeMethod.LINEAR: linear.merge,
    MergeMethod.TIES: ties.merge,
    MergeMethod.DARE_LINEAR: dare.merge_linear,
    MergeMethod.DARE_TIES: dare.merge_ties,
    MergeMethod.MAGNITUDE_PRUNE: magnitude_prune.merge,
    MergeMethod.KNOTS_TIES: partial(knots.merge, MergeMethod.KNOTS_TIES),
    MergeMethod.KNOTS_DARE_TIES: partial(knots.merge, MergeMethod.KNOTS_DARE_TIES),
}
"""Each takes the deltas of one module (all of one shape, at least one) and gives the merged delta, dense."""

FACTORED: Final[dict[MergeMethod, Callable[[Sequence[Delta], Options], Factored]]] = {
    MergeMethod.LINEAR: linear.factor,
    MergeMethod.KNOTS_TIES: partial(knots.factor, MergeMethod.KNOTS_TIES),
    MergeMethod.KNOTS_DARE_TIES: partial(knots.factor, MergeMethod.KNOTS_DARE_TIES),
}
"""The methods that never form the dense delta, and are exact at the sum of the ranks."""


def merge(method: MergeMethod, deltas: Sequence[Delta], options: Options) -> Factored:
    """Return the merged delta at the rank that `result_rank` tells."""
    ranks = [delta.rank for delta in deltas]
    rank = result_rank(method, ranks, deltas[0].shape, options.rank)
    if method in FACTORED:
        return FACTORED[method](deltas, options.at(None if is_exact(method, ranks, options.rank) else rank))
    return truncate_dense(METHODS[method](deltas, options), rank, options.seed)


def is_exact(method: MergeMethod, ranks: Sequence[int], rank: int | None) -> bool:
    """Tell whether a rank, or the largest that an open one may become, holds the merge without any loss."""
    return method in FACTORED and sum(ranks) <= (rank or _open_limit(ranks))


def result_rank(method: MergeMethod, ranks: Sequence[int], shape: tuple[int, int], rank: int | None) -> int:
    """Return the rank of the result, which is known before any tensor is read; the largest of an open one.

    What is exact has the sum of the ranks.
    """
    return sum(ranks) if is_exact(method, ranks, rank) else min(rank or _open_limit(ranks), *shape)


def _open_limit(ranks: Sequence[int]) -> int:
    """Whoever loads the inputs loads a result of their rank too."""
    return max(OPEN_RANK_LIMIT, *ranks)
