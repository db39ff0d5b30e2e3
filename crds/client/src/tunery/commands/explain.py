"""Provide `tunery explain`: what an object does now and what comes next, or why it waits or failed and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from tunery.app import App
from tunery.describe import attempt, blocker, finding, improvement, inputs, progress, result, rows
from tunery.errors import NotFound, TuneryError
from tunery.objects import View, find, parse_time, view
from tunery.text import duration_text, phase_style
from tunery_api.failures import Subject
from tunery_api.kinds import Kind
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action, Remedy, is_fixable, remedies_for
from tunery_api.serverstatus import ServerPhase
from tunery_api.status import Phase
from tunery_api.sweepstatus import TrialState

if TYPE_CHECKING:
    from tunery.cluster import Cluster, Json

SHOWN: Final = 5
"""The most trials, adapters, replicas or events that are listed."""
UNSEEN_SECONDS: Final = 60
"""A healthy operator handles a new object sooner."""
_NOW: Final[Mapping[str, str]] = {
    Phase.PENDING: "The operator decides the next step.",
    Phase.WAITING: "It has no pod yet.",
    Phase.PREFLIGHT: "A preflight pod checks the data, the model, the credentials and the output. It needs no GPU.",
    Phase.QUEUED: "Its Job waits for quota; no pod exists.",
    Phase.STARTING: "Its pod is scheduled, pulls its image, or starts.",
    Phase.DOWNLOADING: "Its pod downloads the model and the data.",
    Phase.TRAINING: "Its pod trains.",
    Phase.EVALUATING: "Its pod measures the loss on the held-out rows.",
    Phase.MERGING: "Its pod merges the adapters.",
    Phase.ANSWERING: "Its pod sends the requests to the server.",
    Phase.SEARCHING: "It creates trials and waits for them.",
    Phase.UPLOADING: "It publishes the result.",
    Phase.STOPPING: "It is being stopped: its pod stores a checkpoint and ends.",
    Phase.SUSPENDING: "It is being suspended: its pod stores a checkpoint and ends.",
    Phase.SUSPENDED: "It is suspended: no pod exists, and its checkpoint is kept.",
}
_SERVER_NOW: Final[Mapping[str, str]] = {
    ServerPhase.PENDING: "The operator decides the next step.",
    ServerPhase.STARTING: "No replica is ready yet.",
    ServerPhase.READY: "It serves the base model and every adapter.",
    ServerPhase.DEGRADED: "It serves, but has a problem.",
    ServerPhase.UPDATING: "It serves while replicas are replaced, adapters are loaded, or a job still trains.",
    ServerPhase.STOPPED: "It has no replica: spec.replicas is 0.",
    ServerPhase.INVALID: "Its spec has errors; what was served before is still served.",
}
_TRAINS: Final = "It trains, measures the held-out rows, and publishes the adapter at {output}."
_PUBLISHES: Final = "It publishes the result at {output}."
_NEXT: Final[Mapping[str, Mapping[str, str]]] = {
    Kind.LORAJOB: {
        Phase.PENDING: "A preflight pod checks its inputs; then it trains.",
        Phase.WAITING: "It continues automatically.",
        Phase.PREFLIGHT: _TRAINS,
        Phase.QUEUED: "It starts as soon as the queue admits it.",
        Phase.STARTING: _TRAINS,
        Phase.DOWNLOADING: _TRAINS,
        Phase.TRAINING: "It measures the held-out rows and publishes the adapter at {output}.",
        Phase.EVALUATING: "Training continues, or the adapter is published at {output}.",
    },
    Kind.LORASWEEP: {Phase.SEARCHING: "It ends after {trials} trials and publishes the best adapter at {output}."},
}


@dataclass
class Explanation:
    """What is said about an object, each part in whole sentences."""

    now: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    fix: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


@click.command("explain")
@click.argument("name")
@click.pass_obj
def explain_command(app: App, /, name: str) -> None:
    """Say what an object does now and what comes next, or why it waits or failed and how to fix it."""
    found = find(app.cluster, name)
    cluster = app.cluster.within(found.metadata["namespace"])
    explanation = explain(found, datetime.now(UTC), input_states(cluster, found), warnings(cluster, found))
    if app.is_json:
        app.print_json({"object": found.reference, "phase": found.phase, **asdict(explanation)})
        return
    app.print(f"{found.reference} is {found.phase}", phase_style(found.phase))
    for title, lines in (("", explanation.now), ("Why", explanation.why), ("Fix", explanation.fix),
                         ("", explanation.commands), ("Next", explanation.next)):  # fmt: skip
        if title and lines:
            app.print(title, "bold")
        indent = "    " if lines is explanation.commands else "  "
        for line in lines:
            app.print(f"{indent}{line}")


def explain(found: View, now: datetime, states: Sequence[str] = (), events: Sequence[str] = ()) -> Explanation:
    """Return the explanation of an object; `states` are those of its inputs, `events` the warnings about its pod."""
    parts = {Kind.ADAPTERSERVER: _server, Kind.LORASWEEP: _sweep}
    said = Explanation()
    if found.finished:
        _finished(found, said)
    else:
        _unfinished(found, now, said)
        if blocker(found) is not None or found.phase in (Phase.STARTING, Phase.PENDING, Phase.PREFLIGHT):
            said.why += [*states, *events]
    parts.get(found.kind, _job)(found, said)
    said.commands = list(dict.fromkeys(said.commands))
    return said


def _finished(found: View, said: Explanation) -> None:
    if found.phase != Phase.FAILED or found.failure is None:
        said.now += [line.text.strip() for line in result(found)]
        return
    failure = found.failure
    said.why.append(f"{failure.reason}: {failure.message}")
    # The command below replaces that of the hint.
    subject = Subject(found.kind.value, found.name, found.metadata["namespace"], found.sweep)
    said.fix.append(failure.hint.removesuffix(f" To retry: {subject.retry_command}"))
    said.commands += [*_secrets(found, failure.reason), *_after_failure(found)]


def _after_failure(found: View) -> Iterator[str]:
    """Yield the commands that continue after the fix of a failure."""
    prefix, remedies = f"tunery -n {found.metadata['namespace']}", _remedies(found)
    if found.sweep is not None:
        yield f"{prefix} explain lorasweep/{found.sweep}"
        return
    if is_fixable(remedies):
        yield f"{prefix} retry {found.reference}"
    fields = next((each.fields for each in remedies if each.action == Action.RECREATE and each.fields), None)
    if fields:
        yield f"{prefix} resubmit {found.reference} --set {fields[0]}=VALUE"


def _remedies(found: View) -> list[Remedy]:
    failure = found.status.get("failure") or {}
    stored = [Remedy.model_validate(each) for each in failure.get("remedies") or ()]
    return stored or list(remedies_for(failure.get("reason", "")))


def _secrets(found: View, reason: str) -> Iterator[str]:
    """Yield the commands that create the Secrets of a spec, if one is missing."""
    if reason == FailureReason.SECRET_NOT_FOUND:
        for name, keys in dict(_secret_keys(found.spec)).items():
            literals = " ".join(f"--from-literal={key}=VALUE" for key in keys)
            yield f"kubectl create secret generic {name} -n {found.metadata['namespace']} {literals}"


def _secret_keys(value: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name and the usual keys of each Secret for a location in a spec."""
    if isinstance(value, Mapping):
        reference = value.get("secretRef")
        if isinstance(reference, Mapping) and "name" in reference:
            hub = str(value.get("uri", "")).startswith("hf://")
            yield reference["name"], ("HF_TOKEN",) if hub else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        for inner in value.values():
            yield from _secret_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _secret_keys(inner)


def _unfinished(found: View, now: datetime, said: Explanation) -> None:
    """Say what an object does, why it waits, and what comes next."""
    age = (now - found.created).total_seconds()
    retry = (found.metadata.get("annotations") or {}).get(RETRY_ANNOTATION)
    if found.metadata.get("deletionTimestamp"):
        said.now.append(f"It was deleted; finalizers {', '.join(found.metadata.get('finalizers') or ())} keep it.")
    elif retry and found.phase == Phase.FAILED:
        said.now.append("A retry was requested; the operator has not started it yet.")
    elif found.status.get("observedGeneration", -1) == -1:
        said.now.append(f"The operator has not seen it yet; it was created {duration_text(age)} ago.")
        if age > UNSEEN_SECONDS:
            said.why.append("No operator has handled it, so the operator is probably not running.")
            said.commands.append(f"tunery -n {found.metadata['namespace']} doctor")
        return
    else:
        texts = _SERVER_NOW if found.kind is Kind.ADAPTERSERVER else _NOW
        said.now += [texts[found.phase]] if found.phase in texts else []
    waits = blocker(found)
    if waits is not None:
        said.why.append(waits.reason + (f": {waits.message}" if waits.message else ""))
        said.fix += [waits.hint] if waits.hint else []
        said.commands += _secrets(found, waits.reason)
    said.next += _next(found)


def _next(found: View) -> Iterator[str]:
    """Yield what comes next, if nothing blocks the object."""
    works = (Phase.STARTING, Phase.DOWNLOADING, Phase.MERGING, Phase.ANSWERING, Phase.UPLOADING)
    text = _NEXT.get(found.kind, {}).get(found.phase)
    if text is None and found.phase in works and found.kind is not Kind.ADAPTERSERVER:
        text = _PUBLISHES
    if text is not None:
        yield text.format(output=found.at("spec.output.uri"), trials=found.spec.get("maxTrials"))


def _job(found: View, said: Explanation) -> None:
    """Add the progress, findings, warnings and attempts of an object that runs Jobs."""
    if not found.finished:
        said.now += [", ".join(parts) + "." for parts in [progress(found)] if parts]
        history = [each for each in found.status.get("attemptHistory") or () if each.get("endTime")]
        if history:
            said.now.append(f"Attempt {found.status.get('attempts')}; {attempt(history[-1])}.")
    said.now += [f"{finding(each).text}." for each in found.status.get("findings") or ()]
    said.now += [f"data: {text}" for text in found.at("status.dataset.warnings") or ()]
    if found.status.get("errors"):
        said.now.append(
            f"{found.status['errors']} lines failed; spec.maxErrors allows {found.spec.get('maxErrors', 0)}."
        )


def _sweep(found: View, said: Explanation) -> None:
    """Add the best trial, and the trials that failed."""
    said.now += [", ".join(parts) + "." for parts in [progress(found)] if parts and not found.finished]
    best = found.status.get("best")
    if best:
        values = ", ".join(f"{path}={value}" for path, value in (best.get("parameters") or {}).items())
        said.now.append(f"The best trial so far is {best['name']} ({values}): {improvement(found)}.")
    lost = [row for row in rows(found) if row["state"] in (TrialState.FAILED, TrialState.INFEASIBLE)]
    for row in lost[-SHOWN:]:
        said.now.append(f"Trial {row['name']} is {row['state']}: {row.get('reason', '')} {row.get('why', '')}".rstrip())
    if found.status.get("endReason") and not found.finished:
        said.next[:] = [f"It creates no more trials ({found.status['endReason']}) and publishes the best adapter."]
    if lost and not found.finished:
        said.commands.append(f"tunery -n {found.metadata['namespace']} explain lorajob/{lost[-1]['name']}")


def _server(found: View, said: Explanation) -> None:
    """Add the replicas and adapters of a server that do not work."""
    said.now += [", ".join(parts) + "." for parts in [progress(found)] if parts]
    said.now += [f"It answers at {found.status['url']}."] if found.status.get("readyReplicas") else []
    if found.phase == ServerPhase.STOPPED:
        said.commands.append(f"kubectl scale adapterserver {found.name} -n {found.metadata['namespace']} --replicas=1")
    for each in (found.status.get("replicaStatuses") or ())[:SHOWN]:
        if each.get("reason"):
            said.why.append(f"Replica {each['pod']}: {each['reason']}: {each.get('message', '')}")
    blocked = [each for each in found.status.get("adapters") or () if each.get("reason")]
    for each in blocked[:SHOWN]:
        said.why.append(f"Adapter {each['name']} is {each['state']}: {each['reason']}: {each.get('message', '')}")
        said.fix += [each["hint"]] if each.get("hint") else []
    for each in (found.status.get("skipped") or ())[:SHOWN]:
        said.why.append(f"{each['source']} is not served: {each['reason']}")
    said.fix = list(dict.fromkeys(said.fix))


def input_states(cluster: Cluster, found: View) -> list[str]:
    """Return the state of each object that a spec names."""
    from tunery.cluster import resource_of

    states = []
    for reference in inputs(found) if not found.finished else ():
        kind, _, name = reference.partition("/")
        wanted = next(each for each in Kind if each.singular == kind)
        try:
            other = view(cluster.get(resource_of(wanted), name), wanted)
        except NotFound:
            states.append(f"{reference} does not exist.")
        except TuneryError as error:
            states.append(f"{reference} can't be read: {error.reason}.")
        else:
            states.append(f"{reference} is {', '.join([other.phase, *progress(other)[:1]])}.")
    return states


def warnings(cluster: Cluster, found: View) -> list[str]:
    """Return the latest warning events about the pod of an object, or about its Job while it has no pod."""
    from tunery.cluster import EVENTS

    events: dict[str, Json] = {}
    try:
        name = _without_progress(cluster, found)
        for each in cluster.items(EVENTS, field=f"involvedObject.name={name},type=Warning")[0] if name else ():
            events[each["reason"]] = max(events.get(each["reason"], each), each, key=_event_time)
    except TuneryError as error:
        return [f"Events can't be listed: {error.reason}."]
    waits = blocker(found)
    latest = sorted(events.items(), key=lambda item: _event_time(item[1]))[-SHOWN:]
    texts = [(reason, each.get("message", "")) for reason, each in latest]
    return [f"Event {reason} of {name}: {text}" for reason, text in texts if waits is None or text not in waits.message]


def _without_progress(cluster: Cluster, found: View) -> str | None:
    """Return the name of the pod that has not started, or of the Job that has no pod; None if there is neither."""
    from tunery.cluster import PODS

    pod, job = found.status.get("podName"), found.status.get("jobName")
    if found.phase not in (Phase.PENDING, Phase.PREFLIGHT, Phase.STARTING):
        return None
    try:
        return pod if pod and cluster.get(PODS, pod)["status"].get("phase") == "Pending" else None if pod else job
    except NotFound:
        return job


def _event_time(event: Json) -> datetime:
    return parse_time(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])
