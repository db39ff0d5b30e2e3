"""Provide `tunery logs`: the log of an object's pod, found without label selectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from tunery.app import App
from tunery.describe import attempt as ending
from tunery.describe import result, rows
from tunery.errors import ExitCode, NotFound, TuneryError, Unavailable, UsageError
from tunery.objects import View, find, view
from tunery.text import printable
from tunery_api.kinds import Kind
from tunery_api.names import OWNER_UID_LABEL, ROLE_LABEL, container_name
from tunery_api.runspec import Task

if TYPE_CHECKING:
    from tunery.cluster import Cluster, Json

POLL_SECONDS: Final = 1.0
"""How often the pods are listed while the next one is awaited."""
_INDEX: Final = "batch.kubernetes.io/job-completion-index"
_ENGINE: Final = "engine"
"""The container of a server that runs vLLM; the other one is `gateway`."""


@dataclass(frozen=True)
class Choice:
    """Which log is wanted."""

    preflight: bool = False
    attempt: int | None = None
    index: int | None = None
    container: str | None = None

    def container_of(self, found: View) -> str:
        """Return the name of the container."""
        if self.container:
            return self.container
        return _ENGINE if found.kind is Kind.ADAPTERSERVER else container_name(found.kind.singular)


@click.command("logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Follow the log, and the logs of later pods, to the object's end.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="The Nth attempt; default: the latest.")
@click.option("--preflight", is_flag=True, help="The log of the preflight pod.")
@click.option(
    "--index", type=click.IntRange(0), metavar="I", help="The Ith pod of a job with several nodes; default: 0."
)
@click.option("-c", "--container", metavar="NAME", help="For an AdapterServer: engine (default) or gateway.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.pass_obj
def logs_command(app: App, /, name: str, follow: bool, tail: int | None, **options: Any) -> ExitCode:
    """Print the log of an object's latest pod.

    If the pods are gone, their logs are, too: it then prints what the status has kept, and the exit code is 1.
    """
    found, choice = find(app.cluster, name), Choice(**options)
    if choice.attempt is not None and (choice.preflight or follow):
        raise UsageError("--attempt excludes --preflight and --follow", "Omit one of them")
    cluster = app.cluster.within(found.metadata["namespace"])
    if follow:
        _follow(app, cluster, found, choice, tail)
        return ExitCode.SUCCEEDED
    pod = choose(found, _pods(cluster, found), choice)
    if pod is None:
        return _gone(app, found, choice)
    container = choice.container_of(found)
    if not _has_started(_container(pod, container)):
        remedy = f"See why: tunery -n {cluster.namespace} explain {found.reference}"
        raise TuneryError(
            "NotStarted", f"container {container} of pod {pod['metadata']['name']} has not started", remedy
        )
    for _, line in cluster.logs(pod["metadata"]["name"], container, tail=tail):
        _show(app, pod, line)
    return ExitCode.SUCCEEDED


def choose(found: View, pods: Sequence[Json], choice: Choice) -> Json | None:
    """Return the pod that is wanted, the latest one by default; None if it is gone or does not exist yet.

    Before the main pod of an object exists, that of its preflight is returned.
    """
    if choice.attempt is not None:
        entry = history_entry(found, choice.attempt, choice.index) or {}
        return next((pod for pod in pods if pod["metadata"]["uid"] == entry.get("uid")), None)
    checks = [pod for pod in pods if _label(pod, ROLE_LABEL) == Task.PREFLIGHT]
    main = [pod for pod in pods if _label(pod, ROLE_LABEL) != Task.PREFLIGHT]
    if main and not choice.preflight:
        indexed = [pod for pod in main if int(_label(pod, _INDEX) or 0) == (choice.index or 0)]
        return indexed[-1] if indexed else None
    begun = bool(found.status.get("attempts")) and not choice.preflight
    return checks[-1] if checks and not begun else None


def history_entry(found: View, number: int, index: int | None = None) -> Json | None:
    """Return the entry of an attempt; None if the history no longer has it. Raises UsageError if there was none."""
    count, history = found.status.get("attempts") or 0, found.status.get("attemptHistory") or []
    if number > count:
        raise UsageError(f"{found.reference} has had {count} attempts, so none is number {number}", "Omit --attempt")
    if any("attempt" in each for each in history):
        wanted = (number, index or 0)
        return next((each for each in history if (each.get("attempt"), each.get("index", 0)) == wanted), None)
    position = len(history) - 1 - (count - number)
    return history[position] if position >= 0 else None


def _label(pod: Json, name: str) -> str | None:
    label: str | None = (pod["metadata"].get("labels") or {}).get(name)
    return label


def _pods(cluster: Cluster, found: View) -> list[Json]:
    """Return the pods of an object, oldest first, without one that serves its results."""
    from tunery.cluster import PODS

    selector = f"{OWNER_UID_LABEL}={found.metadata['uid']},{ROLE_LABEL}!={Task.FETCH.value}"
    pods, _ = cluster.items(PODS, selector=selector)
    return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))


def _show(app: App, pod: Json, line: str) -> None:
    text = printable(click.unstyle(line))
    if app.is_json:
        app.print_json({"pod": pod["metadata"]["name"], "line": text})
    else:
        click.echo(text)


def _gone(app: App, found: View, choice: Choice) -> ExitCode:
    """Print what the status has kept of pods that are gone."""
    said = list(_kept(found, choice))
    if app.is_json:
        app.print_json({"object": found.reference, "pod": None, "status": said})
    for line in [] if app.is_json else said:
        app.print(line)
    return ExitCode.FAILED


def _kept(found: View, choice: Choice) -> Iterator[str]:
    """Yield why an object has no log, and what its status tells instead."""
    where = f"tunery -n {found.metadata['namespace']}"
    if choice.attempt is not None and (entry := history_entry(found, choice.attempt, choice.index)) is not None:
        yield f"{found.reference}: the log is gone; {ending(entry)}"
    elif not found.finished and not found.status.get("attemptHistory"):
        yield f"{found.reference} is {found.phase} and has no such pod now. Why: {where} explain {found.reference}"
    else:
        yield f"{found.reference}: its pods are gone, and their logs with them. From its status:"
        yield from (f"  {ending(each)}" for each in (found.status.get("attemptHistory") or [])[-3:])
    if found.kind is Kind.LORASWEEP:
        yield from (f"  {where} logs lorajob/{row['name']}" for row in rows(found)[-3:])
    if found.finished:
        yield from (line.text for line in result(found))
    facts = (found.status.get("failure") or {}).get("facts") or {}
    yield from (f"  {key}: {value}" for key, value in facts.items())


def _follow(app: App, cluster: Cluster, found: View, choice: Choice, tail: int | None) -> None:
    """Print the log of each pod, one after the other, until the object has finished."""
    from tunery.follow import Outage

    shown: set[tuple[str, int]] = set()
    container = choice.container_of(found)
    outage, told = Outage(), False
    while True:
        try:
            found = _again(cluster, found)
            # Whether it has finished is read before the pods, so that the last pod is not missed.
            pod = choose(found, _pods(cluster, found), choice)
            outage.end()
        except Unavailable as error:
            time.sleep(outage.pause(error))
            continue
        if pod is not None and _run_of(pod, container) not in shown:
            if _print_following(app, cluster, pod, container, tail):
                shown.add(_run_of(pod, container))
                continue
        elif found.finished or (choice.preflight and shown):
            if not shown:
                _gone(app, found, choice)
            return
        elif not told and not shown and not app.is_json:
            told = True
            click.echo(f"{found.reference} is {found.phase}; its log follows once its pod runs", err=True)
        time.sleep(POLL_SECONDS)


def _again(cluster: Cluster, found: View) -> View:
    """Return the object as it is now. Raises TuneryError if it was deleted."""
    from tunery.cluster import resource_of

    try:
        current = view(cluster.get(resource_of(found.kind), found.name), found.kind)
    except NotFound:
        current = None
    if current is None or current.metadata["uid"] != found.metadata["uid"]:
        raise TuneryError("Deleted", f"{found.reference} was deleted", "List what there is: tunery list")
    return current


def _print_following(app: App, cluster: Cluster, pod: Json, container: str, tail: int | None) -> bool:
    """Print the log of a pod until its container has ended; return False if the container has not started yet.

    If the connection breaks, it continues after the last line.
    """
    from tunery.cluster import PODS
    from tunery.follow import Outage

    name, last, outage = pod["metadata"]["name"], "", Outage()
    while True:
        try:
            state = _container(cluster.get(PODS, name), container)
            outage.end()
            if not _has_started(state):
                return False
            seen = last
            for stamp, line in cluster.logs(name, container, follow=True, tail=tail, since=last or None):
                # The API server returns the whole second of `since` again.
                if stamp > seen:
                    last = stamp
                    _show(app, pod, line)
            if "terminated" in _container(cluster.get(PODS, name), container):
                return True
        except NotFound:
            return True
        except Unavailable as error:
            time.sleep(outage.pause(error))
        time.sleep(POLL_SECONDS)
        tail = None


def _has_started(state: Json) -> bool:
    return "running" in state or "terminated" in state


def _run_of(pod: Json, container: str) -> tuple[str, int]:
    """Return what identifies one run of a container: the UID of its pod and its restarts."""
    return pod["metadata"]["uid"], _status_of(pod, container).get("restartCount", 0)


def _status_of(pod: Json, container: str) -> Json:
    statuses = [*(pod["status"].get("initContainerStatuses") or ()), *(pod["status"].get("containerStatuses") or ())]
    return next((each for each in statuses if each["name"] == container), {})


def _container(pod: Json, name: str) -> Json:
    """Return the state of a container, of its last run if it is restarted; empty before the kubelet has reported it."""
    status = _status_of(pod, name)
    state: Json = status.get("state") or {}
    if "waiting" in state and status.get("lastState"):
        state = status["lastState"]
    # The container of a pod that was evicted before it started never starts.
    return state or ({"terminated": {}} if pod["status"].get("phase") in ("Succeeded", "Failed") else {})
