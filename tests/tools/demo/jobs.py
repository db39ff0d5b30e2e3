"""The LoRAJobs and sweeps of the demos: applied or joined, and followed to their end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kit.jobs import FINAL, Job
from tools.demo.telling import Hold, console, going_on

TIMEOUT_SECONDS = 900
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_ENDING = frozenset({"Stopping", "Suspending", "Suspended"})


class Table(NamedTuple):
    """What is shown of an object while it is followed."""

    columns: tuple[str, ...]
    row: Callable[[dict[str, Any]], tuple[str, ...]]
    """What stands in a line, of a status."""
    below: Callable[[dict[str, Any]], None] = lambda _: None
    """Prints what is new in a status beside its line."""


def begin(job: Job) -> None:
    """Apply a job, unless one of an earlier demo still runs with the same spec; any other that is there is replaced."""
    found = job.kubectl.get(job.kind, job.name, job.namespace)
    if found is not None and _goes_on(found, job.manifest):
        console.print(
            f"  {job.manifest['kind']} {job.name} of an earlier run is still at work with the same spec: it is joined"
        )
        return
    if found is not None:
        phase = found.get("status", {}).get("phase", "Pending")
        console.print(
            f"  {job.manifest['kind']} {job.name} of an earlier run ({phase}) is deleted, and a new one takes its place"
        )
        # A server may choose by them what it serves, as that of `make demo-serving` does.
        metadata = job.manifest["metadata"]
        metadata["labels"] = {**found["metadata"].get("labels", {}), **metadata.get("labels", {})}
        job.kubectl.delete(job.kind, job.name, job.namespace)
    job.apply()


def _goes_on(found: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Tell whether an object that is there comes of the same spec, and nothing has ended it or will."""
    metadata, phase = found["metadata"], found.get("status", {}).get("phase", "Pending")
    applied = json.loads(metadata.get("annotations", {}).get(_APPLIED, "{}"))
    same = applied.get("spec") == manifest["spec"]
    return same and phase not in FINAL | _ENDING and "deletionTimestamp" not in metadata


def row(status: dict[str, Any]) -> tuple[str, ...]:
    """Return what stands in a line of the table; a job that nobody has looked at yet is Pending."""
    progress, metrics = status.get("progress", {}), status.get("metrics", {})
    cells = (
        status.get("phase", "Pending"), progress.get("percentText"), metrics.get("loss"), metrics.get("evalLoss"),
        progress.get("eta"),
    )  # fmt: skip
    return tuple(str(cell) if cell else "" for cell in cells)


TRAINING = Table(("phase", "progress", "loss", "eval loss", "eta"), row)


def follow(job: Job, seconds: float = TIMEOUT_SECONDS, table: Table = TRAINING) -> None:
    """Print a line whenever what `kubectl get` shows of a job has changed, until it has succeeded.

    Raises AssertionError where it has ended otherwise, TimeoutError whose last lines are what holds it up and that it
    goes on.
    """
    console.print("  " + "".join(f"{name.upper():<14}" for name in table.columns))
    shown: tuple[str, ...] = ()
    hold = Hold()
    end = time.monotonic() + seconds
    with going_on(f"{job.kind}/{job.name}"):
        while time.monotonic() < end:
            status = job.status
            table.below(status)
            cells = table.row(status)
            if cells != shown:
                console.print("  " + "".join(f"{cell:<14}" for cell in cells), markup=False)
                shown = cells
            if status.get("phase") == "Succeeded":
                return
            if status.get("phase") in FINAL:
                raise AssertionError(_why(job, status))
            hold.tell(status, job.kubectl)
            time.sleep(1)
    looks = f"kubectl get {job.kind} {job.name} -n {job.namespace} -w"
    text = f"{job.manifest['kind']} {job.name} has not ended within {seconds:.0f} s"
    text += f"; it goes on, and the same command looks on again, as does {looks}"
    raise TimeoutError(hold.with_story(job.story(), text))


def _why(job: Job, status: dict[str, Any]) -> str:
    failure = status.get("failure")
    if failure is None:
        return f"{job.manifest['kind']} {job.name} was stopped"
    return f"{failure['reason']}: {failure.get('message')}\n{failure.get('hint')}"
