"""Back to a rank: the best approximation from factors, a measured and near-best one from a dense matrix."""

from __future__ import annotations

import pytest
import torch

from tunery_trainer.merging import low_rank
from tunery_trainer.merging.deltas import Delta, Options
from tunery_trainer.merging.methods import linear

from kit.adapters import factors, relative


def optimal_error(matrix: torch.Tensor, rank: int) -> float:
    """The tail of the singular values: no approximation at this rank is better (Eckart, Young 1936)."""
    squares = torch.linalg.svdvals(matrix.double()).square()
    return float((squares[rank:].sum() / squares.sum()).sqrt())


@pytest.mark.parametrize("rank", [1, 4, 10, 20])
@pytest.mark.parametrize("shape", [(120, 90), (40, 200), (300, 24)])
def test_linear_at_a_rank_is_the_best_approximation(shape: tuple[int, int], rank: int) -> None:
    inputs = [Delta("m", str(i), 0.6, *factors(8, *shape, seed=i), 1.5) for i in range(3)]
    total = sum(delta.weight * delta.scaling * (delta.b.double() @ delta.a.double()) for delta in inputs)
    assert isinstance(total, torch.Tensor)
    merged = linear.factor(inputs, Options(rank=rank))
    best = optimal_error(total, rank)
    assert relative(merged.b.double() @ merged.a.double(), total) == pytest.approx(best, rel=1e-5)
    assert merged.error == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0], ids=["flat", "slow", "fast"])
def test_a_dense_matrix_comes_near_the_best_and_tells_its_error(decay: float) -> None:
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(700, 500, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(500, 500, generator=generator)).Q
    matrix = (u * torch.arange(1, 501).float().pow(-decay)) @ v.T
    merged = low_rank.truncate_dense(matrix, 16, seed=1)
    best = optimal_error(matrix, 16)
    actual = relative(merged.b.double() @ merged.a.double(), matrix)
    assert actual <= best * (1 + 2e-3)
    assert merged.error == pytest.approx(actual, rel=1e-4)


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    a, b = factors(12, 600, 400, seed=5)
    merged = low_rank.truncate_dense(b @ a, 16, seed=1)
    assert relative(merged.b @ merged.a, b @ a) <= 2e-6
    assert merged.error <= 2e-6


def test_zero_stays_zero() -> None:
    merged = low_rank.truncate_dense(torch.zeros(600, 400), 8, seed=1)
    assert (merged.rank, merged.error, float(merged.a.abs().sum() + merged.b.abs().sum())) == (8, 0.0, 0.0)
