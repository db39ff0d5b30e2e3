"""Whether time and memory are well used; of this attempt alone, as another may run on another node."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

from tunery_trainer.diagnosis.paired import FEWEST_ROWS, RowLosses, paired

STEPS_JUDGED: Final = 50
WAITING: Final = 0.2
PADDING: Final = 0.4
"""Shares of 50 steps. Waiting: not told of any of 9 healthy runs on a busy machine; no other threshold was tried.
Padding: lengths with a log-normal spread of 0.5 and more, as chats have, are told from 4 rows a batch on; grouped by
length they have less than half of it."""

FIRST_SKIPPED: Final = 5
FIRST_STEPS: Final = 20
LAST_STEPS: Final = 20
SLOWER: Final = 1.5
NO_SLOWER: Final = 1.25
PERSISTS: Final = 30
ALIKE: Final = 0.1
"""The median step of the last 20 against that of steps 6 to 25, where tokens of a step differ by at most 10 %. Told
once it was above 1.5 for 30 steps and never below 1.25 in between, until it was below 1.25 for as long: another job's
25 slow steps are not told, however often they come. Of 600 runs whose steps differ by chance (log-normal, spread 0.1 to
0.3) none is told at any step, of 150 that take twice as long from half-time on 95 % are. Info only: another job on the
node is no fault of the run."""

TIGHT: Final = 0.92
ROOM: Final = 0.45
"""Shares of the memory. What the plan says to fit takes at most 0.9 of it without the allocator's slack; and twice the
rows of a GPU that has room stay below what is tight."""

FEW_STEPS: Final = 20
UNSURE: Final = 0.05
"""Two standard errors of the base's loss, as a share of it. 12 rows still gave z = -5 for a real gain."""


@dataclass(frozen=True)
class Step:
    """What an optimizer step took."""

    seconds: float
    """From the end of the one before, evaluations and checkpoints left out."""
    waited: float
    """Seconds of them until its rows were there."""
    tokens: int
    """Padding included."""
    padding: int


@dataclass(frozen=True)
class Memory:
    """The most that was in use, and what there is."""

    used: int
    available: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.used / self.available if self.available else 0.0


class Pace:
    """The steps of this attempt: the first ones, and the newest."""

    def __init__(self) -> None:
        self._first: list[Step] = []
        self._last: deque[Step] = deque(maxlen=STEPS_JUDGED)
        self._seen = 0
        self._padding = self._tokens = 0
        self._worst = 0.0
        self._is_slower = False
        self._against = 0
        """So many steps say that it is not as `_is_slower` says."""

    def take(self, step: Step) -> None:
        """Judge one more step."""
        self._seen += 1
        self._padding += step.padding
        self._tokens += step.tokens
        if FIRST_SKIPPED < self._seen <= FIRST_SKIPPED + FIRST_STEPS:
            self._first.append(step)
        self._last.append(step)
        self._judge_speed()

    @property
    def waiting(self) -> float | None:
        """Share of the time of the last 50 steps until their rows were there; None where it is a fifth or less."""
        took = sum(step.seconds for step in self._last)
        share = sum(step.waited for step in self._last) / took if took > 0 else 0.0
        return share if len(self._last) == STEPS_JUDGED and share > WAITING else None

    @property
    def padding(self) -> float:
        """Share of padding among all tokens."""
        return self._padding / self._tokens if self._tokens else 0.0

    @property
    def much_padding(self) -> float | None:
        """Share of padding among the tokens of the last 50 steps; None where it is not much."""
        tokens = sum(step.tokens for step in self._last)
        share = sum(step.padding for step in self._last) / tokens if tokens else 0.0
        return share if len(self._last) == STEPS_JUDGED and share > PADDING else None

    @property
    def slower(self) -> float | None:
        """How many times as long steps took at worst as at first; None where it is not much longer, or not for long.

        At worst since they are slow: it holds until they have been as fast again for long, and told of no slowness.
        """
        return self._worst if self._is_slower else None

    def _judge_speed(self) -> None:
        if self._seen < FIRST_SKIPPED + FIRST_STEPS + LAST_STEPS:
            return
        last = list(self._last)[-LAST_STEPS:]
        now, before = (statistics.median(step.seconds for step in part) for part in (last, self._first))
        more, less = (statistics.fmean(step.tokens for step in part) for part in (last, self._first))
        if before <= 0 or abs(more - less) > ALIKE * less:
            return  # with other work it says nothing
        times = now / before
        against = times < NO_SLOWER if self._is_slower else times > SLOWER
        back = times > SLOWER if self._is_slower else times < NO_SLOWER
        self._against = 0 if back else self._against + against
        if self._against == PERSISTS:
            self._is_slower, self._against, self._worst = not self._is_slower, 0, 0.0
        self._worst = max(self._worst, times)


def is_tight(memory: Memory) -> bool:
    """Tell whether hardly any memory is left."""
    return memory.share > TIGHT


def has_room(memory: Memory, accumulation: int) -> bool:
    """Tell whether a GPU could take twice the rows at once, where its share of a step has them."""
    return 0 < memory.share < ROOM and accumulation > 1


def uncertainty(rows: RowLosses) -> float | None:
    """Return two standard errors of a loss as a share of it; None below 8 rows."""
    if len(rows.sums) < FEWEST_ROWS or rows.loss <= 0:
        return None
    found = paired(rows, RowLosses((0.0,) * len(rows.sums), rows.counts))
    return None if found is None else 2 * found.error / rows.loss


def is_too_small(rows: RowLosses) -> bool:
    """Tell whether held-out rows are too few to tell a gain from chance."""
    unsure = uncertainty(rows)
    return len(rows.sums) < FEWEST_ROWS or (unsure is not None and unsure > UNSURE)
