"""Compute the status of a LoRASweep, and the status of a trial whose files were removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from tunery_api.failures import Failure, Subject, render_hint
from tunery_api.lenient import parse_lenient
from tunery_api.status import ConditionType
from tunery_api.sweepstatus import EndReason
from tunery_operator.observed.event import ADAPTER_REMOVED
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.snapshot import SEARCH_SUSPENDED, TRIAL_KEPT, TRIALS_QUEUED, Search
from tunery_search import summary
from tunery_search.failures import sweep_remedies
from tunery_search.summary import points_tried
from tunery_search.trials import Trial

_SEARCHING: Final = ConditionType.SEARCHING
_NAMED: Final = 3
"""Foreign LoRAJobs that are named at most."""
_END: Final = {
    EndReason.MAX_TRIALS: "all trials of spec.maxTrials have been created",
    EndReason.BUDGET: "spec.budget has no room for another trial",
    EndReason.DEADLINE: "spec.activeDeadlineSeconds has expired",
    EndReason.NO_IMPROVEMENT: "the last spec.stopAfterTrialsWithoutImprovement trials were not better than the best",
    EndReason.SPACE_EXHAUSTED: "every point of the space has been tried",
    EndReason.MOST_WONT_FIT: "as many as spec.maxTrials would not fit into memory; raise it to try others",
}
_SEARCH_ENDED: Final = "the search has ended"
_GONE: Final = ("adapter", "rejectedAdapter", "checkpoint")
_GONE_FACTS: Final = ("curve", "rejectedAdapter")
_OTHERS: Final = {
    False: "",
    True: "; the others could not be removed, or not all of them",
    None: "; whether the others were removed is not known",
}
_CHECKPOINTS: Final = {
    False: "were removed",
    True: "could not be removed, or not all of them,",
    None: "were to be removed (whether they were is not known)",
}
_SINCE: Final = {
    False: "has removed it since",
    True: "does not keep it, and could not remove all that it does not keep",
    None: "does not keep it, and whether it was removed is not known",
}
"""By `remains` of `after_removal`."""


def check_search(builder: StatusBuilder) -> bool:
    """Write the trials; return True if the sweep fails."""
    search = builder.snapshot.search
    if search is None:
        return False
    if builder.snapshot.main is None:
        # Searching shows why there is no Job yet.
        builder.conditions.drop(ConditionType.RUNNING)
    _show_trials(builder, search)
    failure = search.decision.fail
    if failure is None:
        _show_stage(builder, search)
        return False
    if search.alive:
        # The sweep fails once no trial runs: a failed sweep doesn't reconcile its trials.
        builder.show_blocker(failure, ends=True)
        builder.conditions.set(_SEARCHING, False, str(failure.reason), f"{failure.message}; {_waiting_text(search)}")
        return True
    builder.conditions.set(_SEARCHING, False, str(failure.reason), failure.message)
    builder.fail(failure)
    return True


def omit_removed_adapters(builder: StatusBuilder) -> None:
    """Remove the URIs of the adapters that are not kept, once the best is published."""
    search = builder.snapshot.search
    if search is None or search.decision.publish is None or not builder.conditions.is_true(ConditionType.SUCCEEDED):
        return
    rows = [trial.row for trial in search.trials]
    remaining = summary.without_removed_adapters(rows, search.decision.publish, search.spec.keep_adapters)
    builder.put(trials=[row.to_json_dict() for row in remaining])


def _show_trials(builder: StatusBuilder, search: Search) -> None:
    spec, trials = search.spec, search.trials
    best = summary.best(trials, spec.objective.tolerance)
    convergence = summary.convergence(trials)
    end = EndReason.SPACE_EXHAUSTED if search.exhausted else search.decision.end_reason
    builder.put(
        trials=[trial.row.to_json_dict() for trial in trials] or None,
        counts=summary.trial_counts(trials).to_json_dict(),
        countsText=summary.counts_text(trials, spec.max_trials, int(builder.fields.get("forgiven") or 0)),
        best=summary.best_trial(best).to_json_dict() if best is not None else None,
        convergence=[each.to_json_dict() for each in convergence] or None,
        trialsSinceImprovement=summary.trials_since_improvement(trials),
        gpuSeconds=summary.gpu_seconds(trials),
        gpuSecondsSaved=summary.gpu_seconds_saved(trials),
        trialInputs=search.inputs.to_json_dict() if search.inputs is not None else None,
        endReason=end.value if end is not None else None,
    )
    if search.importance is not None:
        shown = summary.importance_shown(search.importance)
        builder.put(importance=[each.to_json_dict() for each in shown] if shown else None)
    started = _started(trials)
    if started is not None:
        builder.fields.setdefault("startTime", started)


def _started(trials: tuple[Trial, ...]) -> str | None:
    """Return when the first pod of a trial started, by the current trials."""
    times = [since for trial in trials if trial.live is not None for since in trial.live.since]
    return _text(min(times)) if times else None


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _show_stage(builder: StatusBuilder, search: Search) -> None:
    """Show whether trials are created, and why none is."""
    decision, blocker = search.decision, search.blocker
    end = EndReason.SPACE_EXHAUSTED if search.exhausted else decision.end_reason
    if decision.publish is not None or (end is not None and decision.final is None and not decision.create):
        why = _END.get(end, _SEARCH_ENDED) if end is not None else _SEARCH_ENDED
        if end is EndReason.MAX_TRIALS and (tried := points_tried(search.spec)):
            why += f", {tried}"
        suffix = f"; {_waiting_text(search)}" if search.alive else ""
        _set_searching(builder, search, False, end.value if end is not None else "Ended", why + suffix)
    elif builder.snapshot.suspend:
        text = f"no trial is created while the sweep is suspended{_retained_suffix(search)}{_rejection_suffix(search)}"
        _set_searching(builder, search, None, SEARCH_SUSPENDED, text)
    elif blocker is not None and blocker.is_shown:
        _set_searching(builder, search, None, blocker.reason, blocker.message)
    elif (queued := _queued_text(search, builder.snapshot.owner.key.namespace)) is not None:
        _set_searching(builder, search, None, TRIALS_QUEUED, queued)
        failure = next((trial.live.blocker for trial in search.alive if trial.live and trial.live.blocker), None)
        if failure is not None:
            remedies = sweep_remedies(failure.fixes, [each.path for each in search.spec.parameters or ()])
            builder.show_blocker(failure.model_copy(update={"remedies": remedies}))
    elif search.kept and len(search.kept) == len(search.alive):
        _set_searching(builder, search, None, TRIAL_KEPT, f"waits for {_retained_text(search)}")
    else:
        tried = points_tried(search.spec)
        made = f"trials are created: {tried}" if tried else "trials are created"
        _set_searching(builder, search, True, "Searching", f"{made}{_retained_suffix(search)}")


def _set_searching(builder: StatusBuilder, search: Search, status: bool | None, reason: str, message: str) -> None:
    """Set the condition Searching; name owned objects that are not trials, and trials with a changed owner."""
    foreign = search.foreign
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        message += f"; not counted, as the sweep owns them but did not create them: {', '.join(foreign[:_NAMED])}{more}"
    if search.owner_changed:
        message += (
            f"; counted, and neither stopped nor suspended, as its owner was changed: {', '.join(search.owner_changed)}"
        )
    builder.conditions.set(_SEARCHING, status, reason, message)


def _queued_text(search: Search, namespace: str) -> str | None:
    waiting = [trial.row for trial in search.alive if trial.live is not None and trial.live.waiting]
    if not waiting:
        return None
    names = ", ".join(row.name for row in waiting)
    command = f"kubectl describe lorajob {waiting[0].name} -n {namespace}"
    return f"{names} waits: {command} shows why; no other trial is created before it runs"


def _retained_suffix(search: Search) -> str:
    return f"; {_retained_text(search)}" if search.kept else ""


def _retained_text(search: Search) -> str:
    """Return the deleted trials that finalizers keep: each takes the slot of another trial until it is gone."""
    texts = (
        f"{name}, which was deleted and is kept by the finalizer {', '.join(f)}" for name, f in search.kept.items()
    )
    return f"{'; '.join(texts)}: the client that set it must remove it"


def _waiting_text(search: Search) -> str:
    names = ", ".join(trial.row.name for trial in search.alive)
    return f"waits for {names} to end{_retained_suffix(search)}{_rejection_suffix(search)}"


def _rejection_suffix(search: Search) -> str:
    """Return why the cluster rejected a trial."""
    return f"; {search.blocker.message}" if search.blocker is not None and search.blocker.is_shown else ""


def after_removal(
    status: Mapping[str, Any], subject: Subject, keep: int, now: datetime, *, remains: bool | None = False
) -> dict[str, Any]:
    """Return the status of a trial that is not among the `keep` best of its sweep; unchanged if it names no files.

    `subject` is the trial. `remains`: some files could not be removed; None: unknown.
    """
    curve = status.get("curve") or {}
    if "uri" not in curve and not any(name in status for name in _GONE):
        return dict(status)
    sweep = str(subject.sweep)
    conditions = Conditions(status.get("conditions") or (), int(status.get("observedGeneration") or 1), now)
    why = f"LoRASweep {sweep} has published its best; of its trials' own adapters it keeps those of the {keep} best"
    if "adapter" in status:
        conditions.set(
            ConditionType.ADAPTER_UPLOADED, False, ADAPTER_REMOVED, f"{why} (spec.keepAdapters){_OTHERS[remains]}"
        )
        _omit_uri(conditions, sweep, remains)
    if conditions.reason(ConditionType.CHECKPOINT_SAVED) not in (None, "Removed"):
        text = f"the checkpoints {_CHECKPOINTS[remains]} once LoRASweep {sweep} had published its best"
        conditions.set(ConditionType.CHECKPOINT_SAVED, False, "Removed", text)
    left = {name: value for name, value in status.items() if name not in (*_GONE, "curve")}
    points = {"curve": {"points": curve["points"]}} if curve.get("points") else {}
    failure = {"failure": _without_removed(status["failure"], subject)} if status.get("failure") else {}
    return {**left, **points, **_dataset(status), **failure, "conditions": conditions.to_list()}


def _without_removed(failure: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return a failure that no longer names what was removed: the rejected adapter, and the curve."""
    facts = failure.get("facts") or {}
    remaining = {key: value for key, value in facts.items() if key not in _GONE_FACTS}
    if remaining == facts:
        return dict(failure)
    left = {name: value for name, value in failure.items() if name != "facts"} | (
        {"facts": remaining} if remaining else {}
    )
    found = parse_lenient(Failure, json.dumps(left))
    return left if found is None else {**left, "hint": render_hint(found, subject)}


def _omit_uri(conditions: Conditions, sweep: str, remains: bool | None) -> None:
    """Remove the URI from the message of a trial that has succeeded, as its files were removed."""
    text = f"published, read back, and every digest matched; LoRASweep {sweep} {_SINCE[remains]}"
    if conditions.is_true(ConditionType.SUCCEEDED):
        conditions.set(ConditionType.SUCCEEDED, True, conditions.reason(ConditionType.SUCCEEDED) or "Succeeded", text)


def _dataset(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return status.dataset without the URI of a report that was stored with the adapter."""
    found, uri = status.get("dataset") or {}, (status.get("adapter") or {}).get("uri")
    if uri is None or not str(found.get("report") or "").startswith(f"{uri.rstrip('/')}/"):
        return {}
    return {"dataset": {name: value for name, value in found.items() if name != "report"}}
