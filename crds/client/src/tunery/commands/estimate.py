"""Provide `tunery estimate`: memory, disk, rows and steps of a LoRAJob by its preflight, without training."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from tunery.app import App
from tunery.commands.submit import read_text
from tunery.errors import ExitCode, NotFound, TuneryError, Unavailable, UsageError
from tunery.text import bytes_text, duration_text, printable

if TYPE_CHECKING:
    from tunery.cluster import Cluster, Json
    from tunery.manifest import Manifest
    from tunery.objects import View

_TTL_SECONDS: Final = 3600
"""After which the operator deletes a finished copy that this program could not delete."""
_DELETE_ATTEMPTS: Final = 3


@click.command("estimate")
@click.option(
    "-f", "--filename", "path", required=True, metavar="FILE", help="The manifest of a LoRAJob, or - for stdin."
)
@click.pass_obj
def estimate_command(app: App, /, path: str) -> int:
    """Estimate memory, disk, rows, steps and time of a LoRAJob without training.

    A copy of it with `preflight: Only` runs on CPU, and is deleted in any case. The time comes from finished jobs of
    the same base model, method and devices in the namespace.
    """
    from tunery.objects import list_objects
    from tunery_api.kinds import Kind

    manifest = _only_lorajob(app, path)
    cluster = app.cluster.within(manifest.namespace)
    if not cluster.can("delete", Kind.LORAJOB.plural):
        message = f"you may not delete LoRAJobs in namespace {cluster.namespace}, so the copy would remain"
        raise TuneryError(
            "Forbidden", message, f"Ask a cluster admin for it; details: tunery doctor -n {cluster.namespace}"
        )
    ended = run_preflight(cluster, preflight_copy(manifest.body, cluster.namespace), _waiting())
    times = similar_times(ended, list_objects(cluster, [Kind.LORAJOB]))
    _show(app, manifest.reference, ended, times)
    return _end(ended)


def _only_lorajob(app: App, path: str) -> Manifest:
    """Return the LoRAJob of a file. Raises UsageError if there is none or several."""
    from tunery.manifest import parse_documents, validate

    text, source = read_text(path)
    documents = parse_documents(text, source)
    jobs = [each for each in documents if isinstance(each, dict) and each.get("kind") == "LoRAJob"]
    if not jobs:
        validate(documents, source)  # raises if a kind is misspelled
    if len(jobs) != 1:
        raise UsageError(f"{source} has {len(jobs)} LoRAJobs", "Name a file with one LoRAJob")
    return validate(jobs, source, app.namespace)[0]


def preflight_copy(body: Json, namespace: str) -> Json:
    """Return the manifest of a copy that runs its preflight only, under a name of its own."""
    from tunery.commands.verbs import copy_of
    from tunery.manifest import unique_name
    from tunery.objects import View

    spec = {name: value for name, value in copy.deepcopy(body["spec"]).items() if name not in ("stop", "suspend")}
    spec |= {"preflight": "Only", "ttlSecondsAfterFinished": _TTL_SECONDS}
    metadata = body["metadata"] | {"namespace": namespace}
    base = metadata.get("name") or metadata["generateName"]
    return copy_of(View(body | {"metadata": metadata}), unique_name(f"estimate-{base}"), spec)


def run_preflight(cluster: Cluster, body: Json, show: Callable[[View], None]) -> View:
    """Create a copy, return its last state, and delete it in any case: after an error, SIGINT and SIGTERM, too."""
    from tunery.cluster import resource_of
    from tunery.follow import follow
    from tunery.objects import view
    from tunery_api.kinds import Kind

    resource = resource_of(Kind.LORAJOB)
    with _Signals() as signals:
        try:
            current = created = view(cluster.create(resource, body), Kind.LORAJOB)
        except Unavailable:
            # The request broke, and the API server may have created it.
            _delete(cluster, body["metadata"]["name"])
            raise
        try:
            signals.deliver()
            for current in follow(cluster, created):
                show(current)
            return current
        finally:
            signals.hold()
            _delete(cluster, created.name)


def _delete(cluster: Cluster, name: str) -> None:
    """Delete the copy; if that fails, print the command that does it."""
    from tunery.cluster import resource_of
    from tunery_api.kinds import Kind

    for attempt in range(1, _DELETE_ATTEMPTS + 1):
        try:
            cluster.delete(resource_of(Kind.LORAJOB), name)
        except NotFound:
            return
        except TuneryError as error:
            if attempt < _DELETE_ATTEMPTS:
                time.sleep(attempt)
                continue
            click.echo(printable(f"The copy lorajob/{name} could not be deleted: {error.message}"), err=True)
            click.echo(f"  kubectl delete lorajob {name} -n {cluster.namespace}", err=True)
        return


class _Signals:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, and holds them back while the copy is created or deleted."""

    def __init__(self) -> None:
        self._held, self._received = True, False

    def __enter__(self) -> _Signals:
        self._previous = {each: signal.signal(each, self._handle) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _handle(self, _: int, __: FrameType | None) -> None:
        self._received = True
        if not self._held:
            raise KeyboardInterrupt

    def deliver(self) -> None:
        """Raise KeyboardInterrupt at a signal from now on, and for one that was held back."""
        self._held = False
        if self._received:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Hold signals back from now on."""
        self._held = True


def _waiting() -> Callable[[View], None]:
    """Return a function that prints to stderr what the copy does or waits for, whenever that changes."""
    from tunery.describe import blocker

    shown = ""

    def show(view: View) -> None:
        nonlocal shown
        block = blocker(view)
        text = f"{view.phase}: {block.reason}: {block.message}" if block else view.phase
        if text != shown and not view.finished:
            click.echo(printable(f"{view.reference}: {text}"), err=True)
            if block and block.hint:
                click.echo(printable(f"  {block.hint}"), err=True)
        shown = text

    return show


class Time(NamedTuple):
    """How long a job takes on a device, by finished jobs."""

    device: str
    seconds: float
    jobs: int


def similar_times(ended: View, jobs: Iterable[View]) -> list[Time]:
    """Return the time by finished jobs of the same base model, method and devices, for each device that these had."""
    tokens, wanted = ended.at("status.estimate.tokens"), _setup(ended)
    if not tokens or wanted[1] is None:
        return []
    rates: dict[str, list[float]] = {}
    for job in jobs:
        done = _trained_tokens(job)
        if done and job.status.get("runSeconds") and _setup(job) == wanted:
            device = job.at("status.resolved.device") or "the same device"
            rates.setdefault(device, []).append(job.status["runSeconds"] / done)
    return [Time(device, median(found) * tokens, len(found)) for device, found in sorted(rates.items())]


def _setup(view: View) -> tuple[Any, ...]:
    """Return what two jobs must have in common to compare their speed."""
    resources = view.spec.get("resources") or {}
    gpus = resources.get("gpus", 1)
    devices = (gpus, resources.get("nodes", 1), resources.get("gpuResource", "nvidia.com/gpu") if gpus else None)
    return view.at("spec.model.uri"), view.at("status.resolved.method"), devices


def _trained_tokens(job: View) -> float:
    """Return the tokens that a job has trained on; 0 if it has not succeeded, or if that is unknown."""
    tokens, steps = job.at("status.estimate.tokens"), job.at("status.estimate.steps")
    if job.phase != "Succeeded" or not tokens or not steps:
        return 0.0
    return float(tokens * (job.at("status.progress.step") or steps) / steps)


def _show(app: App, reference: str, ended: View, times: list[Time]) -> None:
    """Print the estimate; what is unknown is called unknown."""
    if app.is_json:
        status = {name: ended.status.get(name) for name in ("memory", "disk", "dataset", "estimate", "failure")}
        method = ended.at("status.resolved.method")
        app.print_json({"object": reference, "method": method, **status, "time": [each._asdict() for each in times]})
        return
    for label, text in _lines(ended, times):
        app.print(f"{label:<8} {text or 'unknown'}")


def _lines(ended: View, times: list[Time]) -> Iterator[tuple[str, str]]:
    """Yield each label with its text; "" is unknown."""

    def size(path: str) -> str:
        found = ended.at(path)
        return bytes_text(found) if found else ""

    def count(path: str) -> str:
        found = ended.at(path)
        return "" if found is None else f"{found:,}"

    memory, device = size("status.memory.estimateBytes"), size("status.memory.availableBytes")
    batch, invalid = ended.at("status.memory.suggestedBatchSize"), ended.at("status.dataset.invalidRows")
    fits = f"; the largest batch size that fits is {batch}" if batch else ""
    yield "Method", ended.at("status.resolved.method") or ""
    yield "Memory", memory and f"{memory} of {device or 'an unknown device'}{fits}"
    yield "Disk", size("status.disk.estimateBytes")
    yield "Rows", count("status.dataset.rows") + (f", and {invalid:,} invalid ones" if invalid else "")
    yield "Steps", count("status.estimate.steps")
    yield "Tokens", count("status.estimate.tokens")
    for each in times:
        jobs = "1 finished job" if each.jobs == 1 else f"{each.jobs} finished jobs"
        yield "Time", f"about {duration_text(each.seconds)} on {each.device}, by {jobs}"
    if not times:
        yield "Time", "unknown: no job of this base model, method and devices has finished here"


def _end(ended: View) -> ExitCode:
    """Return the exit code of an estimate. Raises TuneryError with the failure of the preflight."""
    from tunery_api.failures import Failure, render_hint

    if ended.phase == "Succeeded":
        return ExitCode.SUCCEEDED
    found = ended.status.get("failure") or {
        "reason": ended.status.get("reason") or ended.phase,
        "message": "no details",
    }
    failure = Failure.model_validate({"reason": found["reason"], "message": found["message"]} | _fixes(found))
    raise TuneryError(str(failure.reason), failure.message, render_hint(failure, None))


def _fixes(failure: Json) -> Json:
    return {name: failure[name] for name in ("remedies", "facts") if failure.get(name)}
