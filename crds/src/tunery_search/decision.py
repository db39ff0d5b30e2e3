"""Decide the next step of a sweep from its spec, its trials and a DecisionContext. There is no other state.

The decision has the numbers of the next trials. The sampler (sampler.py) chooses their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tunery_api.failures import Failure
from tunery_api.lorasweep import MAX_TRIALS, LoRASweepSpec
from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.remedies import Remedy, edit, recreate, remedies_for
from tunery_api.sweepstatus import MAX_TRIAL_ROWS, EndReason, TrialFailure, TrialState, TrialStatus
from tunery_search.failures import Fault, classify_failure, sweep_remedies
from tunery_search.pruning import prune_reasons
from tunery_search.summary import best, mean_gpu_seconds, trials_since_improvement
from tunery_search.trial_spec import has_passed_preflight
from tunery_search.trials import SWEEP_FAILED, Trial, stop_text

_MESSAGE = 1024
_STOPS_ALL = frozenset({EndReason.BUDGET, EndReason.DEADLINE})
"""End reasons that stop running trials and skip the final trial."""


_MIN_WAIT = timedelta(milliseconds=1)
_WHILE_ENDING = timedelta(seconds=10)
"""How often to check trials that still run after a time limit."""


@dataclass(frozen=True)
class DecisionContext:
    """What a decision depends on besides the spec and the trials."""

    now: datetime
    started: datetime
    """When the sweep was created; activeDeadlineSeconds counts from here."""
    recorded: EndReason | None = None
    """The endReason of the status, the only record of SpaceExhausted."""
    publishing: bool = False
    """The best adapter is being published. The search has ended, and changes of the spec have no effect."""
    forgiven: int = 0
    """Failed trials with a lower number don't count, because the user retried the sweep after them. Trials that replace
    them don't count towards spec.maxTrials."""


@dataclass(frozen=True)
class Decision:
    """What the sweep does next."""

    create: tuple[int, ...] = ()
    """Numbers of the trials to create."""
    final: int | None = None
    """Number of the final trial to create: the best values, overridden by spec.final."""
    stop: Mapping[int, str] = field(default_factory=dict)
    """The `stop` to set, by trial number."""
    publish: int | None = None
    """Number of the trial whose adapter to publish. The search has ended."""
    fail: Failure | None = None
    """Why the sweep fails."""
    end_reason: EndReason | None = None
    """Why no more trials are created. None: more may be created."""
    requeue_at: datetime | None = None
    """When to decide again, even if nothing changes."""


def decide(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> Decision:
    """Return the next step of a sweep. The order of `trials` doesn't matter."""
    trials = sorted(trials, key=lambda trial: trial.row.number)
    since_retry = [trial for trial in trials if trial.row.number >= context.forgiven]
    failure = None if context.publishing else _failure(spec, since_retry, _counted(trials, context))
    if failure is not None:
        return fail_sweep(trials, failure)
    end = _end_reason(spec, trials, context)
    chosen = best(trials, spec.objective.tolerance) if context.publishing else None
    if chosen is not None:
        # The Job that publishes the adapter exists, so changes of the spec have no effect.
        return Decision(publish=chosen.number, end_reason=end)
    if end in _STOPS_ALL:
        text = "the budget is spent" if end is EndReason.BUDGET else "the sweep reached spec.activeDeadlineSeconds"
        stop = _stop_all(trials, text)
    else:
        stop = {number: stop_text(why) for number, why in prune_reasons(spec.pruner, trials).items()}
    alive = [trial for trial in trials if not trial.has_ended]
    if end is not None and not alive:
        return _finish_search(spec, trials, context, end)
    is_permanent = end in _STOPS_ALL or end is EndReason.SPACE_EXHAUSTED or _search_has_ended(trials, context)
    shown = end if is_permanent else None
    decision = Decision(stop=stop, end_reason=shown, requeue_at=_requeue_at(spec, trials, context))
    return decision if end is not None else replace(decision, create=_trials_to_create(spec, trials, context))


def fail_sweep(trials: Sequence[Trial], failure: Failure) -> Decision:
    """Return the decision that stops the running trials and fails the sweep."""
    return Decision(fail=failure, stop=_stop_all(trials, SWEEP_FAILED))


def _failure(spec: LoRASweepSpec, trials: Sequence[Trial], counted: int) -> Failure | None:
    """Return why the sweep fails, or None. `counted` of maxTrials were created so far."""
    failed = [trial for trial in trials if trial.row.state == TrialState.FAILED and not trial.is_final_trial]
    for trial in failed:
        if _fault(trial) is Fault.EVERY:
            name = f"trial {trial.row.number} ({trial.row.name})"
            text = f"{name} failed as every trial would: {_failure_message(trial.row)}"
            return _failed(spec, trial.row.reason, text, trial.row)
    # If a user lowers maxTrials below the created trials, the default failure limit must not fail the sweep.
    lowered = spec.max_failed_trials is None and counted > spec.max_trials
    allowed = failure_limit(spec)
    if len(failed) > allowed and not lowered:
        reason = _most_frequent_reason(failed)
        last = [trial.row for trial in failed if trial.row.reason == reason or reason is None][-1]
        default = " by default" if spec.max_failed_trials is None else ""
        text = f"{len(failed)} trials failed, and spec.maxFailedTrials allows {allowed}{default}"
        text = f"{text}; the last: {_failure_message(last)}"
        return _failed(spec, reason, text, last)
    return None


def failure_limit(spec: LoRASweepSpec) -> int:
    """Return how many trials may fail before the sweep fails."""
    return max(3, spec.max_trials // 5) if spec.max_failed_trials is None else spec.max_failed_trials


def _fault(trial: Trial) -> Fault:
    # A trial that fails because of its parameters is Infeasible, not Failed.
    return classify_failure(trial.row.reason or "", {}, ran=bool(trial.row.run_seconds))


def _end_reason(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> EndReason | None:
    """Return why no other trial is created now; some reasons are temporary."""
    if context.publishing:
        return context.recorded or EndReason.MAX_TRIALS
    deadline = _deadline(spec, context)
    if deadline is not None and context.now >= deadline:
        return EndReason.DEADLINE
    if spec.budget is not None and _spent(trials, context) >= spec.budget.gpu_seconds:
        return EndReason.BUDGET
    if _search_has_ended(trials, context):
        return context.recorded or EndReason.MAX_TRIALS
    return _search_end(spec, trials, context)


def _search_has_ended(trials: Sequence[Trial], context: DecisionContext) -> bool:
    """Return whether the search has ended: the best trial is being published, or the final trial exists."""
    return context.publishing or any(trial.is_final_trial for trial in trials)


def _search_end(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> EndReason | None:
    """Return why no more trials are needed; None if more are."""
    if context.recorded is EndReason.SPACE_EXHAUSTED:
        return EndReason.SPACE_EXHAUSTED
    if _remaining_trials(spec, trials, context) <= 0:
        return EndReason.MAX_TRIALS
    if sum(trial.row.reason == FailureReason.WONT_FIT for trial in trials) >= spec.max_trials:
        return EndReason.MOST_WONT_FIT
    patience, since = spec.stop_after_trials_without_improvement, trials_since_improvement(trials)
    if patience is not None and since is not None and since >= patience:
        return EndReason.NO_IMPROVEMENT
    if _trials_in_budget(spec, trials, context) == 0 and all(trial.has_ended for trial in trials):
        return EndReason.BUDGET
    return None


def _finish_search(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext, end: EndReason) -> Decision:
    """Return the step after the last trial of the search: final trial, publication or failure."""
    if spec.suspend:
        return Decision(end_reason=end)
    chosen = best(trials, spec.objective.tolerance)
    if chosen is None:
        since_retry = [trial for trial in trials if not trial.is_forgiven(context.forgiven)]
        return Decision(fail=_no_adapter_failure(spec, since_retry or trials, end), end_reason=end)
    extra = spec.final is not None and end not in _STOPS_ALL and not any(trial.is_final_trial for trial in trials)
    if extra:
        return Decision(final=_next(trials), end_reason=end)
    return Decision(publish=chosen.number, end_reason=end)


def _trials_to_create(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> tuple[int, ...]:
    """Return the numbers of the trials to create now."""
    alive = [trial for trial in trials if not trial.has_ended]
    if spec.suspend or any(trial.live is not None and trial.live.waiting for trial in alive):
        return ()
    # Create one trial first, so that a wrong bucket fails only one pod, on a CPU.
    parallel = spec.parallel_trials if any(map(has_passed_preflight, trials)) else 1
    number = min(
        parallel - len(alive), _remaining_trials(spec, trials, context), _trials_in_budget(spec, trials, context)
    )
    first = _next(trials)
    return tuple(range(first, first + max(0, number)))


def _remaining_trials(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> int:
    """Return how many more trials maxTrials and the status rows allow. One row is reserved for the final trial."""
    return min(spec.max_trials - _counted(trials, context), MAX_TRIAL_ROWS - 1 - len(trials))


def _counted(trials: Sequence[Trial], context: DecisionContext) -> int:
    """Return how many of the created trials count towards maxTrials."""
    return sum(trial.counts and not trial.is_forgiven(context.forgiven) for trial in trials)


def _next(trials: Sequence[Trial]) -> int:
    """Return the next unused trial number."""
    return max((trial.row.number for trial in trials), default=-1) + 1


def _trials_in_budget(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> int:
    """Return how many more trials the budget allows, after the expected use of the running trials."""
    mean = mean_gpu_seconds(trials)
    if spec.budget is None or not mean:
        return spec.parallel_trials
    alive = [trial for trial in trials if not trial.has_ended]
    expected = sum(max(0.0, mean - trial.gpu_seconds(context.now)) for trial in alive)
    return max(0, int((spec.budget.gpu_seconds - _spent(trials, context) - expected) // mean))


def _spent(trials: Sequence[Trial], context: DecisionContext) -> float:
    return sum(trial.gpu_seconds(context.now) for trial in trials)


def _deadline(spec: LoRASweepSpec, context: DecisionContext) -> datetime | None:
    seconds = spec.active_deadline_seconds
    return None if seconds is None else context.started + timedelta(seconds=seconds)


def _requeue_at(spec: LoRASweepSpec, trials: Sequence[Trial], context: DecisionContext) -> datetime | None:
    """Return when the next time limit is reached if nothing changes. Return None without a limit."""
    times = [] if (deadline := _deadline(spec, context)) is None else [deadline]
    rate = sum(len(trial.live.since) * trial.live.gpus for trial in trials if trial.live is not None)
    if spec.budget is not None:
        left = spec.budget.gpu_seconds - _spent(trials, context)
        # The time left may be less than the resolution of the clock.
        times += [context.now + max(_MIN_WAIT, timedelta(seconds=left / rate))] if rate and left > 0 else []
        times += [context.now] if left <= 0 else []
    alive = any(not trial.has_ended for trial in trials)
    ahead = [
        time if time > context.now else context.now + _WHILE_ENDING for time in times if alive or time > context.now
    ]
    return min(ahead, default=None)


def _stop_all(trials: Sequence[Trial], why: str) -> dict[int, str]:
    alive = (trial for trial in trials if trial.live is not None and not trial.live.stopping)
    return {trial.row.number: stop_text(why) for trial in alive}


def _no_adapter_failure(spec: LoRASweepSpec, trials: Sequence[Trial], end: EndReason) -> Failure:
    """Return why there is no adapter to publish."""
    if end in _STOPS_ALL:
        limit = "spec.budget" if end is EndReason.BUDGET else "spec.activeDeadlineSeconds"
        return _failed(
            spec, FailureReason.BUDGET_EXHAUSTED, f"{limit} was exceeded before any trial published an adapter"
        )
    if trials and all(trial.was_removed_by_user for trial in trials):
        text = f"all {len(trials)} trials were deleted or stopped by a user"
        return Failure(reason=FailureReason.NOT_IMPROVED, message=text, remedies=[_search_more_remedy(spec, end)])
    reason, complete = _most_frequent_reason(trials), any(trial.row.state == TrialState.COMPLETE for trial in trials)
    if reason is None:
        said = "has an adapter" if complete else "completed"
        return _failed(spec, FailureReason.NOT_IMPROVED, f"none of {len(trials)} trials {said}")
    alike = [trial.row for trial in trials if trial.row.reason == reason]
    none = "none has an adapter" if complete else "none is complete"
    text = (
        f"{len(alike)} of {len(trials)} trials ended as {reason}, and {none}; the last: {_failure_message(alike[-1])}"
    )
    return _failed(spec, reason, text, alike[-1])


def _search_more_remedy(spec: LoRASweepSpec, end: EndReason) -> Remedy:
    """Return the remedy if users deleted or stopped all trials."""
    if end is EndReason.SPACE_EXHAUSTED or spec.max_trials >= MAX_TRIALS:
        return recreate("Search again")
    return edit(f"Raise maxTrials above {spec.max_trials}, as deleted and stopped trials count", "maxTrials")


def _most_frequent_reason(trials: Sequence[Trial]) -> str | None:
    """Return the most frequent failure reason. On a tie, return the first one."""
    found = Counter(trial.row.reason for trial in trials if trial.row.reason)
    return found.most_common(1)[0][0] if found else None


def _failure_message(row: TrialStatus) -> str | None:
    """Return the message of a trial's failure, in full if the row has it."""
    return (row.failure.message if row.failure is not None else None) or row.why


def _failed(spec: LoRASweepSpec, reason: str | None, text: str, row: TrialStatus | None = None) -> Failure:
    """Return the failure of a sweep. `row` is the trial that failed; its remedies hold for the sweep."""
    reason = reason or FailureReason.INTERNAL_ERROR
    details = (row.failure if row is not None else None) or TrialFailure()
    remedies = details.remedies or list(remedies_for(reason))
    if reason != FailureReason.BUDGET_EXHAUSTED:
        remedies = sweep_remedies(remedies, [each.path for each in spec.parameters or ()])
    return Failure(reason=reason, message=shorten(text, _MESSAGE), remedies=remedies, facts=details.facts or {})
