"""Whether training stays stable: for each detector a curve that fires, one that just does not, one too short."""

from __future__ import annotations

import math
import random

import pytest

from tunery_api.training import Precision
from tunery_trainer.diagnosis.history import UNCHANGED, History, Point
from tunery_trainer.diagnosis.stability import (
    NEW_LEVEL,
    SPIKE_POINTS,
    Blocks,
    Spikes,
    gradient_not_finite,
    last_gradient,
    no_gradient,
    rise,
    unchanged,
)

from kit.diagnosed import history_of, logged

BASE = 2.0


def quiet(steps: int, level: float = 1.0, seed: int = 5) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, 0.03)) for _ in range(steps)]


def spikes(losses: list[float]) -> Spikes:
    found = Spikes(History(BASE, len(losses)))
    for step, loss in enumerate(losses, 1):
        found.take(Point(step, loss, 1.0, 1e-4))
    return found


def steps_of(losses: list[float]) -> list[int]:
    return [point.step for point in spikes(losses).episodes]


def with_jumps(losses: list[float], at: list[int], factor: float) -> list[float]:
    return [loss * factor if step in at else loss for step, loss in enumerate(losses, 1)]


def test_a_jump_is_a_spike_and_neighbours_are_one() -> None:
    assert steps_of(with_jumps(quiet(100), [60, 61, 62, 80], 2.0)) == [60, 80]


def test_a_small_jump_is_none() -> None:
    assert steps_of(with_jumps(quiet(100), [60], 1.4)) == []


def test_noise_of_a_batch_of_one_hides_it() -> None:
    """What is usual for a run is no spike of it."""
    draw = random.Random(6)
    wild = [draw.lognormvariate(0, 0.5) for _ in range(200)]
    assert steps_of(with_jumps(wild, [100], 1.6)) == []


def test_near_zero_a_factor_is_no_spike() -> None:
    assert steps_of(with_jumps(quiet(100, level=0.002), [60], 8.0)) == []


def test_too_few_points_have_no_level() -> None:
    losses = quiet(SPIKE_POINTS)
    assert steps_of([*losses[:-1], 5.0]) == []
    assert steps_of([*losses, 5.0]) == [SPIKE_POINTS + 1]


def test_a_new_level_is_no_spike_and_is_judged_by_itself() -> None:
    losses = [*quiet(60), *quiet(40, level=2.0)]
    assert steps_of(losses) == []
    losses[90] = 9.0
    assert steps_of(losses) == [91]
    assert steps_of([*quiet(60), *quiet(NEW_LEVEL - 1, level=2.0), *quiet(40)]) == [61]


def test_three_in_two_hundred_points_are_many() -> None:
    assert not spikes(with_jumps(quiet(300), [50, 100], 3.0)).many
    assert spikes(with_jumps(quiet(300), [50, 100, 150], 3.0)).many
    assert not spikes(with_jumps(quiet(600), [50, 200, 260], 3.0)).many


def test_what_is_no_number_is_left_out() -> None:
    assert steps_of([*quiet(60), math.nan, math.inf, *quiet(10)]) == []


def rises_at(losses: list[float]) -> int | None:
    blocks = Blocks(History(BASE, len(losses)), len(losses))
    for step, loss in enumerate(losses, 1):
        blocks.take(Point(step, loss, 1.0, 1e-4))
        if blocks.rising:
            return step
    return None


def test_a_loss_that_rises_is_called_after_two_blocks() -> None:
    assert rises_at([*quiet(100, 0.5), *quiet(100, 1.5)]) == 117  # blocks of 9 points


def test_a_rise_below_the_factor_is_not_called() -> None:
    assert rises_at([*quiet(100, 0.5), *quiet(100, 0.65)]) is None


def test_one_block_is_not_enough_and_a_high_level_from_the_start_counts() -> None:
    assert rises_at([*quiet(50, 0.5), *quiet(9, 1.5), *quiet(50, 0.5)]) is None
    assert rises_at(quiet(15, 5.0)) is None
    assert rises_at(quiet(16, 5.0)) == 16


def risen(losses: list[float], evaluations: dict[int, float]) -> tuple[int, float] | None:
    found = rise(history_of(logged(losses, evaluations, base=BASE), len(losses), BASE))
    return (found.since, round(found.since_then.value, 3)) if found else None


FELL_AND_ROSE = [*quiet(40, 1.0), *quiet(40, 1.3)]


@pytest.mark.parametrize(
    ("losses", "evaluations", "found"),
    [
        (FELL_AND_ROSE, {20: 1.5, 40: 1.1, 60: 1.2, 80: 1.3}, (40, 0.2)),
        (FELL_AND_ROSE, {20: 1.5, 40: 1.1, 60: 1.1, 80: 1.3}, None),  # once only
        (FELL_AND_ROSE, {20: 1.5, 40: 1.1, 60: 1.105, 80: 1.108}, None),  # below 1 %
        (quiet(80), {20: 1.5, 40: 1.1, 60: 1.2, 80: 1.3}, None),  # training does not rise
        (FELL_AND_ROSE, {80: 1.3}, None),
        (quiet(6), {3: 1.1, 4: 1.2, 5: 1.3}, None),
    ],
)
def test_two_evaluations_above_the_best_and_a_training_loss_that_rises(
    losses: list[float], evaluations: dict[int, float], found: tuple[int, float] | None
) -> None:
    assert risen(losses, evaluations) == found


def of_gradients(gradients: list[float | None], rate: float = 1e-4) -> History:
    history = History(BASE, 10)
    for step, gradient in enumerate(gradients, 1):
        history.take({"step": step, "loss": 1.0, "grad_norm": gradient, "learning_rate": rate})
    return history


@pytest.mark.parametrize(
    ("gradients", "rate", "zero", "before"),
    [
        ([1.0, 0.0, 0.0, 0.0], 1e-4, True, 1),
        ([1.5, 4.1, 0.0, 0.0, 0.0, 0.0], 1e-4, True, 2),
        ([0.0, 2.0, None, 0.0, 0.0, 0.0], 1e-4, True, 2),
        ([0.0, 0.0, 0.0, 0.0], 1e-4, True, None),
        ([1e-9, 1e-9, 1e-9], 1e-4, True, None),
        ([0.0, 0.0, 1e-7], 1e-4, False, 3),
        ([0.0, 0.0], 1e-4, False, None),
        ([0.0, 0.0, 0.0], 0.0, False, None),
        ([None, None, None], 1e-4, False, None),
    ],
)
def test_three_gradients_of_zero_and_when_there_was_one(
    gradients: list[float | None], rate: float, zero: bool, before: int | None
) -> None:
    history = of_gradients(gradients, rate)
    last = last_gradient(history)
    assert (no_gradient(history), last and last.step) == (zero, before)


@pytest.mark.parametrize(
    ("points", "stuck"),
    [
        ([(1.0, True)] * 3, True),
        ([(1.0, True)] * 2, False),
        ([(1.0, True), (1.0, True), (1.0, False)], False),
        ([(math.inf, True)] * 3, False),  # Float16 skips such steps until its scale fits
        ([(None, True)] * 3, False),
    ],
)
def test_an_adapter_that_three_steps_leave_as_it_was(points: list[tuple[float | None, bool]], stuck: bool) -> None:
    for rate, found in ((1e-4, stuck), (0.0, False)):
        history = History(BASE, 10)
        for step, (gradient, same) in enumerate(points, 1):
            entry = {"step": step, "loss": 1.0, "grad_norm": gradient, "learning_rate": rate}
            history.take(entry | ({UNCHANGED: True} if same else {}))
        assert unchanged(history) is found


@pytest.mark.parametrize(
    ("gradients", "precision", "wild"),
    [
        ([1.0, math.nan], Precision.BFLOAT16, True),
        ([math.inf], Precision.FLOAT32, True),
        ([math.nan, 1.0], Precision.FLOAT32, False),
        ([], Precision.FLOAT32, False),
        ([math.inf] * 9, Precision.FLOAT16, False),
        ([math.inf] * 10, Precision.FLOAT16, True),
    ],
)
def test_a_gradient_that_is_no_number(gradients: list[float | None], precision: Precision, wild: bool) -> None:
    """In Float16 a scaler finds its scale by gradients that overflow: that is no finding."""
    assert gradient_not_finite(of_gradients(gradients), precision) is wild
