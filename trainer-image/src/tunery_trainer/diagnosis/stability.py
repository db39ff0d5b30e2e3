"""Whether training stays stable, by its own loss and gradient: spikes, a loss that rises, a gradient that is none.

The false alarms that thresholds are measured by: 1,380 noisy healthy runs of 60 to 1,000 steps, 1 to 16 rows a step
and a log-normal spread of .35 to .6 of a row's loss, and 468 real trainings (tests/trainer/diagnosis).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunery_api.training import Precision
from tunery_trainer.diagnosis.history import History, Point
from tunery_trainer.diagnosis.paired import Difference

SPIKE_WINDOW: Final = 64
SPIKE_LEVEL: Final = 15
SPIKE_POINTS: Final = 20
SPIKE_SIGMAS: Final = 6.0
SPIKE_FACTOR: Final = 1.5
SPIKE_FLOOR: Final = 0.03
SPIKE_NATS: Final = 0.1
"""A spike lies six robust standard deviations (of the last 64 points, at least 0.03) and a factor of 1.5 above the
median of the last 15 points, and 0.1 nats; from the 21st point on. With 5 and 1.3: all 24 bad batches of e19, and 3
that were none; with 6 and 1.5: 23, and none."""
NEW_LEVEL: Final = 8
"""So many in a row are a new level, not a spike."""
SPIKES_MANY: Final = 3
SPIKES_WITHIN: Final = 200
"""From three episodes in 200 points on it is a warning: of 540 healthy runs none had two (e15)."""

BLOCKS: Final = 24
BLOCK_POINTS: Final = 8
BLOCK_ERRORS: Final = 3.0
BLOCK_FACTOR: Final = 1.3
BLOCK_START: Final = 0.1
"""Blocks of a 24th of the run, at least 8 points: two in a row surely 1.3 times above the best block, which begins at
the base's level. 0 alarms in the 1,380 healthy runs and the 468 (e7b, e21)."""

RISE: Final = 0.01
RISE_Z: Final = 2.0
RISE_TRAINING: Final = 1.1
RISE_POINTS: Final = 8
"""Two evaluations in a row 1 % and two standard errors above the best, and a training loss 1.1 times what it was there:
called at step 125 of 200 of a run whose blocks called at 153 (e21)."""

GRADIENT_ZERO: Final = 1e-8
GRADIENT_POINTS: Final = 3
SCALED_POINTS: Final = 10
"""In Float16 the scale of the loss is found by gradients that overflow: so many in a row are more than that."""


class Spikes:
    """Finds steps whose loss lies far above those around them; takes the points one by one."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._near: deque[float] = deque(maxlen=SPIKE_LEVEL)
        self._rest: deque[tuple[int, float]] = deque()
        self._above: list[float] = []
        self._count = 0
        self._episodes: list[Point] = []
        self._places: list[int] = []

    def take(self, point: Point) -> None:
        """Judge one more point; one that is no number belongs to no level."""
        if not math.isfinite(point.loss):
            return
        self._count += 1
        y = self._history.softened(point.loss)
        while self._rest and self._rest[0][0] < self._count - SPIKE_WINDOW:
            self._rest.popleft()
        if self._is_spike(point.loss, y):
            self._flag(point, y)
            return
        self._above = []
        if self._near:
            self._rest.append((self._count, y - statistics.median(self._near)))
        self._near.append(y)

    def _is_spike(self, loss: float, y: float) -> bool:
        if len(self._rest) + 1 < SPIKE_POINTS:
            return False
        level = statistics.median(self._near)
        return (
            y - level > max(SPIKE_SIGMAS * self._scale(), math.log(SPIKE_FACTOR))
            and loss - self._loss_at(level) > SPIKE_NATS
        )

    def _scale(self) -> float:
        rest = [each for _, each in self._rest]
        middle = statistics.median(rest)
        return max(SPIKE_FLOOR, 1.4826 * statistics.median(abs(each - middle) for each in rest))

    def _loss_at(self, level: float) -> float:
        return math.exp(level) - math.exp(self._history.softened(0.0))

    def _flag(self, point: Point, y: float) -> None:
        if not self._above:
            self._episodes.append(point)
            self._places.append(self._count)
        self._above.append(y)
        if len(self._above) == NEW_LEVEL:
            self._near = deque(self._above, maxlen=SPIKE_LEVEL)
            self._episodes.pop()
            self._places.pop()
            self._above = []

    @property
    def episodes(self) -> tuple[Point, ...]:
        """The first point of each."""
        return tuple(self._episodes)

    @property
    def many(self) -> bool:
        """Whether there were three in 200 points."""
        places = self._places
        return any(end - start < SPIKES_WITHIN for start, end in zip(places, places[SPIKES_MANY - 1 :], strict=False))


class Blocks:
    """Tells whether the training loss has risen for good, by means over blocks; takes the points one by one."""

    def __init__(self, history: History, points: int) -> None:
        """`points` is how many there will be in all."""
        self._history = history
        self._size = max(BLOCK_POINTS, math.ceil(points / BLOCKS))
        self._block: list[float] = []
        self._best = history.softened(1.1 * history.base) + BLOCK_START
        self._above = 0

    def take(self, point: Point) -> None:
        """Judge one more point."""
        if math.isfinite(point.loss):
            self._block.append(self._history.softened(point.loss))
        if len(self._block) < self._size:
            return
        mean = statistics.fmean(self._block)
        error = BLOCK_ERRORS * statistics.pstdev(self._block) / math.sqrt(self._size - 1)
        self._above = self._above + 1 if mean - error > self._best + math.log(BLOCK_FACTOR) else 0
        self._best = min(self._best, mean + error)
        self._block = []

    @property
    def rising(self) -> bool:
        """Whether the last two blocks lay above the best one."""
        return self._above >= 2


@dataclass(frozen=True)
class Rise:
    """A held-out loss that was lower before."""

    since: int
    """The step of the best evaluation."""
    best: float
    since_then: Difference
    """By how much it has risen."""


def rise(history: History) -> Rise | None:
    """Return by how much the last two evaluations lie above the best; None where they do not, or training does not."""
    if len(history.evaluations) < 2:
        return None
    for each in history.evaluations[-2:]:
        if each.mark is None or each.mark.value <= RISE * (each.loss - each.mark.value) or each.mark.z <= RISE_Z:
            return None
    last = history.evaluations[-1]
    if last.mark is None or history.evaluations[-2].mark_step != last.mark_step:
        return None
    if not _training_rose(history, last.mark_step):
        return None
    return Rise(last.mark_step, last.loss - last.mark.value, last.mark)


def _training_rose(history: History, since: int) -> bool:
    losses = [point for point in history.points if math.isfinite(point.loss)]
    before = [point for point in losses if point.step <= since][-RISE_POINTS:] or losses[:RISE_POINTS]
    now = losses[-RISE_POINTS:]
    if len(now) < RISE_POINTS or len(before) < RISE_POINTS:
        return False
    now_y, before_y = (statistics.fmean(history.softened(point.loss) for point in part) for part in (now, before))
    return now_y > before_y + math.log(RISE_TRAINING)


@dataclass(frozen=True)
class Level:
    """Where the training loss is now."""

    loss: float
    """The median of the last points."""
    base: float
    """The held-out loss before training."""

    @property
    def times(self) -> float:
        """How many times that of the base it is; 0 where the base's is not known."""
        return self.loss / self.base if self.base > 0 else 0.0


def level(history: History) -> Level | None:
    """Return where the training loss is now; None before its first point."""
    losses = [point.loss for point in history.points if math.isfinite(point.loss)][-RISE_POINTS:]
    return Level(statistics.median(losses), history.base) if losses else None


def no_gradient(history: History) -> bool:
    """Tell whether the gradient was zero at the last three points, at a rate that is not."""
    return _all_of_the_last(history, lambda point: point.gradient is not None and point.gradient < GRADIENT_ZERO)


def last_gradient(history: History) -> Point | None:
    """Return the newest point with a gradient above zero; None where there never was one."""
    return next((point for point in reversed(history.points) if (point.gradient or 0.0) >= GRADIENT_ZERO), None)


def unchanged(history: History) -> bool:
    """Tell whether the adapter is still what it was after the last three points, at a gradient and a rate.

    A step whose gradient is no number is left out by the scaler of Float16, and is told by itself.
    """
    return _all_of_the_last(history, lambda point: point.unchanged and _is_number(point.gradient))


def _is_number(gradient: float | None) -> bool:
    return gradient is not None and math.isfinite(gradient)


def _all_of_the_last(history: History, fits: Callable[[Point], bool]) -> bool:
    last = history.points[-GRADIENT_POINTS:]
    return len(last) == GRADIENT_POINTS and all(point.rate > 0 and fits(point) for point in last)


def gradient_not_finite(history: History, precision: Precision) -> bool:
    """Tell whether the newest gradient is no number; in Float16, whose scale has to be found, the last ten."""
    count = SCALED_POINTS if precision is Precision.FLOAT16 else 1
    last = history.points[-count:]
    return len(last) == count and all(
        point.gradient is not None and not math.isfinite(point.gradient) for point in last
    )
