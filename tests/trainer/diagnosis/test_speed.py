"""Whether time and memory are well used: for each detector what fires, what just does not, and what is too short."""

from __future__ import annotations

import pytest

from tunery_trainer.diagnosis.paired import RowLosses
from tunery_trainer.diagnosis.speed import Memory, Pace, Step, has_room, is_tight, is_too_small, uncertainty


def pace(steps: int, seconds: float = 1.0, waited: float = 0.0, tokens: int = 100, padding: int = 0) -> Pace:
    found = Pace()
    for _ in range(steps):
        found.take(Step(seconds, waited, tokens, padding))
    return found


@pytest.mark.parametrize(("steps", "waited", "share"), [(50, 0.25, 0.25), (50, 0.2, None), (49, 0.9, None)])
def test_waiting_for_data(steps: int, waited: float, share: float | None) -> None:
    assert pace(steps, waited=waited).waiting == share


def test_only_the_last_steps_count_for_waiting() -> None:
    found = pace(50, waited=0.9)
    for _ in range(50):
        found.take(Step(1.0, 0.0, 100, 0))
    assert found.waiting is None


@pytest.mark.parametrize(("steps", "padding", "share"), [(50, 41, 0.41), (50, 40, None), (49, 90, None)])
def test_much_padding(steps: int, padding: int, share: float | None) -> None:
    found = pace(steps, padding=padding)
    assert found.much_padding == share
    assert found.padding == padding / 100
    assert Pace().padding == 0


def slowed(later: float, tokens: int = 100, last: int = 20) -> float | None:
    found = pace(5, 9.0)
    for _ in range(20):
        found.take(Step(1.0, 0.0, 100, 0))
    for _ in range(last):
        found.take(Step(later, 0.0, tokens, 0))
    return found.slower


@pytest.mark.parametrize(
    ("later", "tokens", "last", "times"),
    [(1.6, 100, 20, 1.6), (1.5, 100, 20, None), (2.0, 120, 20, None), (2.0, 109, 20, 2.0), (9.0, 100, 19, None)],
)
def test_slowing_down(later: float, tokens: int, last: int, times: float | None) -> None:
    """The first five steps, which warm up, do not count; nor does a step that has more to do."""
    assert slowed(later, tokens, last) == times


@pytest.mark.parametrize(
    ("used", "accumulation", "tight", "room"),
    [(93, 4, True, False), (92, 4, False, False), (44, 4, False, True), (44, 1, False, False), (0, 4, False, False)],
)
def test_memory(used: int, accumulation: int, tight: bool, room: bool) -> None:
    memory = Memory(used, 100)
    assert (is_tight(memory), has_room(memory, accumulation)) == (tight, room)
    assert Memory(5, 0).share == 0


@pytest.mark.parametrize(
    ("losses", "small"),
    [
        ([1.0] * 7, True),
        ([1.0] * 8, False),
        ([0.9, 1.1] * 20, False),  # 2 se = 3.2 %
        ([0.5, 1.5] * 20, True),  # 2 se = 16 %
    ],
)
def test_held_out_rows_that_are_too_few(losses: list[float], small: bool) -> None:
    assert is_too_small(RowLosses(tuple(losses), (1.0,) * len(losses))) is small


def test_two_standard_errors_are_told_as_a_share_of_the_loss() -> None:
    found = uncertainty(RowLosses((0.5, 1.5) * 20, (1.0,) * 40))
    assert found == pytest.approx(2 * 0.5 / 39**0.5, rel=0.01)
    assert uncertainty(RowLosses((1.0,) * 3, (1.0,) * 3)) is None
    assert uncertainty(RowLosses((0.0,) * 8, (1.0,) * 8)) is None
