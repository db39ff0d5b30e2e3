"""What a run learns, by its held-out rows: for each detector what fires, what just does not, and what is too short."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tunery_trainer.diagnosis.learning import (
    not_learning,
    overfitting,
    plateau,
    still_learning,
    too_slow,
    worse_than_base,
)

from kit.diagnosed import cosine, history_of, logged

STEPS = 80
FALLING = [2.0 - 1.5 * step / STEPS for step in range(STEPS)]
RISING = list(reversed(FALLING))


def history(
    evaluations: dict[int, float],
    losses: list[float] | None = None,
    *,
    error: float = 0.01,
    rates: list[float] | None = None,
    steps: int = STEPS,
):  # type: ignore[no-untyped-def]
    entries = logged(losses or FALLING, evaluations, error=error, rates=rates)
    return history_of(entries, steps)


@pytest.mark.parametrize(
    ("evaluations", "error", "in_a_row"),
    [
        ({10: 2.2}, 0.01, 1),
        ({10: 2.2, 20: 2.3}, 0.01, 2),
        ({10: 1.0, 20: 2.3}, 0.01, 1),
        ({10: 2.2, 20: 1.9}, 0.01, None),  # it came back
        ({10: 2.09}, 0.001, None),  # 4.5 %
        ({10: 2.2}, 0.04, None),  # z = 2.3
        ({4: 2.5}, 0.01, None),  # before a 16th of the run
        ({}, 0.01, None),
    ],
)
def test_worse_than_the_base(evaluations: dict[int, float], error: float, in_a_row: int | None) -> None:
    found = worse_than_base(history(evaluations, error=error))
    assert (found.in_a_row if found else None) == in_a_row


def test_worse_than_the_base_tells_a_high_rate_from_other_data() -> None:
    learned, diverged = worse_than_base(history({40: 2.5})), worse_than_base(history({40: 2.5}, RISING))
    assert learned is not None
    assert diverged is not None
    assert (learned.learned, diverged.learned) == (True, False)


@pytest.mark.parametrize(
    ("base", "loss", "losses", "worse"),
    [
        (2.05, 28.8, RISING, True),
        (2.05, 5.9, RISING, False),  # 2.9 times
        (2.05, 28.8, FALLING, False),  # it learns, what these few rows do not hold
        (0.02, 0.9, RISING, False),  # near zero a factor says nothing
        (2.05, math.inf, RISING, False),
    ],
)
def test_a_few_rows_tell_only_what_no_chance_explains(
    base: float, loss: float, losses: list[float], worse: bool
) -> None:
    entries: list[dict[str, Any]] = list(logged(losses[:10]))
    few = history_of(iter([*entries, {"step": 10, "eval_loss": loss}]), STEPS, base)
    found = worse_than_base(few)
    assert (found is not None) == worse
    if found is not None:
        assert (found.loss, found.rise, found.in_a_row) == (loss, None, 1)


LITTLE = {10: 1.999, 20: 1.998, 30: 1.997, 40: 1.996, 60: 1.994, 80: 1.992}


@pytest.mark.parametrize(
    ("evaluations", "error", "slow", "nothing"),
    [
        (LITTLE, 0.0001, True, False),
        (LITTLE, 0.01, False, True),  # not sure
        ({10: 1.99, 20: 1.985, 40: 1.983, 80: 1.983}, 0.0001, False, True),  # it has levelled off
        ({20: 1.99, 40: 1.97}, 0.0001, False, False),  # 1.5 %
        ({20: 1.999, 39: 1.998}, 0.0001, False, False),  # before half of the run
        ({40: 2.0}, 0.01, False, True),
        ({80: 1.999}, 0.0001, False, True),  # one evaluation has no pace
        ({20: 2.5, 40: 2.0}, 0.01, False, False),  # WorseThanBase has spoken
        ({}, 0.01, False, False),
    ],
)
def test_learning_hardly_or_nothing(evaluations: dict[int, float], error: float, slow: bool, nothing: bool) -> None:
    found = history(evaluations, error=error)
    assert (too_slow(found) is not None, not_learning(found) is not None) == (slow, nothing)


EIGHT = [10, 20, 30, 40, 50, 60, 70, 80]


def curve(*losses: float) -> dict[int, float]:
    return dict(zip(EIGHT, losses, strict=False))


@pytest.mark.parametrize(
    ("evaluations", "still"),
    [
        (curve(1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2), True),
        (curve(1.5, 1.3, 1.2, 1.15, 1.12, 1.1, 1.09, 1.08), False),
        (curve(2.05, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2), False),  # above the base once
        (curve(2.01, 2.0, 2.0, 2.01, 2.0, 2.0, 2.0, 2.0), False),
        (curve(1.9, 1.8, 1.7, 1.6, 1.5), False),  # five evaluations
        ({}, False),
    ],
)
def test_still_learning(evaluations: dict[int, float], still: bool) -> None:
    assert (still_learning(history(evaluations, rates=[1e-4] * STEPS)) is not None) is still


def test_still_learning_knows_that_a_cosine_is_flat_at_its_end() -> None:
    """As much is gained for each unit of rate all along; in steps the last third gained a fifth of the first."""
    rates = cosine(1e-3, STEPS)
    spent = [sum(rates[:step]) / sum(rates) for step in EIGHT]
    losses = [2.0 - 0.8 * share for share in spent]
    assert losses[5] - losses[7] < 0.25 * (2.0 - losses[1])
    found = still_learning(history(curve(*losses), rates=rates))
    assert found is not None
    assert found.ratio == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("evaluations", "level", "flat"),
    [
        (curve(1.5, 1.2, 1.1, 1.05, 1.01, 1.003, 1.001, 1.0), 1.0, True),
        (curve(1.5, 1.2, 1.1, 1.0, 0.99, 0.99, 0.991, 0.992), 0.99, True),  # it rises by chance
        (curve(1.5, 1.2, 1.1, 1.0, 0.99, 0.99, 0.995, 1.0), 0.99, False),  # it rises
        (curve(1.5, 1.2, 1.1, 1.05, 1.02, 1.01, 1.005, 1.0), 1.0, False),  # 1 % in the last quarter
        (curve(1.5, 1.2, 1.1, 1.05, 1.01, 1.003, 1.001, 1.0), 0.5, False),  # it is memorising
        (curve(2.0, 1.99, 1.98, 1.98, 1.98, 1.98, 1.98, 1.98), 1.98, False),  # it has learned nothing
        (curve(1.5, 1.2, 1.0, 1.0, 1.0), 1.0, False),
        ({}, 1.0, False),
    ],
)
def test_plateau(evaluations: dict[int, float], level: float, flat: bool) -> None:
    found = plateau(history(evaluations, [level] * STEPS, rates=[1e-4] * STEPS))
    assert (found is not None) is flat


MEMORISED = [2.0 * 0.93**step for step in range(STEPS)]
SLOWLY = [2.0 - 0.9 * step / STEPS for step in range(STEPS)]


@pytest.mark.parametrize(
    ("evaluations", "losses", "since"),
    [
        (curve(1.5, 1.4, 1.3, 1.35, 1.4, 1.45, 1.5, 1.55), SLOWLY, 30),  # it rises
        (curve(1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2), MEMORISED, 10),  # it gains nothing, and rows are known by heart
        (curve(1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5), MEMORISED, None),  # it still gains
        (curve(1.5, 1.4, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3), SLOWLY, None),  # flat, and not memorised
        (curve(1.5, 1.4, 1.3, 1.35, 1.4, 1.45, 1.5, 1.55), [1.0] * STEPS, None),  # training does not fall
        (curve(1.5, 1.4, 1.3, 1.3, 1.3, 1.3, 1.2, 1.35), SLOWLY, None),  # for an eighth of the run only
        (curve(1.5, 1.4), MEMORISED, None),
        ({}, MEMORISED, None),
    ],
)
def test_overfitting(evaluations: dict[int, float], losses: list[float], since: int | None) -> None:
    found = overfitting(history(evaluations, losses))
    assert (found.since if found else None) == since


def test_evaluations_without_rows_give_no_verdict() -> None:
    """Seven held-out rows: losses are logged, and no difference."""
    found = history({})
    for step in EIGHT:
        found.take({"step": step, "eval_loss": 3.0})
    assert (worse_than_base(found), too_slow(found), not_learning(found), overfitting(found)) == (None,) * 4
