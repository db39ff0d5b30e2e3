"""KnOTS: TIES, or DARE and TIES, in the adapters' common basis; from the factors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from tunery_api.adaptermerge import MergeMethod
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.factorization import qr, svd
from tunery_trainer.merging.low_rank import truncate_product
from tunery_trainer.merging.methods import dare, ties

NOTHING: Final = 1e-6
"""Directions of the common basis whose singular value is at most this share of the largest are rounding."""

_INNER: Final[dict[MergeMethod, Callable[[Sequence[Delta], Options], torch.Tensor]]] = {
    MergeMethod.KNOTS_TIES: ties.merge,
    MergeMethod.KNOTS_DARE_TIES: dare.merge_ties,
}
"""What merges the adapters' coordinates in the common basis."""


def factor(method: MergeMethod, deltas: Sequence[Delta], options: Options) -> Factored:
    """Return the KnOTS merge (Stoica et al. 2024) of deltas (out × in), at most at the sum of their ranks.

    [ΔW₁ … ΔWₙ] = U Σ [V₁ … Vₙ]; the ΣVₖ, each adapter's coordinates, are merged by TIES, and U leads back. Exact at
    the sum of the ranks; at a smaller asked rank it is the best approximation.
    """
    basis, parts = coordinates(deltas)
    merged = Factored(_INNER[method](parts, options), basis)
    total = sum(delta.rank for delta in deltas)
    if options.rank is not None and options.rank < total:
        return truncate_product(merged.a, merged.b, min(options.rank, *deltas[0].shape))
    return _padded(merged, total)


def merge(method: MergeMethod, deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return the merge before any rank is asked for, dense (out × in)."""
    basis, parts = coordinates(deltas)
    return basis @ _INNER[method](parts, options)


def coordinates(deltas: Sequence[Delta]) -> tuple[torch.Tensor, list[Delta]]:
    """Return the common basis U (out × k) and each adapter's coordinates ΣV in it (k × in), in float32.

    [B₁A₁ … BₙAₙ] is the stacked B times the block diagonal of the A: with B = Q R and each Aₖᵀ = Qₖ Tₖ, its singular
    values are those of the small core R · diag(T₁ᵀ … Tₙᵀ). In float64, so that neither the order of the adapters nor
    rounding moves what is trimmed.
    """
    q, r = qr(torch.cat([delta.b.double() * delta.scaling for delta in deltas], dim=1))
    pairs = [qr(delta.a.double().T) for delta in deltas]
    ranks, widths = torch.split(r, [delta.rank for delta in deltas], dim=1), [t.shape[0] for _, t in pairs]
    core = [rows @ t.T for rows, (_, t) in zip(ranks, pairs, strict=True)]
    u, s, vh = svd(torch.cat(core, dim=1))
    kept = int((s > NOTHING * s[0]).sum()) if len(s) else 0
    shares = torch.split(s[:kept, None] * vh[:kept], widths, dim=1)
    rows = torch.eye(kept)
    parts = [
        Delta(delta.module, delta.source, delta.weight, (share @ basis.T).float(), rows, 1.0)
        for delta, share, (basis, _) in zip(deltas, shares, pairs, strict=True)
    ]
    return (q @ u[:, :kept]).float(), parts


def _padded(merged: Factored, rank: int) -> Factored:
    """Fill up with zeros: the rank of the result is known before the rank of the common basis is."""
    missing = rank - merged.rank
    a = torch.cat([merged.a, merged.a.new_zeros(missing, merged.a.shape[1])])
    b = torch.cat([merged.b, merged.b.new_zeros(merged.b.shape[0], missing)], dim=1)
    return Factored(a, b)
