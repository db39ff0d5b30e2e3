"""KnOTS against a dense float64 reference, written here from the paper's definition (Stoica et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch

from tunery_api.adaptermerge import MajoritySign, MergeMethod
from tunery_trainer.merging import deltas
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.methods import METHODS, dare, merge

from kit.adapters import factors, relative

KNOTS = (MergeMethod.KNOTS_TIES, MergeMethod.KNOTS_DARE_TIES)
Sparsify = Callable[[torch.Tensor, Delta], torch.Tensor]


def dense(delta: Delta) -> torch.Tensor:
    return delta.b.double() @ delta.a.double() * delta.scaling


def product(merged: Factored) -> torch.Tensor:
    return merged.b.double() @ merged.a.double() * merged.scaling


def reference(inputs: Sequence[Delta], sparsify: Sparsify, sign: MajoritySign) -> torch.Tensor:
    """The SVD of all deltas beside each other; TIES over the entries of each ΣV; back by U."""
    stacked = torch.cat([dense(delta) for delta in inputs], dim=1)
    u, s, vh = torch.linalg.svd(stacked, full_matrices=False)
    kept = s > 1e-6 * s[0]
    shares = (s[kept, None] * vh[kept]).chunk(len(inputs), dim=1)
    parts = torch.stack([sparsify(share, delta) for share, delta in zip(shares, inputs, strict=True)])
    total, votes = parts.sum(0).sign(), parts.sign().sum(0).sign()
    elected = total if sign == MajoritySign.TOTAL else torch.where(votes == 0, total, votes)
    agrees = (parts.sign() == elected) & (parts != 0)
    weights = torch.tensor([delta.weight for delta in inputs], dtype=torch.float64).view(-1, 1, 1)
    return u[:, kept] @ ((parts * weights * agrees).sum(0) / agrees.sum(0).clamp(min=1))


def trimmed(density: Fraction) -> Sparsify:
    """Keep the largest entries by magnitude."""

    def keep(share: torch.Tensor, _: Delta) -> torch.Tensor:
        count = int(density * share.numel())
        threshold = share.abs().flatten().sort(descending=True).values[count - 1] if count else math.inf
        return share * (share.abs() >= threshold)

    return keep


def dropped(options: Options) -> Sparsify:
    """Drop entries at random by the product's own masks, and rescale."""

    def keep(share: torch.Tensor, delta: Delta) -> torch.Tensor:
        drop = dare.Drop(Delta(delta.module, delta.source, 1.0, share, torch.eye(len(share)), 1.0), options)
        shape = (share.shape[0], share.shape[1])
        mask = torch.cat([drop.mask(i, torch.Size((j - i, shape[1]))) for i, j in deltas.blocks(shape)])
        return share * mask / float(options.density)

    return keep


def sparsify(method: MergeMethod, options: Options) -> Sparsify:
    return trimmed(options.density) if method == MergeMethod.KNOTS_TIES else dropped(options)


def random_deltas(shape: tuple[int, int], ranks: Sequence[int]) -> list[Delta]:
    made = []
    for index, rank in enumerate(ranks):
        a, b = factors(rank, *shape, seed=index)
        made.append(Delta("layers.0.q_proj", f"digest-{index}", 0.5 + 0.3 * index, a, b, 1.0 + index))
    return made


@pytest.mark.parametrize("sign", list(MajoritySign))
@pytest.mark.parametrize("density", [Fraction(1, 5), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("shape", [(90, 70), (20, 130), (130, 9)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("method", KNOTS)
def test_equals_the_definition(
    method: MergeMethod, shape: tuple[int, int], density: Fraction, sign: MajoritySign
) -> None:
    inputs = random_deltas(shape, (4, 6, 3))
    options = Options(density, sign, seed=7)
    merged, expected = merge(method, inputs, options), reference(inputs, sparsify(method, options), sign)
    assert relative(product(merged), expected) <= 2e-6
    assert (merged.rank, merged.error) == (13, 0.0), "exact at the sum of the ranks"
    assert relative(METHODS[method](inputs, options), expected) <= 2e-6


@pytest.mark.parametrize("method", KNOTS)
def test_a_rank_is_the_best_approximation(method: MergeMethod) -> None:
    inputs = random_deltas((90, 70), (4, 6, 3))
    options = Options(rank=5)
    merged, expected = merge(method, inputs, options), reference(inputs, sparsify(method, options), MajoritySign.TOTAL)
    squares = torch.linalg.svdvals(expected).square()
    best = float((squares[5:].sum() / squares.sum()).sqrt())
    assert relative(product(merged), expected) == pytest.approx(best, rel=1e-4)
    assert merged.error == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("method", KNOTS)
def test_the_order_of_the_adapters_has_no_say(method: MergeMethod) -> None:
    inputs = random_deltas((40, 30), (4, 6, 3))
    one, other = (product(merge(method, order, Options())) for order in (inputs, inputs[::-1]))
    assert relative(other, one) <= 1e-5


@pytest.mark.parametrize("method", KNOTS)
def test_adapters_of_one_subspace_need_no_more_than_it(method: MergeMethod) -> None:
    """The stacked deltas have a lower rank than the ranks sum up to: what lies beyond is rounding, and no direction."""
    a, b = factors(4, 40, 30, seed=1)
    inputs = [Delta("m", str(i), 1.0, a * (1 + i), b, 1.0) for i in range(2)]
    merged = merge(method, inputs, Options(Fraction(1)))
    assert relative(product(merged), 1.5 * dense(inputs[0])) <= 1e-6
    assert merged.rank == 8


def test_nothing_stays_nothing() -> None:
    nothing = [Delta("m", str(i), 1.0, torch.randn(2, 9), torch.zeros(7, 2), 1.0) for i in range(2)]
    assert float(product(merge(MergeMethod.KNOTS_TIES, nothing, Options())).abs().max()) == 0.0
