"""Held-out rows: how many, the same every time, and never on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.data.seen_rows import SeenRows
from tunery_trainer.data.split import UNWANTED, WANTED, held_out


def digests(count: int) -> list[bytes]:
    return [number.to_bytes(16, "little") for number in range(count)]


def drawn(rows: Sequence[bytes], fraction: float, seed: int, labels: Sequence[int] = ()) -> list[bool]:
    """Tell of each row whether it is held out."""
    seen = SeenRows()
    for row, label in zip(rows, labels or [0] * len(rows), strict=True):
        seen.add(row, label)
    held = set(held_out(seen, fraction, seed).tolist())
    return [ordinal in held for ordinal in range(len(rows))]


@pytest.mark.parametrize(
    ("rows", "fraction", "expected"),
    [(2, 0.05, 1), (10, 0.05, 1), (100, 0.05, 5), (1000, 0.29, 290), (50_000, 0.05, 1000)],
)
def test_how_many(rows: int, fraction: float, expected: int) -> None:
    assert sum(drawn(digests(rows), fraction, 42)) == expected


def test_the_seed_decides_and_the_order_does_not() -> None:
    rows = digests(200)
    chosen = {row for row, held in zip(rows, drawn(rows, 0.1, 1), strict=True) if held}
    backwards = rows[::-1]
    assert chosen == {row for row, held in zip(backwards, drawn(backwards, 0.1, 1), strict=True) if held}
    assert chosen != {row for row, held in zip(rows, drawn(rows, 0.1, 2), strict=True) if held}


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60).filter(lambda rows: len(set(rows)) > 1), st.integers(0, 99))
def test_equal_rows_stay_together_and_both_sides_have_some(numbers: list[int], seed: int) -> None:
    rows = [bytes([number]) * 16 for number in numbers]
    held = drawn(rows, 0.2, seed)
    sides = [{row for row, is_held in zip(rows, held, strict=True) if is_held is side} for side in (True, False)]
    assert all(sides)
    assert not sides[0] & sides[1]
    target = max(1, round(0.2 * len(rows)))
    if min(map(rows.count, rows)) <= target:
        assert sum(held) <= target


@pytest.mark.parametrize("rows", [[], [b"a" * 16], [b"a" * 16] * 3], ids=["none", "one", "all-equal"])
def test_too_small(rows: list[bytes]) -> None:
    with pytest.raises(TuneryError, match="too few to hold one out") as caught:
        drawn(rows, 0.05, 42)
    assert caught.value.reason is FailureReason.DATASET_INVALID


@pytest.mark.parametrize("seed", range(20))
def test_rows_with_labels_leave_both_kinds_on_both_sides(seed: int) -> None:
    kinds = [WANTED if number % 10 < 2 else UNWANTED for number in range(20)]
    held = drawn(digests(20), 0.05, seed, kinds)
    for side in (True, False):
        assert {kind for kind, is_held in zip(kinds, held, strict=True) if is_held is side} == {WANTED, UNWANTED}
    assert sum(held) <= 2


def test_the_only_row_of_a_kind_is_trained_on() -> None:
    kinds = [WANTED if number == 7 else UNWANTED for number in range(20)]
    for seed in range(200):  # some twenty of them draw it first
        held = drawn(digests(20), 0.05, seed, kinds)
        assert (sum(held), held[7]) == (1, False)
