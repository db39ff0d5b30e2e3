"""Back to a low rank: exactly from stacked factors, or from a dense matrix by subspace iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from tunery_trainer.merging.deltas import Delta, Factored, blocks
from tunery_trainer.merging.factorization import qr, svd

OVERSAMPLING: Final = 16
DENSE_LIMIT: Final = 256
"""A matrix whose smaller side is at most this takes a full SVD."""
TOLERANCE: Final = 1e-4
"""Iteration ends when a pass lowers the squared error by less than this share of it."""
MAX_PASSES: Final = 12


def stack(deltas: Sequence[Delta], scaling: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of the weighted sum of deltas, at the sum of their ranks.

    B is divided by `scaling`, the factor that the result is going to carry.
    """
    a = torch.cat([delta.a for delta in deltas])
    b = torch.cat([delta.b * (delta.weight * delta.scaling / scaling) for delta in deltas], dim=1)
    return a, b


def truncate_product(a: torch.Tensor, b: torch.Tensor, rank: int) -> Factored:
    """Return the best approximation of B·A at a rank (Eckart, Young 1936) without ever forming B·A.

    B = Q_b R_b and Aᵀ = Q_a R_a, so the singular values of B·A are those of the small core R_b R_aᵀ. In float64,
    so that the error stays at the tail of the singular values even where that is small.
    """
    q_b, r_b = qr(b.double())
    q_a, r_a = qr(a.double().T)
    u, s, vh = svd(r_b @ r_a.T)
    return _split(q_b @ u[:, :rank], s, vh[:rank] @ q_a.T, rank)


def truncate_dense(matrix: torch.Tensor, rank: int, seed: int) -> Factored:
    """Return an approximation of a dense float32 matrix at a rank, with its measured error.

    Randomized subspace iteration with Rayleigh-Ritz (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1). The
    squared error is known in every pass, as |M|² minus what the basis has caught; it ends when that settles.
    """
    small = min(matrix.shape)
    if small <= max(DENSE_LIMIT, rank + OVERSAMPLING):
        u, s, vh = svd(matrix.double())
        return _split(u[:, :rank], s, vh[:rank], rank)
    total = _squared_norm(matrix)
    if total == 0.0:
        return Factored(matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(matrix.shape[0], rank))
    generator = torch.Generator().manual_seed(seed)
    columns = min(small, 2 * rank + OVERSAMPLING)
    basis = qr(matrix @ torch.randn(matrix.shape[1], columns, generator=generator))[0]
    u, s, vh = _iterate(matrix, basis, rank, total)
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    return Factored(a, b, error=(_squared_distance(matrix, a, b) / total) ** 0.5)


def _iterate(
    matrix: torch.Tensor, basis: torch.Tensor, rank: int, total: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn the basis towards the leading singular vectors until the error settles; return u, s, vh."""
    before = float("inf")
    for _ in range(MAX_PASSES):
        q, r = qr(matrix.T @ basis)
        u, s, vh = svd(r.T)
        error = total - float(s[:rank].double().square().sum())
        # float32 products know the error only to about 1e-7 of the whole.
        if before - error <= TOLERANCE * max(error, 0.0) + 1e-7 * total:
            break
        before = error
        basis = qr(matrix @ q)[0]
    return basis @ u, s, vh @ q.T


def _split(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, rank: int) -> Factored:
    """Share the singular values evenly between both factors, which keeps them of one magnitude."""
    squares = s.double().square()
    total, tail = float(squares.sum()), float(squares[rank:].sum())
    root = s[:rank].sqrt()
    error = (tail / total) ** 0.5 if total else 0.0
    return Factored((root[:, None] * vh).float(), (u * root).float(), error=error)


def _squared_norm(matrix: torch.Tensor) -> float:
    shape = (matrix.shape[0], matrix.shape[1])
    return sum(float(matrix[i:j].double().square().sum()) for i, j in blocks(shape))


def _squared_distance(matrix: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    shape = (matrix.shape[0], matrix.shape[1])
    return sum(float((matrix[i:j] - b[i:j] @ a).double().square().sum()) for i, j in blocks(shape))
