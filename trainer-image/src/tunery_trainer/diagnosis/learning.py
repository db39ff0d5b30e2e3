"""What a run learns, by its held-out rows: worse than the base, nothing, too slowly, not to the end, by heart."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Final

from tunery_trainer.diagnosis.history import Evaluation, History
from tunery_trainer.diagnosis.paired import Difference

WORSE: Final = 0.05
WORSE_Z: Final = 3.0
WORSE_FROM: Final = 1 / 16
"""5 % above the base, surely, after a 16th of the run: 50 of the 51 useless runs with a high rate among the 468 at
their first evaluation, one at its second, none of the best quarter. A run may come back: the best of 91 such took place
129."""

FAR_WORSE: Final = 3.0
FAR_NATS: Final = 1.0
"""With fewer than 8 held-out rows no error is known. Three times the base's loss, and 1 nat above it, beside a training
loss that has not fallen are no chance: of the 468 without their errors none is told, the worst was 2.2 times it."""

GAIN: Final = 0.01
GAIN_Z: Final = 2.0
HALF: Final = 0.5
STEADY: Final = 0.5
"""A gain below 1 % after half of the run, and per unit of rate at least half as fast as at first: a rate of 1e-6 had
gained 0.16 % at z = 14, 1.02 times as fast (e9)."""

STILL: Final = 0.7
STILL_ABOVE: Final = 1.02
STILL_EVALUATIONS: Final = 6
"""The last third of the rate spent gained 0.7 of what the first third gained: of 134 such runs of the 468 a rate 3.2
times as high was better by more than 5 % in 122, and worse in 12 (e10)."""

FLAT: Final = 0.005
NOT_MEMORISED: Final = 0.9
SMALL_RANK: Final = 16
LEARNED: Final = 0.05
"""Levelled off: less than 0.5 % in the last quarter of the rate spent, of a run that had learned 5 % before. Told of
none of 69 real runs that still learned, many of them with too small an adapter: rare, and Info only (decision 65)."""

OVER_SHARE: Final = 0.25
OVER_RISE: Final = 0.01
OVER_Z: Final = 2.0
OVER_FELL: Final = 0.1
BY_HEART_FELL: Final = 0.3
BY_HEART: Final = 0.5
"""Since the best evaluation, a quarter of the run ago: risen 1 % surely, twice, while training fell 10 %; or not
fallen, while training fell 30 %, to less than half. A ratio between the two losses alone calls healthy runs: at 240
rows it was 0.22 and the held-out loss fell (e11)."""
OVER_POINTS: Final = 8


@dataclass(frozen=True)
class Worse:
    """A held-out loss above the base's."""

    loss: float
    rise: Difference | None
    """None: too few rows to tell its error."""
    learned: bool
    """The training loss has fallen meanwhile: it learns, something else than the held-out rows hold."""
    in_a_row: int
    """How many evaluations say so."""


@dataclass(frozen=True)
class Slow:
    """A gain that is sure and tiny."""

    gain: float
    """Of the base's loss, 0 to 1."""
    z: float


@dataclass(frozen=True)
class Still:
    """Learning that had not slowed down when the run ended."""

    ratio: float
    """Gain of the last third of the rate spent, by that of the first."""


@dataclass(frozen=True)
class Overfit:
    """A held-out loss that gains nothing any more while the training loss falls."""

    since: int
    """The step of the best evaluation."""
    best: float
    now: float
    rise: Difference
    fell: float
    """By what share the training loss fell, 0 to 1."""


def worse_than_base(history: History) -> Worse | None:
    """Judge the newest evaluation; None where it is not worse."""
    found = 0
    for each in reversed(history.evaluations):
        if not _is_worse(history, each):
            break
        found += 1
    if not found:
        return None
    last = history.evaluations[-1]
    learned = last.base is not None and _training_fell(history)
    return Worse(last.loss, last.base, learned, found)


def _is_worse(history: History, each: Evaluation) -> bool:
    if each.step < WORSE_FROM * history.steps:
        return False
    if each.base is None:
        far = max(FAR_WORSE * history.base, history.base + FAR_NATS)
        return far < each.loss < math.inf and not _training_fell(history)
    return each.base.value > WORSE * history.base and each.base.z > WORSE_Z


def _training_fell(history: History) -> bool:
    losses = [point.loss for point in history.points if math.isfinite(point.loss)]
    part = max(1, min(OVER_POINTS, len(losses) // 3))
    if len(losses) < 2 * part:
        return False
    first, last = (statistics.fmean(map(history.softened, each)) for each in (losses[:part], losses[-part:]))
    return last < first


def at_spent(history: History, share: float) -> float:
    """Return the held-out loss after a share of the rate spent so far, 0 to 1, interpolated between evaluations."""
    total = history.spent_at(history.evaluations[-1].step) or 1.0
    places = [(0.0, history.base)]
    places += [(history.spent_at(each.step) / total, each.loss) for each in history.evaluations]
    for (left, before), (right, after) in itertools.pairwise(places):
        if left <= share <= right:
            return before + (after - before) * (share - left) / (right - left) if right > left else after
    return places[-1][1]


def _first_and_last(history: History) -> tuple[float, float]:
    """Return how far the loss fell in the first and in the last third of the rate that was spent."""
    return at_spent(history, 0.0) - at_spent(history, 1 / 3), at_spent(history, 2 / 3) - at_spent(history, 1.0)


def too_slow(history: History) -> Slow | None:
    """Tell whether it learns, hardly, and as slowly as at first; None where it does not, or before half of the run."""
    hardly = _hardly(history)
    if hardly is None or len(history.evaluations) < 2:
        return None
    first, last = _first_and_last(history)
    sure = hardly.z > GAIN_Z and first > 0 and last >= STEADY * first
    return hardly if sure else None


def not_learning(history: History) -> Slow | None:
    """Tell whether it has learned nothing, and nothing explains it; None where it has, or before half of the run."""
    hardly = _hardly(history)
    explained = too_slow(history) or any(_is_worse(history, each) for each in history.evaluations)
    return None if hardly is None or explained else hardly


def _hardly(history: History) -> Slow | None:
    last = history.evaluations[-1] if history.evaluations else None
    if last is None or last.base is None or last.step < HALF * history.steps or has_gained(history):
        return None
    return Slow(-last.base.value / history.base if history.base > 0 else 0.0, -last.base.z)


def has_gained(history: History) -> bool:
    """Tell whether the newest evaluation is below the base by a hundredth of it."""
    return bool(history.evaluations) and history.evaluations[-1].loss <= (1 - GAIN) * history.base


def still_learning(history: History) -> Still | None:
    """Tell whether the loss was still falling at the end, by the rate spent: the end of a cosine is flat in steps."""
    losses = [each.loss for each in history.evaluations]
    if len(losses) < STILL_EVALUATIONS or max(losses) > STILL_ABOVE * history.base:
        return None
    first, last = _first_and_last(history)
    return Still(last / first) if first > 0 and last / first > STILL else None


def plateau(history: History) -> float | None:
    """Return what the last quarter gained, of the loss, where the run has levelled off without learning by heart.

    A level loss goes up and down by chance, so it is negative as often as not.
    """
    if len(history.evaluations) < STILL_EVALUATIONS or still_learning(history):
        return None
    end, before = history.evaluations[-1].loss, at_spent(history, 0.75)
    trained = _median(history, history.points[-1].step if history.points else 0)
    learned = end < (1 - LEARNED) * history.base
    if trained is None or not learned or before <= 0 or end <= 0:
        return None
    gained = (before - end) / before
    return gained if abs(gained) < FLAT and trained / end > NOT_MEMORISED else None


def overfitting(history: History) -> Overfit | None:
    """Judge the newest evaluation; None where the held-out loss falls with the training loss."""
    last = history.evaluations[-1] if history.evaluations else None
    if last is None or last.mark is None or last.mark_step == 0:
        return None
    since = [each for each in history.evaluations if each.step > last.mark_step]
    before, now = _median(history, last.mark_step), _median(history, last.step)
    if len(since) < 2 or last.step - last.mark_step < OVER_SHARE * history.steps or not before or now is None:
        return None
    fell = 1 - now / before
    rising = all(_has_risen(each) for each in since[-2:]) and fell >= OVER_FELL
    by_heart = last.mark.z > -OVER_Z and fell >= BY_HEART_FELL and now < BY_HEART * last.loss
    if not rising and not by_heart:
        return None
    return Overfit(last.mark_step, last.loss - last.mark.value, last.loss, last.mark, fell)


def _has_risen(each: Evaluation) -> bool:
    mark = each.mark
    return mark is not None and mark.value > OVER_RISE * (each.loss - mark.value) and mark.z > OVER_Z


def _median(history: History, step: int) -> float | None:
    """Return the median training loss of the last points up to a step."""
    losses = [point.loss for point in history.points if point.step <= step and math.isfinite(point.loss)]
    return statistics.median(losses[-OVER_POINTS:]) if losses else None
