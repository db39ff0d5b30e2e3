"""Describe the state of an object in sentences: its progress, what it waits for, its result, and what is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tunery.objects import Failure, View
from tunery.text import phase_style
from tunery_api.kinds import Kind
from tunery_api.measured import change_text, parse_finite
from tunery_api.status import Phase

_FINE: Final = frozenset({"Succeeded", "Suspended", "Stopped"})
"""Ends of an attempt that are no failures."""
_HINTS: Final[Mapping[str, str]] = {
    "WaitingForQuota": "It starts once the queue has room: kubectl describe localqueue {queue} -n {ns}",
    "Preempted": "It resumes from its latest checkpoint once its queue admits it again: "
    "kubectl describe localqueue {queue} -n {ns}",
    "PreflightQueued": "Its preflight starts once the queue has room: kubectl describe localqueue {queue} -n {ns}",
    "InputMissing": "Create the named object, or delete this one: kubectl delete {ref} -n {ns}",
    "WaitingForInputs": "It continues once these have succeeded: {inputs}",
    "WaitingForPreflightSlot": "Wait, or ask a cluster admin to raise preflight.maxConcurrent of Tunery's chart",
    "WaitingForPredecessor": "Wait for the terminating pod: kubectl get pods -n {ns} -l tunery.dev/owner={name}",
    "AttemptFailed": "The next attempt starts automatically, from the latest checkpoint",
    "JobSuspended": "Resume the Job that another client suspended: "
    'kubectl patch job {job} -n {ns} --type=merge -p \'{{"spec":{{"suspend":false}}}}\'',
    "NotReporting": "The result does not depend on these reports. To see what the pod does: tunery -n {ns} logs {ref}",
    "Suspended": "Resume it: tunery -n {ns} resume {ref}",
    "TrialsQueued": "The search continues once a trial runs. Why it waits: tunery -n {ns} explain lorajob/{trial}",
}
"""What to do about a reason of a condition that is no failure."""


class Line(NamedTuple):
    """One line of text."""

    text: str
    style: str = ""


def blocker(view: View) -> Failure | None:
    """Return what an object that has not finished waits for, with what to do; None if it does not wait."""
    if view.finished or view.phase == Phase.FAILED:
        # A failed object that has not finished is about to be retried.
        return None
    if view.failure is not None:
        return view.failure
    reason = Phase.SUSPENDED.value if view.phase == Phase.SUSPENDED else view.status.get("reason")
    if reason is None:
        return None
    found = [each for each in view.status.get("conditions") or () if each["reason"] == reason]
    return Failure(reason, next((each["message"] for each in found if each.get("message")), ""), hint(view, reason))


def hint(view: View, reason: str) -> str:
    """Return what to do about a reason that is no failure; empty if there is nothing to do."""
    return _HINTS.get(reason, "").format(
        ref=view.reference, name=view.name, ns=view.metadata["namespace"], queue=view.status.get("queue") or "QUEUE",
        job=view.status.get("jobName") or "JOB", inputs=", ".join(inputs(view)) or "the named objects",
        trial=next((row["name"] for row in rows(view) if row["state"] == "Waiting"), "TRIAL"),
    )  # fmt: skip


def inputs(view: View) -> list[str]:
    """Return the objects that a spec names, such as lorajob/base."""
    kinds = {"loraJobRef": Kind.LORAJOB, "adapterMergeRef": Kind.ADAPTERMERGE, "serverRef": Kind.ADAPTERSERVER}
    return list(dict.fromkeys(f"{kinds[key].singular}/{name}" for key, name in _references(view.spec) if key in kinds))


def _references(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the field and the name of each reference of a spec."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key.endswith("Ref") and isinstance(inner, Mapping) and "name" in inner:
                yield key, inner["name"]
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def rows(view: View) -> list[dict[str, Any]]:
    """Return the trials of a sweep."""
    return view.status.get("trials") or []


def progress(view: View) -> list[str]:
    """Return the parts of the progress, the most important ones first."""
    parts = {Kind.LORASWEEP: _search, Kind.BATCHINFERENCE: _answers, Kind.ADAPTERSERVER: _serving}
    return [part for part in parts.get(view.kind, _training)(view) if part]


def _training(view: View) -> Iterator[str]:
    step, total = view.at("status.progress.step"), view.at("status.progress.totalSteps")
    percent = view.at("status.progress.percentText")
    yield f"step {step}/{total}" if step is not None and total else percent or ""
    yield number("loss ", view.at("status.metrics.loss"))
    yield held_out(view)
    if not view.finished:
        yield _eta(view)
        yield number("", view.at("status.progress.tokensPerSecond"), " tokens/s")


def _answers(view: View) -> Iterator[str]:
    lines = view.status.get("lines")
    yield (
        f"{view.status.get('answered', 0)} of {lines} lines" if lines else view.at("status.progress.percentText") or ""
    )
    yield f"{view.status['errors']} failed" if view.status.get("errors") else ""
    yield "" if view.finished else _eta(view)


def _search(view: View) -> Iterator[str]:
    counts = view.status.get("countsText")
    yield f"trials {counts}" if counts else ""
    running = view.at("status.counts.running")
    yield f"{running} running" if running and not view.finished else ""
    yield number("best ", view.at("status.best.value"))


def _serving(view: View) -> Iterator[str]:
    ready, adapters = view.status.get("readyText"), view.status.get("adaptersText")
    yield f"replicas {ready}" if ready else ""
    yield f"adapters {adapters}" if adapters else ""


def _eta(view: View) -> str:
    eta = view.at("status.progress.eta")
    return f"ETA {eta}" if eta else ""


def number(before: str, text: Any, after: str = "") -> str:
    """Return a measured number with four digits and its unit; empty if it was not measured."""
    value = parse_finite(text)
    if value is None:
        return ""
    return f"{before}{value:,.0f}{after}" if abs(value) >= 1000 else f"{before}{value:.4g}{after}"


def held_out(view: View) -> str:
    """Return the held-out loss, next to the base model's."""
    loss, base = number("", view.at("status.metrics.evalLoss")), number("", view.at("status.metrics.baseEvalLoss"))
    if not loss:
        return f"held-out base {base}" if base else ""
    return f"held-out {loss}" + (f" (base {base})" if base else "")


def result(view: View) -> Iterator[Line]:
    """Yield what a finished object has published and measured, or where a server answers."""
    name, after = view.reference, view.at("status.stopped.afterStep")
    if view.kind is Kind.ADAPTERSERVER:
        if view.status.get("readyReplicas"):
            yield Line(f"{name} answers at {view.status.get('url')}", phase_style(view.phase))
        return
    if view.phase == Phase.FAILED and view.failure is not None:
        yield Line(f"{name} failed: {view.failure.reason}: {view.failure.message}", "red")
        if view.failure.hint:
            yield Line(f"  {view.failure.hint}")
        return
    ended = f"was stopped after step {after}" if after is not None else f"has {view.phase.lower()}"
    ended = "was stopped" if view.phase == Phase.STOPPED and after is None else ended
    yield Line(f"{name} {ended}", phase_style(view.phase))
    uri = view.at("status.adapter.uri") or view.at("status.output.uri")
    if uri:
        what = "model" if view.spec.get("into") == "Model" else "adapter"
        yield Line(f"  {'answers' if view.kind is Kind.BATCHINFERENCE else what}: {uri}")
    else:
        only = "preflight passed; spec.preflight is Only, so nothing was trained"
        yield Line(f"  {only if view.spec.get('preflight') == 'Only' else 'nothing was published'}")
    change = improvement(view)
    if change:
        yield Line(f"  held-out loss: {change}")


def improvement(view: View) -> str:
    """Return the change of the held-out loss, such as `2.5 → 1.4, −44.0 % (± 1.2 %)`; empty if it was not measured."""
    best = view.status.get("best") or {} if view.kind is Kind.LORASWEEP else None
    metrics = view.status.get("metrics") or {} if best is None else {}
    loss = parse_finite(metrics.get("evalLoss") if best is None else best.get("value"))
    base = parse_finite(metrics.get("baseEvalLoss") if best is None else best.get("baseValue"))
    if loss is None or not base:
        return ""
    change = change_text(loss / base - 1, parse_finite(metrics.get("improvementError")))
    return f"{number('', base)} → {number('', loss)}, {change}"


def news(before: View | None, now: View) -> Iterator[Line]:
    """Yield what is new in a state, but for its progress: findings, warnings, retries, and what blocks the object."""
    old = before.status if before is not None else {}
    known = set((old.get("dataset") or {}).get("warnings") or ())
    yield from (Line(f"data: {text}", "yellow") for text in _warnings(now) if text not in known)
    found = {(each["type"], each["severity"]) for each in old.get("findings") or ()}
    yield from (finding(each) for each in now.status.get("findings") or ()
                if (each["type"], each["severity"]) not in found)  # fmt: skip
    yield from _attempts(old, now)
    waits, waited = blocker(now), blocker(before) if before is not None else None
    if waits is not None and waits != waited:
        yield Line(f"waits: {waits.reason}" + (f": {waits.message}" if waits.message else ""), "yellow")
        if waits.hint:
            yield Line(f"  {waits.hint}")


def _warnings(view: View) -> list[str]:
    return view.at("status.dataset.warnings") or []


def finding(entry: Mapping[str, Any]) -> Line:
    """Return a finding of the diagnosis with the change that it suggests."""
    field, suggested = entry.get("field"), entry.get("suggest")
    style = {"Problem": "red", "Warning": "yellow"}.get(entry["severity"], "")
    message = entry.get("message") or f"at step {entry['step']}"
    change = f"; try {field}: {suggested}" if field and suggested and field not in message else ""
    return Line(f"{entry['severity'].lower()}: {entry['type']}: {message}{change}", style)


def _attempts(old: Mapping[str, Any], now: View) -> Iterator[Line]:
    """Yield each attempt that has failed, and that the next one has started."""
    ended = {each["uid"] for each in old.get("attemptHistory") or () if each.get("endTime")}
    for each in now.status.get("attemptHistory") or ():
        if each.get("endTime") and each["uid"] not in ended and each.get("reason") not in _FINE:
            yield Line(f"attempt: {attempt(each)}", "yellow")
    begun, count = old.get("attempts") or 1, now.status.get("attempts") or 0
    if count > begun and not now.finished:
        yield Line(f"attempt: number {count} has started")


def attempt(entry: Mapping[str, Any]) -> str:
    """Return how an entry of the attempt history ended."""
    node = f" on node {entry['node']}" if entry.get("node") else ""
    if not entry.get("endTime"):
        return f"pod {entry['pod']}{node} runs"
    code = f", exit code {entry['exitCode']}" if entry.get("exitCode") is not None else ""
    after = f" after {entry['seconds']} s" if entry.get("seconds") is not None else ""
    return f"pod {entry['pod']}{node} ended{after}: {entry.get('reason') or 'for an unknown reason'}{code}"
