"""A run under observation: its log goes in entry by entry, and what holds now is said at any time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tunery_api.findings import FindingStatus, FindingType, Severity
from tunery_trainer.diagnosis import findings as said
from tunery_trainer.diagnosis import learning, speed, stability
from tunery_trainer.diagnosis.findings import Finding
from tunery_trainer.diagnosis.history import Evaluation, History
from tunery_trainer.diagnosis.paired import FEWEST_ROWS, RowLosses
from tunery_trainer.settings.types import RunSettings

STOPS_AT: Final = 2
"""Evaluations in a row that are worse than the base before a run is stopped: one alone may come back."""
DIVERGED: Final = frozenset({FindingType.LOSS_RISING, FindingType.GRADIENT_NOT_FINITE})
"""What ends a run as LossDiverged; any other problem as NotImproved."""

_F = FindingType


@dataclass(frozen=True)
class Subject:
    """The run that is judged."""

    settings: RunSettings
    steps: int
    """Optimizer steps in all."""
    points: int
    """Entries that its log of training will have."""
    base: float
    """The held-out loss before training."""
    rows: RowLosses | None = None
    """The same, row by row; None: not known."""
    held_out: int | None = None
    """Held-out rows."""
    fraction: float | None = None
    """What share of the data they are; None: a set of their own."""
    total: int | None = None
    """Rows of which that is the share; None: not known."""
    on_gpu: bool = False
    packable: bool = False
    """Whether packing could be asked for."""
    since: int = 0
    """Evaluations up to this step are another run's, of other settings: it is not stopped for them."""


class Judge:
    """Holds the verdicts on one run; a verdict that no longer holds is taken back."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.history = History(subject.base, subject.steps)
        self.pace = speed.Pace()
        self._spikes = stability.Spikes(self.history)
        self._blocks = stability.Blocks(self.history, subject.points)
        self._found: dict[FindingType, tuple[int, Finding]] = {}
        self._worse_in_a_row = 0
        self._begin()

    def log(self, entry: Mapping[str, Any]) -> None:
        """Take an entry of the Trainer's log, with what `Evaluation.to_log` adds, and judge."""
        taken = self.history.take(entry)
        if taken is None:
            return
        if isinstance(taken, Evaluation):
            self._judge_learning(taken.step)
        else:
            self._spikes.take(taken)
            self._blocks.take(taken)
            self._judge_gradient(taken.step)
        self._judge_stability(taken.step)

    def step(self, step: speed.Step, number: int) -> None:
        """Take what an optimizer step took, and judge."""
        self.pace.take(step)
        settings, waiting, padding, slower = (
            self._subject.settings,
            self.pace.waiting,
            self.pace.much_padding,
            self.pace.slower,
        )
        packable = self._subject.packable and not settings.training.packing
        self._set(
            _F.WAITING_FOR_DATA,
            number,
            None if waiting is None else said.waiting_for_data(waiting, packable=packable),
        )
        self._set(
            _F.MUCH_PADDING,
            number,
            None if padding is None else said.much_padding(settings, padding, packable=packable),
        )
        self._set(_F.SLOWING_DOWN, number, None if slower is None else said.slowing_down(slower))

    def memory(self, memory: speed.Memory, number: int) -> None:
        """Take how much memory is in use at most; what was tight once stays so."""
        if speed.is_tight(memory):
            self._set(
                _F.MEMORY_TIGHT,
                number,
                said.memory_tight(self._subject.settings, memory, on_gpu=self._subject.on_gpu),
            )

    def halved(self, rows: int, reason: str, number: int) -> None:
        """Take that memory ran out in a pass, and that passes are of `rows` rows since."""
        self._set(_F.MICRO_BATCH_HALVED, number, said.micro_batch_halved(self._subject.settings, rows, reason))

    def end(self, memory: speed.Memory | None = None) -> None:
        """Judge what can be said at the end only."""
        settings, history, last = self._subject.settings, self.history, self._last_step
        if history.evaluations:
            gained = learning.has_gained(history)
            still, levelled = learning.still_learning(history) if gained else None, learning.plateau(history)
            self._set(_F.STILL_LEARNING, last, said.still_learning(settings, still) if still else None)
            if levelled is not None and self._could_be_larger:
                self._set(_F.PLATEAU, last, said.plateau(settings, levelled, self._adapts_all))
        passes = settings.training.gradient_accumulation // settings.training.devices
        roomy = memory is not None and speed.has_room(memory, passes)
        if memory is not None and self._subject.on_gpu and roomy:
            self._set(_F.ROOM_FOR_LARGER_BATCH, last, said.room_for_larger_batch(settings, memory))

    @property
    def findings(self) -> list[FindingStatus]:
        """What holds now, the gravest first."""
        return said.ordered(finding.to_status(step) for step, finding in self._found.values())

    @property
    def problem(self) -> Finding | None:
        """What a run that is to stop for a problem stops for; None: nothing yet."""
        problems = [finding for _, finding in self._found.values() if finding.severity is Severity.PROBLEM]
        sure = [each for each in problems if each.type is not _F.WORSE_THAN_BASE or self._worse_in_a_row >= STOPS_AT]
        return sure[0] if sure else None

    def _begin(self) -> None:
        subject = self._subject
        if subject.steps < speed.FEW_STEPS:
            self._set(_F.TOO_FEW_STEPS, 0, said.too_few_steps(subject.settings, subject.steps))
        few_held_out = subject.held_out is not None and subject.held_out < FEWEST_ROWS
        small = speed.is_too_small(subject.rows) if subject.rows else few_held_out
        if small:
            rows = len(subject.rows.sums) if subject.rows else subject.held_out or 0
            copies = max(0, (subject.held_out or 0) - rows)
            unsure = speed.uncertainty(subject.rows) if subject.rows else None
            few = said.evaluation_too_small(rows, unsure, subject.fraction, subject.total, copies)
            self._set(_F.EVALUATION_TOO_SMALL, 0, few)

    def _judge_gradient(self, step: int) -> None:
        settings, history = self._subject.settings, self.history
        stuck = said.unchanged(settings) if stability.unchanged(history) else None
        none = stability.no_gradient(history)
        told = said.no_gradient(settings, stability.last_gradient(history)) if none else stuck
        self._set(_F.NO_GRADIENT, step, told)
        wild = stability.gradient_not_finite(history, settings.training.precision)
        gradient = history.points[-1].gradient
        self._set(_F.GRADIENT_NOT_FINITE, step, said.gradient_not_finite(settings, gradient) if wild else None)

    def _judge_stability(self, step: int) -> None:
        settings, episodes, risen = self._subject.settings, self._spikes.episodes, stability.rise(self.history)
        rising = risen is not None or self._blocks.rising
        told = said.loss_rising(settings, risen, stability.level(self.history)) if rising else None
        self._set(_F.LOSS_RISING, step, told)
        many = self._spikes.many
        self._set(_F.LOSS_SPIKES, step, said.loss_spikes(settings, episodes, many=many) if episodes else None)

    def _judge_learning(self, step: int) -> None:
        settings, history, base = self._subject.settings, self.history, self._subject.base
        worse, slow = learning.worse_than_base(history), learning.too_slow(history)
        over, gained = learning.overfitting(history), learning.has_gained(history)
        own = sum(each.step > self._subject.since for each in history.evaluations)
        self._worse_in_a_row = min(worse.in_a_row, own) if worse else 0
        # One that was worse and is not yet better has the same cause, and the same cure.
        if worse or gained:
            self._set(_F.WORSE_THAN_BASE, step, said.worse_than_base(settings, worse, base) if worse else None)
        # So little may be sure at one evaluation and not at the next.
        if slow or worse or gained:
            self._set(_F.LEARNING_RATE_TOO_LOW, step, said.too_slow(settings, slow) if slow else None)
        nothing = None if _F.LEARNING_RATE_TOO_LOW in self._found else learning.not_learning(history)
        self._set(_F.NOT_LEARNING, step, said.not_learning(settings, nothing) if nothing else None)
        self._set(_F.OVERFITTING, step, said.overfitting(settings, over, history.steps) if over else None)

    def _set(self, kind: FindingType, step: int, finding: Finding | None) -> None:
        """Say what holds of a type now; it is dated when it began to hold."""
        if finding is None:
            self._found.pop(kind, None)
        else:
            first = self._found[kind][0] if kind in self._found else step
            self._found[kind] = (first, finding)

    @property
    def _last_step(self) -> int:
        points, evaluations = self.history.points, self.history.evaluations
        return max(points[-1].step if points else 0, evaluations[-1].step if evaluations else 0)

    @property
    def _adapts_all(self) -> bool:
        return self._subject.settings.adapter.target_modules == ("all-linear",)

    @property
    def _could_be_larger(self) -> bool:
        rank = self._subject.settings.adapter.rank
        return bool(rank) and (rank <= learning.SMALL_RANK or not self._adapts_all)
