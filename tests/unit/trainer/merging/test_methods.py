"""Every method against a plain float64 reference, written here from the papers' definitions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from tunery_api.adaptermerge import MajoritySign, MergeMethod
from tunery_trainer.merging import deltas
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.methods import dare, merge, result_rank

from kit.adapters import factors, relative

HALF = Fraction(1, 2)
FULL_RANK = 64
ENTRYWISE = [method for method in MergeMethod if "KnOTS" not in method]
"""The others work in a basis of their own: test_knots.py."""
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9))


def dense(delta: Delta) -> torch.Tensor:
    return delta.b.double() @ delta.a.double() * delta.scaling


def product(merged: Factored) -> torch.Tensor:
    return merged.b.double() @ merged.a.double() * merged.scaling


def trimmed(delta: torch.Tensor, density: Fraction) -> torch.Tensor:
    """The ⌊density·n⌋ largest magnitudes; of equal ones the first in row order."""
    flat = delta.flatten()
    order = flat.abs().argsort(descending=True, stable=True)[: int(density * flat.numel())]
    kept = torch.zeros_like(flat)
    kept[order] = flat[order]
    return kept.view_as(delta)


def ties(parts: Sequence[torch.Tensor], weights: Sequence[float], sign: MajoritySign) -> torch.Tensor:
    """Yadav et al. 2023, section 3: elect a sign, then the mean of the entries that bear it."""
    stacked = torch.stack(list(parts))
    total = stacked.sum(0).sign()
    votes = stacked.sign().sum(0).sign()
    elected = total if sign == MajoritySign.TOTAL else torch.where(votes == 0, total, votes)
    agrees = (stacked.sign() == elected) & (stacked != 0)
    weighted = stacked * torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def linear(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return sum((part * weight for part, weight in zip(parts, weights, strict=True)), torch.zeros_like(parts[0]))


def dropped(delta: Delta, options: Options) -> torch.Tensor:
    """DARE (Yu et al. 2024): drop with probability 1 - density; what is left is divided by the density later."""
    drop = dare.Drop(delta, options)
    mask = torch.cat([drop.mask(i, torch.Size((j - i, delta.shape[1]))) for i, j in deltas.blocks(delta.shape)])
    return dense(delta) * mask


def reference(method: MergeMethod, inputs: Sequence[Delta], options: Options) -> torch.Tensor:
    weights = [delta.weight for delta in inputs]
    if method == MergeMethod.LINEAR:
        return linear([dense(delta) for delta in inputs], weights)
    if method in (MergeMethod.TIES, MergeMethod.MAGNITUDE_PRUNE):
        parts, rescale = [trimmed(dense(delta), options.density) for delta in inputs], 1.0
    else:
        parts, rescale = [dropped(delta, options) for delta in inputs], 1 / float(options.density)
    if method in (MergeMethod.TIES, MergeMethod.DARE_TIES):
        return ties(parts, weights, options.majority_sign) * rescale
    return linear(parts, weights) * rescale


def random_deltas(shape: tuple[int, int], count: int, rank: int = 4) -> list[Delta]:
    made = []
    for index in range(count):
        a, b = factors(rank, *shape, seed=index)
        made.append(Delta("layers.0.q_proj", f"digest-{index}", 0.5 + 0.3 * index, a, b, 2.0))
    return made


@st.composite
def exact_deltas(draw: st.DrawFn) -> list[Delta]:
    """Deltas of small whole numbers: float32 holds them exactly, and equal magnitudes are frequent."""
    out, width = draw(SHAPES)
    made = []
    for index in range(draw(st.integers(1, 4))):
        rank = draw(st.integers(1, 3))
        number = st.integers(-3, 3)
        a = torch.tensor(draw(st.lists(number, min_size=rank * width, max_size=rank * width))).view(rank, width)
        b = torch.tensor(draw(st.lists(number, min_size=rank * out, max_size=rank * out))).view(out, rank)
        weight = draw(st.sampled_from([1.0, 0.5, -0.25, 2.0]))
        scaling = draw(st.sampled_from([1.0, 2.0, 0.5]))
        made.append(Delta("m", str(index), weight, a.float(), b.float(), scaling))
    return made


@pytest.mark.parametrize("method", ENTRYWISE)
@settings(max_examples=60)
@given(
    inputs=exact_deltas(),
    density=st.sampled_from([Fraction(1, 10), Fraction(1, 4), HALF, Fraction(9, 10), Fraction(1)]),
    sign=st.sampled_from(list(MajoritySign)),
)
def test_equals_the_definition(method: MergeMethod, inputs: list[Delta], density: Fraction, sign: MajoritySign) -> None:
    options = Options(density, sign, None if method == MergeMethod.LINEAR else FULL_RANK, seed=7)
    merged = merge(method, inputs, options)
    expected = reference(method, inputs, options)
    assert float((product(merged) - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("sign", list(MajoritySign))
@pytest.mark.parametrize("method", ENTRYWISE)
def test_equals_the_definition_over_many_blocks(
    method: MergeMethod, sign: MajoritySign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "BLOCK_ELEMENTS", 700)
    inputs = random_deltas((90, 70), count=3)
    options = Options(Fraction(3, 10), sign, None if method == MergeMethod.LINEAR else 70)
    assert relative(product(merge(method, inputs, options)), reference(method, inputs, options)) <= 2e-6


@pytest.mark.parametrize(
    ("method", "peft"),
    [
        (MergeMethod.LINEAR, merge_utils.task_arithmetic),
        (MergeMethod.TIES, lambda t, w: merge_utils.ties(t, w, 0.3)),
        (MergeMethod.MAGNITUDE_PRUNE, lambda t, w: merge_utils.magnitude_prune(t, w, 0.3)),
    ],
    ids=["svd", "ties_svd", "magnitude_prune_svd"],
)
def test_equals_what_peft_does_to_dense_deltas(method: MergeMethod, peft: object) -> None:
    inputs = random_deltas((90, 70), count=3)
    weights = torch.tensor([delta.weight for delta in inputs])
    theirs = peft([dense(delta).float() for delta in inputs], weights)  # type: ignore[operator]
    options = Options(Fraction(3, 10), rank=None if method == MergeMethod.LINEAR else 70)
    assert relative(product(merge(method, inputs, options)), theirs) <= 1e-5


def test_a_tied_vote_goes_to_the_larger_sum() -> None:
    one, two = torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[-1.0, 3.0, -2.0]])
    inputs = [Delta("m", str(i), 1.0, a, torch.ones(1, 1), 1.0) for i, a in enumerate((one, two))]
    merged = merge(MergeMethod.TIES, inputs, Options(Fraction(1), MajoritySign.FREQUENCY, 1))
    assert product(merged).tolist() == [[pytest.approx(3.0), pytest.approx(3.0), 0.0]]


@pytest.mark.parametrize("method", [MergeMethod.DARE_LINEAR, MergeMethod.DARE_TIES])
def test_dare_depends_on_the_seed_and_not_on_the_order(method: MergeMethod) -> None:
    inputs = random_deltas((40, 30), count=3)
    one = product(merge(method, inputs, Options(HALF, rank=30, seed=1)))
    reordered = product(merge(method, inputs[::-1], Options(HALF, rank=30, seed=1)))
    other = product(merge(method, inputs, Options(HALF, rank=30, seed=2)))
    assert relative(reordered, one) <= 1e-5
    assert relative(other, one) > 0.1


def test_dare_keeps_the_asked_share_and_the_expected_value() -> None:
    ones = Delta("m", "x", 1.0, torch.ones(1, 500), torch.ones(400, 1), 1.0)
    rows = dare.merge_linear([ones], Options(Fraction(1, 5)))
    assert float((rows != 0).double().mean()) == pytest.approx(0.2, abs=0.005)
    assert float(rows.double().mean()) == pytest.approx(1.0, abs=0.02)


@settings(max_examples=40)
@given(inputs=exact_deltas(), rank=st.none() | st.integers(1, 12))
def test_the_rank_is_known_beforehand(inputs: list[Delta], rank: int | None) -> None:
    for method in MergeMethod:
        expected = result_rank(method, [delta.rank for delta in inputs], inputs[0].shape, rank)
        assert merge(method, inputs, Options(rank=rank)).rank == expected
