"""Whether time and memory are well used: for each detector what fires, what just does not, and what is too short."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from tunery_trainer.diagnosis.paired import RowLosses
from tunery_trainer.diagnosis.speed import (
    LAST_STEPS,
    PERSISTS,
    ROOM,
    SLOWER,
    TIGHT,
    Memory,
    Pace,
    Step,
    has_room,
    is_tight,
    is_too_small,
    uncertainty,
)
from tunery_trainer.settings.memory import ALLOCATOR_SLACK, usable


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


def slowed(later: float, tokens: int = 100, last: int = 60) -> Pace:
    found = pace(5, 9.0)
    for _ in range(20):
        found.take(Step(1.0, 0.0, 100, 0))
    for _ in range(last):
        found.take(Step(later, 0.0, tokens, 0))
    return found


@pytest.mark.parametrize(
    ("later", "tokens", "last", "times"),
    [(1.6, 100, 49, 1.6), (1.5, 100, 99, None), (2.0, 120, 99, None), (2.0, 109, 49, 2.0), (9.0, 100, 48, None)],
)
def test_slowing_down(later: float, tokens: int, last: int, times: float | None) -> None:
    """The first five steps, which warm up, do not count; nor does a step that has more to do."""
    assert slowed(later, tokens, last).slower == times


def test_what_is_slower_is_so_until_it_is_as_before_for_as_long() -> None:
    found = slowed(2.0)
    for _ in range(LAST_STEPS // 2 + PERSISTS - 2):
        found.take(Step(1.0, 0.0, 100, 0))
        assert found.slower == 2.0, "at worst: steps that are as fast as at first are no `1 times as long`"
    for _ in range(3):
        found.take(Step(1.0, 0.0, 100, 0))
    assert found.slower is None


def turns(seconds: Iterable[float]) -> list[bool]:
    """Return each change of what is said of a run with these steps: whether it has slowed down."""
    found, said = Pace(), [False]
    for each in seconds:
        found.take(Step(each, 0.0, 100, 0))
        now = found.slower is not None
        said += [now] if now is not said[-1] else []
    return said[1:]


@pytest.mark.slow
def test_a_busy_machine_does_not_make_it_come_and_go() -> None:
    """Another job slows 25 steps of every 100 down, on top of the noise; and a run that slowed down stays so."""
    draw = random.Random(5)
    for _ in range(50):
        busy = (draw.lognormvariate(0, 0.2) * (2.5 if n % 100 >= 70 and n % 100 < 95 else 1.0) for n in range(600))
        assert turns(busy) == []
        throttled = (draw.lognormvariate(0, 0.3) * (2.0 if n >= 300 else 1.0) for n in range(600))
        assert turns(throttled) == [True]


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


def told_slower(draw: random.Random, spread: float, times: float = 1.0, steps: int = 300) -> bool:
    """Tell whether a run whose steps differ by chance is said to slow down at any step; the second half is slower."""
    return True in turns(
        draw.lognormvariate(0, spread) * (times if number > steps / 2 else 1.0) for number in range(steps)
    )


@pytest.mark.slow
def test_steps_that_differ_by_chance_are_not_called_slower() -> None:
    """Spreads as on a node with noisy neighbours: of 600 runs none; of those that take twice as long, most are."""
    draw = random.Random(11)
    assert sum(told_slower(draw, spread) for spread in (0.1, 0.2, 0.3) for _ in range(200)) == 0
    slowed_down = [told_slower(draw, spread, 2.0) for spread in (0.1, 0.2, 0.3) for _ in range(50)]
    assert sum(slowed_down) >= 0.95 * len(slowed_down)
    assert not any(told_slower(draw, 0.1, 0.8 * SLOWER) for _ in range(50))


def padding_of(lengths: list[int], rows: int, *, grouped: bool) -> Pace:
    """Return the steps of a run that pads its rows to the longest of each batch."""
    found = Pace()
    ordered = sorted(lengths) if grouped else lengths
    for place in range(0, len(ordered) - rows + 1, rows):
        batch = ordered[place : place + rows]
        found.take(Step(1.0, 0.0, rows * max(batch), rows * max(batch) - sum(batch)))
    return found


@pytest.mark.parametrize(
    ("spread", "rows", "told"),
    [
        (0.2, 4, False),
        (0.3, 8, False),
        (0.4, 4, False),
        (0.5, 8, True),
        (0.8, 4, True),
        (1.0, 8, True),
        (1.0, 1, False),
    ],
)
def test_what_is_told_of_padding_is_worth_it(spread: float, rows: int, told: bool) -> None:
    """Lengths of a log-normal spread, as chats have them (0.5 to 1): grouping them leaves less than half of it."""
    draw = random.Random(12)
    lengths = [max(8, round(200 * draw.lognormvariate(0, spread))) for _ in range(200 * rows)]
    plain = padding_of(lengths, rows, grouped=False)
    assert (plain.much_padding is not None) is told
    if told:
        assert padding_of(lengths, rows, grouped=True).padding < plain.padding / 2


@pytest.mark.parametrize("gib", [15, 24, 40, 80, 192])
def test_what_the_plan_says_to_fit_is_not_called_tight(gib: int) -> None:
    """A batch that takes all that is counted on: its tensors, without slack and the process, are below 92 %."""
    device, process = gib * 2**30, 600 * 2**20
    tensors = (usable(device) - process) / (1 + ALLOCATOR_SLACK)
    assert not is_tight(Memory(int(tensors), device))


def test_twice_the_rows_of_a_gpu_that_has_room_are_not_tight() -> None:
    assert 2 * ROOM < TIGHT
