"""Provide a trial of a sweep: the row of its status, and what only its LoRAJob has while it runs."""

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
"""Origin of the best settings trained once more."""
STOPPED_BY_SWEEP: Final = "sweep: "
"""Prefix of `stop` for a trial that the sweep ended; without it a user ended the trial."""
SWEEP_FAILED: Final = "the sweep has failed"
"""Why a trial was ended that ran while what another failed for would have failed all: the mark of a row that says
nothing of its values, and that a retry forgives."""
BY_HAND: Final = "by hand: "
"""Prefix of `why` for a trial that a user stopped."""
MAX_WHY: Final = 256
DEFAULT_GPUS: Final = int(ResourcesSpec.model_fields["gpus"].default)

EvalLosses = tuple[tuple[float, float], ...]
"""Losses on the held-out rows, each with the share of the steps after which it was measured."""


@dataclass(frozen=True)
class Live:
    """What the LoRAJob of an unfinished trial reports."""

    course: EvalLosses = ()
    problem: str | None = None
    """What it has found that makes it of no use, in a sentence."""
    stops_itself: bool = True
    """Its trainer acts on that."""
    held: bool = False
    """It waits for quota, for a node, or for a fix by a user."""
    blocker: Failure | None = None
    """What blocks it, as its status has it."""
    checked: bool = False
    """Its preflight has passed."""
    stopping: bool = False
    """It has been told to end."""
    since: tuple[datetime, ...] = ()
    """When its pods that run now started."""
    gpus: int = DEFAULT_GPUS
    finalizers: tuple[str, ...] | None = None
    """Of one that was deleted, what keeps it; None: it was not deleted."""


@dataclass(frozen=True)
class Trial:
    """One trial."""

    row: TrialStatus
    live: Live | None = None
    """None: it is final, or unknown."""

    @property
    def course(self) -> EvalLosses:
        """Return its evaluations so far, oldest first."""
        return self.live.course if self.live is not None else eval_losses_of(self.row.evaluations or (), self.row.steps)

    @property
    def loss(self) -> float | None:
        """Return the held-out loss of its row; None where that tells no finite number."""
        return parse_finite(self.row.value)

    @property
    def has_ended(self) -> bool:
        """Return whether it has ended."""
        return self.row.state in FINAL_TRIAL_STATES

    @property
    def is_final_trial(self) -> bool:
        """Return whether it is no trial of the search, but its best once more."""
        return self.row.origin == FINAL_ORIGIN

    @property
    def counts(self) -> bool:
        """Return whether it is one of maxTrials: what preflight found too large cost no GPU."""
        return not self.is_final_trial and self.row.reason != FailureReason.WONT_FIT

    def is_forgiven(self, forgiven: int) -> bool:
        """Return whether its failure no longer counts: a retry of the sweep came after it.

        A trial that was stopped because the sweep was about to fail never counts.
        """
        return self.was_stopped_with_sweep or (self.row.number < forgiven and self.row.state == TrialState.FAILED)

    @property
    def was_stopped_with_sweep(self) -> bool:
        """Return whether it was ended for what another trial failed for."""
        return self.row.state == TrialState.PRUNED and self.row.why == SWEEP_FAILED

    @property
    def was_removed_by_user(self) -> bool:
        """Return whether a user has deleted it before its end, or stopped it."""
        stopped = self.row.state == TrialState.PRUNED and (self.row.why or "").startswith(BY_HAND)
        return stopped or self.row.state == TrialState.DELETED

    @property
    def is_informative(self) -> bool:
        """Return whether its result is evidence for or against its values."""
        if self.row.state == TrialState.COMPLETE:
            return self.counts and self.loss is not None
        return (
            self.counts
            and not self.was_stopped_with_sweep
            and self.row.state in (TrialState.PRUNED, TrialState.INFEASIBLE)
        )

    def gpu_seconds(self, now: datetime) -> float:
        """Return the GPU seconds that it has used, those of running pods included."""
        running = sum((now - since).total_seconds() * self.live.gpus for since in self.live.since) if self.live else 0.0
        return (self.row.gpu_seconds or 0) + max(0.0, running)


def stop_text(why: str) -> str:
    """Return the `stop` of a trial that the sweep ends."""
    return shorten(STOPPED_BY_SWEEP + why, MAX_WHY)


def eval_losses_of(evaluations: Iterable[EvaluationStatus], steps: int | None) -> EvalLosses:
    """Return losses, each with the share of the steps after which it was measured."""
    if not steps:
        return ()
    told = ((each.step, parse_finite(each.loss)) for each in evaluations)
    return tuple((min(1.0, step / steps), loss) for step, loss in told if loss is not None)
