"""Provide a trial of a sweep: its status row, and what its LoRAJob reports while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tunery_api.failures import Failure
from tunery_api.jobs import ResourcesSpec
from tunery_api.measured import EvaluationStatus, parse_finite
from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.sweepstatus import FINAL_TRIAL_STATES, TrialState, TrialStatus

FINAL_ORIGIN: Final = "Final"
"""Origin of the final trial, which trains the best values again."""
STOPPED_BY_SWEEP: Final = "sweep: "
"""Prefix of `stop` for a trial that the sweep stopped. Without it, a user stopped the trial."""
SWEEP_FAILED: Final = "the sweep has failed"
"""Why a trial was stopped when the failure of another trial failed the sweep. Such a trial is no evidence about its
values, and a retry ignores it."""
BY_HAND: Final = "by hand: "
"""Prefix of `why` for a trial that a user stopped."""
MAX_WHY: Final = 256
DEFAULT_GPUS: Final = int(ResourcesSpec.model_fields["gpus"].default)

EvalLosses = tuple[tuple[float, float], ...]
"""Held-out losses, oldest first, each with the share of the steps after which it was measured."""


@dataclass(frozen=True)
class Live:
    """What the LoRAJob of an unfinished trial reports."""

    eval_losses: EvalLosses = ()
    problem: str | None = None
    """The Problem finding that makes the trial useless, as a sentence."""
    stops_itself: bool = True
    """The trainer stops the trial because of the problem."""
    waiting: bool = False
    """The trial waits for quota, for a node, or for a fix by a user."""
    blocker: Failure | None = None
    """The failure in its status that blocks the trial."""
    checked: bool = False
    """The preflight has passed."""
    stopping: bool = False
    """The trial was requested to stop."""
    since: tuple[datetime, ...] = ()
    """Start times of the pods that run now."""
    gpus: int = DEFAULT_GPUS
    finalizers: tuple[str, ...] | None = None
    """The finalizers of a LoRAJob that is being deleted. None: it isn't being deleted."""


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep."""

    row: TrialStatus
    live: Live | None = None
    """None: the trial has ended, or its LoRAJob is unknown."""

    @property
    def eval_losses(self) -> EvalLosses:
        """Return the evaluations so far, oldest first."""
        return (
            self.live.eval_losses
            if self.live is not None
            else eval_losses_of(self.row.evaluations or (), self.row.steps)
        )

    @property
    def loss(self) -> float | None:
        """Return the held-out loss of the row. Return None if it isn't a finite number."""
        return parse_finite(self.row.value)

    @property
    def has_ended(self) -> bool:
        """Return whether the state is final."""
        return self.row.state in FINAL_TRIAL_STATES

    @property
    def is_final_trial(self) -> bool:
        """Return whether the trial trains the best values again, after the search."""
        return self.row.origin == FINAL_ORIGIN

    @property
    def counts(self) -> bool:
        """Return whether the trial counts towards maxTrials. A trial that preflight found too large used no GPU."""
        return not self.is_final_trial and self.row.reason != FailureReason.WONT_FIT

    def is_forgiven(self, forgiven: int) -> bool:
        """Return whether the failure no longer counts, because the sweep was retried after it.

        A trial that was stopped because the sweep failed never counts.
        """
        return self.was_stopped_with_sweep or (self.row.number < forgiven and self.row.state == TrialState.FAILED)

    @property
    def was_stopped_with_sweep(self) -> bool:
        """Return whether the trial was stopped because another trial failed the sweep."""
        return self.row.state == TrialState.PRUNED and self.row.why == SWEEP_FAILED

    @property
    def was_removed_by_user(self) -> bool:
        """Return whether a user deleted or stopped the trial before its end."""
        stopped = self.row.state == TrialState.PRUNED and (self.row.why or "").startswith(BY_HAND)
        return stopped or self.row.state == TrialState.DELETED

    @property
    def is_informative(self) -> bool:
        """Return whether the result is evidence for or against the trial's values."""
        if self.row.state == TrialState.COMPLETE:
            return self.counts and self.loss is not None
        return (
            self.counts
            and not self.was_stopped_with_sweep
            and self.row.state in (TrialState.PRUNED, TrialState.INFEASIBLE)
        )

    def gpu_seconds(self, now: datetime) -> float:
        """Return the GPU seconds that the trial has used, including its running pods."""
        running = sum((now - since).total_seconds() * self.live.gpus for since in self.live.since) if self.live else 0.0
        return (self.row.gpu_seconds or 0) + max(0.0, running)


def stop_text(why: str) -> str:
    """Return the `stop` of a trial that the sweep stops."""
    return shorten(STOPPED_BY_SWEEP + why, MAX_WHY)


def eval_losses_of(evaluations: Iterable[EvaluationStatus], steps: int | None) -> EvalLosses:
    """Return the finite losses, each with the share of the steps after which it was measured."""
    if not steps:
        return ()
    measured = ((each.step, parse_finite(each.loss)) for each in evaluations)
    return tuple((min(1.0, step / steps), loss) for step, loss in measured if loss is not None)
