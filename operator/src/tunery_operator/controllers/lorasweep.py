"""Provide the steps of a LoRASweep: create and stop trials as the search decides, then publish the best one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tunery_api.errors import InvalidSpec
from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.lenient import without_invalid
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.names import SUSPENDED_BY_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Task
from tunery_api.status import FINAL_PHASES
from tunery_api.sweepstatus import (
    FINAL_TRIAL_STATES,
    EndReason,
    ParameterImportance,
    TrialInputs,
    TrialState,
    TrialStatus,
)
from tunery_api.validation import parse_lorajob
from tunery_operator.client import apply
from tunery_operator.client.client import Json
from tunery_operator.client.permissions import LORAJOBS
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.jobs import ensure_job, recover_result
from tunery_operator.controllers.observe import ManagedObject, observe_main_job
from tunery_operator.controllers.reconciler import KindSteps, PartialReconcile
from tunery_operator.controllers.rejections import rejection_of
from tunery_operator.controllers.trials import OwnTrials, active_trial_names, is_made_for, own_trials, with_number
from tunery_operator.errors import ApiFailure, NameTaken, Rejected, SamplerBusy
from tunery_operator.manifests.trial import build_trial, stop_change, suspend_change
from tunery_operator.observed.metadata import Key, parse_time
from tunery_operator.planning.job import output_location
from tunery_operator.planning.lorasweep import SweepResult, plan_publish_best, plan_report, plan_trial, with_inputs
from tunery_operator.runtime.reader import peek_object
from tunery_operator.status.snapshot import SAMPLER_BUSY, SUGGESTION_FAILED, Blocker, Search, Snapshot
from tunery_search.decision import Decision, DecisionContext, decide, fail_sweep
from tunery_search.history import (
    IMPORTANCE_FROM,
    Suggestion,
    SuggestionReply,
    final_suggestion,
    sweep_request,
    with_warm_start,
)
from tunery_search.sampler import SuggestionFailed
from tunery_search.space import Space, read_values, space_of
from tunery_search.summary import gpu_seconds_saved, importance_shown
from tunery_search.trial_rows import invalid_row, merge_trials
from tunery_search.trial_spec import resolved_inputs
from tunery_search.trials import Trial
from tunery_search.validation import parse_lorasweep

FAILED_SECONDS: Final = 30.0
"""Time until a failed sampler is retried."""
BUSY_SECONDS: Final = 5.0
"""Time after which the condition Searching shows that the sampler takes long."""


@dataclass(frozen=True, slots=True)
class _Sweep:
    """One sweep in one reconcile: its spec, and its trials as they are in the cluster."""

    context: ReconcileContext
    obj: ManagedObject
    spec: LoRASweepSpec
    space: Space
    rows: tuple[TrialStatus, ...]
    own: OwnTrials
    inputs: TrialInputs | None = None
    """The inputs that the first trial resolved in its preflight; None: none passed yet."""
    rejections: tuple[ApiFailure | Rejected, ...] = ()
    """Errors of the API server for single trials; the others continue."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial, by the status and the LoRAJobs."""
        children = self.own.children.values()
        return merge_trials(self.rows, children, self.read, self.own.unread)

    def read(self, job_spec: Mapping[str, Any]) -> dict[str, str]:
        """Return the values by path in the spec of a trial."""
        return read_values(self.space, job_spec)

    @property
    def is_recorded(self) -> bool:
        """Return whether the status has the result of every trial that has ended.

        Until then the sweep creates nothing: that may take long or fail, and a trial whose LoRAJob is deleted meanwhile
        would count as deleted.
        """
        recorded = {row.number for row in self.rows if row.state in FINAL_TRIAL_STATES}
        return all(trial.row.number in recorded for trial in self.trials if trial.has_ended)

    def with_child(self, number: int, body: Json) -> _Sweep:
        """Return the sweep with the LoRAJob of a trial as it is now."""
        # For the watch this change is no news: enqueue the trial here.
        cache = self.context.cache
        cache.defer_keys(cache.put_object(Kind.LORAJOB, body) - {self.obj.owner.key})
        children = {**self.own.children, number: with_number(body, number)}
        return replace(self, own=replace(self.own, children=children))

    def with_rejection(self, error: ApiFailure | Rejected) -> _Sweep:
        """Return the sweep with another error of the API server."""
        return replace(self, rejections=(*self.rejections, error))


def _observe(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of the object, with the Job that publishes the best trial."""
    return observe_main_job(context, obj, Task.PUBLISH_BEST)


def _apply(context: ReconcileContext, obj: ManagedObject, spec: LoRASweepSpec, snapshot: Snapshot) -> Snapshot:
    """Apply the decision of the search: stop trials, create the due ones, or publish the best one at the end."""
    output_location(spec.output, obj.owner, context.platform.settings)  # raises before anything is waited for
    sweep = _observe_trials(context, obj, spec)
    main = snapshot.main
    trials = sweep.trials
    moment = _decision_context(context, obj, publishing=main is not None)
    decision = decide(spec, trials, moment)
    if main is not None and main.job.finished:
        found = _result(obj, sweep.trials, decision)
        shown = replace(snapshot, search=Search(spec, trials, decision, inputs=sweep.inputs))
        return recover_result(
            context, obj, shown, lambda: plan_report(spec, obj.owner, context.platform, found, sweep.space)
        )
    sweep, search = _apply_decision(sweep, _search(sweep, trials, decision))
    snapshot = replace(snapshot, search=replace(search, trials=sweep.trials))
    if sweep.rejections:
        raise _partial(sweep, snapshot)
    return snapshot if decision.publish is None or not sweep.is_recorded else _publish_best(sweep, snapshot)


def _search(sweep: _Sweep, trials: tuple[Trial, ...], decision: Decision) -> Search:
    own = sweep.own
    owner_changed = tuple(own.children[number]["metadata"]["name"] for number in sorted(own.owner_changed))
    return Search(sweep.spec, trials, decision, inputs=sweep.inputs, foreign=own.foreign, owner_changed=owner_changed)


def _apply_decision(sweep: _Sweep, search: Search) -> tuple[_Sweep, Search]:
    """Apply a decision as far as the API server allows; another reconcile retries the rest."""
    decision = search.decision
    sweep = _sync_suspend(_stop(sweep, decision.stop))
    search = replace(search, not_suspended=active_trial_names(sweep.own) if sweep.obj.suspend else ())
    due = decision.create or decision.final is not None
    # A trial that could not be read may have no row yet.
    if not due or not sweep.is_recorded or sweep.own.unread.keys() - {row.number for row in sweep.rows}:
        return sweep, search
    try:
        return _create_due(sweep, search)
    except (ApiFailure, Rejected) as error:
        return sweep.with_rejection(error), search


def _partial(sweep: _Sweep, snapshot: Snapshot) -> Exception:
    """Return the error to raise after a rejection, with the trials as observed: running ones continue."""
    error, search = sweep.rejections[0], snapshot.search
    if search is None or (isinstance(error, Rejected) and not sweep.obj.was_accepted()):
        return error
    found = rejection_of(error)
    blocker = Blocker(str(found.reason), found.message, FAILED_SECONDS)
    return PartialReconcile(replace(snapshot, search=replace(search, blocker=blocker)), error)


def _observe_trials(context: ReconcileContext, obj: ManagedObject, spec: LoRASweepSpec) -> _Sweep:
    rows = tuple(_rows(obj.status))
    own = own_trials(context, obj, spec, rows)
    return _Sweep(context, obj, spec, space_of(spec), rows, own, _inputs(obj, own), own.rejections)


def _inputs(obj: ManagedObject, own: OwnTrials) -> TrialInputs | None:
    """Return the inputs that the first trial resolved, from the status, or from the trial itself."""
    recorded = obj.status.get("trialInputs")
    if recorded is not None:
        return TrialInputs.model_validate(without_invalid(TrialInputs, recorded))
    children = (own.children[number] for number in sorted(own.children) if number >= _forgiven(obj))
    return next((read for child in children if (read := resolved_inputs(child)) is not None), None)


def _rows(status: Mapping[str, Any]) -> Iterable[TrialStatus]:
    """Yield the rows of a status, without what only a later version knows."""
    for row in status.get("trials") or ():
        yield TrialStatus.model_validate(without_invalid(TrialStatus, row) or row)


def _decision_context(context: ReconcileContext, obj: ManagedObject, *, publishing: bool) -> DecisionContext:
    recorded = obj.status.get("endReason")
    known = {reason.value for reason in EndReason}
    return DecisionContext(
        now=context.now(),
        started=parse_time(obj.owner.created) or context.now(),
        recorded=EndReason(recorded) if recorded in known else None,
        publishing=publishing,
        forgiven=_forgiven(obj),
    )


def _forgiven(obj: ManagedObject) -> int:
    """Return the number below which a retry ignores failed trials."""
    return int(obj.status.get("forgiven") or 0)


# Existing trials


def _stop(sweep: _Sweep, stop: Mapping[int, str]) -> _Sweep:
    """Stop the trials of these numbers."""
    for number, why in stop.items():
        sweep = _change(sweep, number, stop_change(why))
    return sweep


def _sync_suspend(sweep: _Sweep) -> _Sweep:
    """Suspend the trials with their sweep, or resume those that the sweep has suspended."""
    for number, body in sweep.own.children.items():
        spec, phase = body.get("spec") or {}, (body.get("status") or {}).get("phase")
        if phase in FINAL_PHASES or spec.get("stop") is not None:
            continue
        suspended = bool(spec.get("suspend"))
        ours = (body["metadata"].get("annotations") or {}).get(SUSPENDED_BY_ANNOTATION) == "sweep"
        if sweep.obj.suspend and not suspended:
            sweep = _change(sweep, number, suspend_change(True))
        elif not sweep.obj.suspend and suspended and ours:
            sweep = _change(sweep, number, suspend_change(False))
    return sweep


def _change(sweep: _Sweep, number: int, change: Json) -> _Sweep:
    """Change a trial, if the sweep owns it, with its uid as the only precondition. Raises StaleObject if it is gone."""
    body = sweep.own.children.get(number)
    if body is None or number in sweep.own.owner_changed:
        return sweep
    meta = body["metadata"]
    same = {"metadata": {name: meta[name] for name in ("namespace", "name", "uid")}}
    try:
        return sweep.with_child(number, apply.patch_child(sweep.context.client, LORAJOBS, same, change))
    except (ApiFailure, Rejected) as error:
        return sweep.with_rejection(error)


# New trials


def _create_due(sweep: _Sweep, search: Search) -> tuple[_Sweep, Search]:
    """Create the due trials; without an answer of the sampler, return the search with a blocker."""
    decision, trials = search.decision, search.trials
    if decision.final is not None:
        last = final_suggestion(sweep.spec, trials, decision.final)
        suggestions = [last] if last else []
    else:
        answer = _suggest(sweep, trials, decision.create)
        if isinstance(answer, Blocker):
            return sweep, replace(search, blocker=answer)
        search = replace(search, importance=answer.importance or None, exhausted=not answer.suggestions)
        suggestions = list(answer.suggestions)
    rows = sweep.rows
    for suggestion in suggestions:
        try:
            sweep = _create(sweep, suggestion)
        except NameTaken as error:
            return _give_up(sweep, search, Failure(reason=FailureReason.NAME_CONFLICT, message=str(error)))
        except (ApiFailure, Rejected) as error:
            return sweep.with_rejection(error), search
        if sweep.rows != rows:
            # An invalid trial is only a row: write it before a later trial is created.
            break
    return sweep, search


def _give_up(sweep: _Sweep, search: Search, failure: Failure) -> tuple[_Sweep, Search]:
    """Stop the running trials of a sweep that fails."""
    decision = fail_sweep(sweep.trials, failure)
    return _stop(sweep, decision.stop), replace(search, decision=decision)


def _suggest(sweep: _Sweep, trials: Sequence[Trial], numbers: Sequence[int]) -> SuggestionReply | Blocker:
    """Return what to try next, or what blocks the answer. Raises StaleObject, ApiFailure."""
    request = sweep_request(sweep.spec, sweep.space, trials, numbers, _forgiven(sweep.obj))
    if numbers and sweep.spec.warm_start_from:
        request = with_warm_start(request, [_earlier_rows(sweep, each.name) for each in sweep.spec.warm_start_from])
    try:
        return sweep.context.sampler.suggest(request, sweep.obj.owner.key, sweep.obj.owner.uid)
    except SamplerBusy as error:
        return Blocker(SAMPLER_BUSY, str(error), BUSY_SECONDS, is_shown=error.seconds >= BUSY_SECONDS)
    except SuggestionFailed as error:
        return Blocker(SUGGESTION_FAILED, str(error), FAILED_SECONDS)


def _earlier_rows(sweep: _Sweep, name: str) -> list[TrialStatus]:
    """Return the trials of an earlier sweep; none if it was deleted."""
    context = sweep.context
    key = Key(Kind.LORASWEEP, sweep.obj.owner.key.namespace, name)
    body = peek_object(context.client, context.cache, key)
    return list(_rows((body or {}).get("status") or {}))


def _create(sweep: _Sweep, suggestion: Suggestion) -> _Sweep:
    """Create one trial, or adopt the existing one of that number. Raises what `create_child` raises.

    A trial whose values do not go together becomes a row without a LoRAJob.
    """
    context, owner = sweep.context, sweep.obj.owner
    place = output_location(sweep.spec.output, owner, context.platform.settings)
    plan = plan_trial(sweep.spec, owner, place, sweep.trials, suggestion)
    plan = with_inputs(plan, sweep.inputs, again=bool(_forgiven(sweep.obj)))
    body = build_trial(plan)
    try:
        parse_lorajob(body)
    except InvalidSpec as error:
        return replace(sweep, rows=(*sweep.rows, invalid_row(body, sweep.read, error)))
    if plan.name in sweep.own.foreign:
        found = context.client.get(LORAJOBS.get, owner.key.namespace, plan.name)
        if found is not None and not is_made_for(found, owner, plan.number):
            raise NameTaken(plan.name, LORAJOBS.kind)
    return sweep.with_child(plan.number, apply.create_child(context.client, owner, LORAJOBS, body))


# The end


def _publish_best(sweep: _Sweep, snapshot: Snapshot) -> Snapshot:
    """Create or update the Job that publishes the adapter of the best trial."""
    context, obj, search = sweep.context, sweep.obj, snapshot.search
    assert search is not None  # noqa: S101 - set by the caller, for the type checker
    if snapshot.main is None:
        search = _with_importance(sweep, search)
        if search.blocker is not None:
            return replace(snapshot, search=search)
    found = _result(obj, sweep.trials, search.decision, search.importance)
    plan = plan_publish_best(sweep.spec, obj.owner, context.platform, found, sweep.space)
    return replace(snapshot, search=search, main=ensure_job(context, obj, plan, snapshot.main))


def _with_importance(sweep: _Sweep, search: Search) -> Search:
    """Return the search with the importance of each parameter, or with a blocker while the sampler computes it.

    Without both if the sampler fails: importance is only shown.
    """
    complete = sum(trial.row.state == TrialState.COMPLETE for trial in search.trials)
    if complete < IMPORTANCE_FROM:
        return search
    answer = _suggest(sweep, search.trials, ())
    if isinstance(answer, Blocker):
        return replace(search, blocker=answer) if answer.reason == SAMPLER_BUSY else search
    return replace(search, importance=answer.importance or None)


def _result(
    obj: ManagedObject, trials: Sequence[Trial], decision: Decision, importance: Mapping[str, float] | None = None
) -> SweepResult:
    """Return the result of the search."""
    known = [ParameterImportance.model_validate(each) for each in obj.status.get("importance") or ()]
    end = decision.end_reason
    return SweepResult(
        trials=[trial.row for trial in trials],
        best=decision.publish if decision.publish is not None else -1,
        importance=importance_shown(importance or {}) or known,
        end_reason=end.value if end is not None else None,
        saved=gpu_seconds_saved(trials),
    )


def _job_names(obj: ManagedObject) -> tuple[str, ...]:
    return (obj.job_name(Task.PUBLISH_BEST),)


LORASWEEP_STEPS: Final = KindSteps(parse_lorasweep, _observe, _apply, _job_names)
