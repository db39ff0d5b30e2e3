"""Every method of merging: one file each, listed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tunery_api.adaptermerge import MergeMethod

from tunery_trainer.merging import dare, linear, magnitude_prune, ties
from tunery_trainer.merging.deltas import Delta, Factored, Options

METHODS: Final[dict[MergeMethod, Callable[[Sequence[Delta], Options], Factored]]] = {
    MergeMethod.LINEAR: linear.merge,
    MergeMethod.TIES: ties.merge,
    MergeMethod.DARE_LINEAR: dare.merge_linear,
    MergeMethod.DARE_TIES: dare.merge_ties,
    MergeMethod.MAGNITUDE_PRUNE: magnitude_prune.merge,
}
"""Each takes the deltas of one module (all of one shape, at least one) and gives the merged change."""


def result_rank(method: MergeMethod, ranks: Sequence[int], shape: tuple[int, int], rank: int | None) -> int:
    """Return the rank that `METHODS[method]` gives its result: known before any tensor is read."""
    if method == MergeMethod.LINEAR and (rank is None or rank >= sum(ranks)):
        return sum(ranks)
    return min(rank or max(ranks), *shape)
