"""Provide the Python client: Client connects to a cluster, Job is one object in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tunery.builder import lorajob
from tunery.cluster import Cluster, Json, resource_of
from tunery.errors import Stopped, TuneryError, UsageError
from tunery.follow import follow
from tunery.manifest import create, parse_documents, validate, with_settings
from tunery.objects import RUNNABLE, View, find, list_objects, parse_duration, patch, view
from tunery.text import encodable
from tunery.watching import Lines, LiveLine, show
from tunery_api.kinds import Kind
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.status import Phase


class Client:
    """A connection to one namespace of a cluster, found as kubectl finds it, or else that of the pod it runs in."""

    def __init__(
        self, *, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None
    ) -> None:
        """Read the kubeconfig. Raises TuneryError `NoCluster` if there is none, and no pod's ServiceAccount."""
        self.cluster = Cluster.load(kubeconfig, context, namespace)

    @property
    def namespace(self) -> str:
        """The namespace."""
        return self.cluster.namespace

    def submit(
        self,
        manifest: Mapping[str, Any] | str | Path | None = None,
        /,
        *,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """Create an object and return it.

        Either pass the manifest of any kind, as a mapping or as the path of a file, or options for a LoRAJob: model and
        data are required; method, preset, output, secret, name and gpus are those of `tunery train`. `settings` are
        fields of the spec by path, such as {"training.epochs": 3}.

        Raises InvalidManifest with every error before anything is sent, Conflict if the object exists, TuneryError.
        """
        body, source = (_job_of(options), "the manifest") if manifest is None else _read(manifest)
        if manifest is not None and options:
            raise UsageError(f"a manifest and {', '.join(options)} exclude each other", "Use settings to change fields")
        if settings:
            assignments = [f"{path}={json.dumps(value)}" for path, value in settings.items()]
            body = {**body, "spec": with_settings(body.get("spec") or {}, assignments)}
        return Job(self.cluster, next(create(self.cluster, validate([body], source))))

    def get(self, name: str) -> Job:
        """Return the object that `NAME` or `KIND/NAME` names. Raises NotFound, UsageError if the name is ambiguous."""
        return Job(self.cluster, find(self.cluster, name))

    def list(self, selector: str = "") -> list[Job]:
        """Return the objects of the namespace, oldest first, or those that a label selector matches."""
        return [Job(self.cluster, each) for each in list_objects(self.cluster, selector=selector)]


_OPTIONS = frozenset({"model", "data", "method", "preset", "output", "secret", "name", "gpus"})


def _job_of(options: Mapping[str, Any]) -> Json:
    """Return the LoRAJob of options. Raises UsageError."""
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        remedy = f'Use one of {", ".join(sorted(_OPTIONS))}, or a field: settings={{"training.epochs": 3}}'
        raise UsageError(f"submit has no option {', '.join(unknown)}", remedy)
    missing = [name for name in ("model", "data") if not options.get(name)]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given", "Or pass a manifest: submit('job.yaml')")
    return lorajob(options)


def _read(manifest: Mapping[str, Any] | str | Path) -> tuple[Json, str]:
    """Return the only document of a manifest, and how errors name it. Raises UsageError."""
    if isinstance(manifest, Mapping):
        return dict(manifest), "the manifest"
    try:
        documents = parse_documents(Path(manifest).read_text("utf-8-sig"), str(manifest))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{manifest} can't be read: {error}", "Name a readable file in UTF-8") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UsageError(f"{manifest} has {len(documents)} documents", "Pass a file with one, or one mapping each time")
    return documents[0], str(manifest)


class Job:
    """One object of a cluster: a LoRAJob, AdapterMerge, LoRASweep, BatchInference or AdapterServer."""

    def __init__(self, cluster: Cluster, found: View) -> None:
        self._cluster = cluster.within(found.metadata["namespace"])
        self._view = found

    def __repr__(self) -> str:
        return f"<Job {self._view.reference} {self._view.phase}>"

    @property
    def name(self) -> str:
        """The name."""
        return self._view.name

    @property
    def kind(self) -> str:
        """The kind, such as LoRAJob."""
        return self._view.kind.value

    @property
    def spec(self) -> Json:
        """The spec, read now."""
        return self.refresh()._view.spec

    @property
    def status(self) -> Json:
        """The status, read now; empty until the operator has seen the object."""
        return self.refresh()._view.status

    @property
    def phase(self) -> str:
        """The phase, read now, such as Training."""
        return self.refresh()._view.phase

    @property
    def curve(self) -> list[Json]:
        """The points of the loss curve, read now: each has step and loss or evalLoss, as numbers."""
        points = self.refresh()._view.at("status.curve.points") or []
        return [{key: value if key == "step" else float(value) for key, value in each.items()} for each in points]

    def refresh(self) -> Self:
        """Read the object again. Raises TuneryError `Deleted` if it is gone or another one has its name."""
        current = view(self._cluster.get(resource_of(self._view.kind), self.name), self._view.kind)
        if current.metadata["uid"] != self._view.metadata["uid"]:
            raise TuneryError("Deleted", f"{self._view.reference} was deleted, and another one of its name was created")
        self._view = current
        return self

    def watch(self, timeout: str | float | None = None) -> Self:
        """Show the progress until the object has finished: in a notebook in one cell, in a terminal in one line.

        Raises TimedOut after `timeout`, such as "2h" or a number of seconds; the object then continues.
        """
        states = self._states(timeout)
        if _in_notebook():
            from tunery.notebook import Cell

            show(states, Cell())
        elif sys.stdout.isatty():
            from rich.console import Console

            with LiveLine(Console(highlight=False, emoji=False)).running() as display:
                show(states, display)
        else:
            show(states, Lines(lambda text: print(encodable(text, sys.stdout.encoding))))
        return self

    def wait(self, timeout: str | float | None = None) -> Self:
        """Wait until the object has finished, however it ended; `raise_for_failure` tells.

        Raises TimedOut after `timeout`, such as "2h" or a number of seconds, and UsageError for a server, which never
        finishes.
        """
        if self._view.kind not in RUNNABLE:
            raise UsageError(f"{self._view.reference} never finishes", "Use watch, which ends when it is ready")
        for _ in self._states(timeout):
            pass
        return self

    def _states(self, timeout: str | float | None) -> Iterator[View]:
        seconds = parse_duration(timeout) if isinstance(timeout, str) else timeout
        for current in follow(self._cluster, self.refresh()._view, seconds):
            self._view = current
            yield current

    def raise_for_failure(self) -> Self:
        """Raise TuneryError with reason, message and remedy if the object has failed, Stopped if it was stopped."""
        current = self.refresh()._view
        if current.phase == Phase.FAILED and current.finished:
            failure = current.failure
            raise TuneryError(*failure) if failure else TuneryError("Failed", f"{current.reference} has failed")
        if current.phase == Phase.STOPPED and current.finished:
            raise Stopped(
                "Stopped", f"{current.reference} was stopped", "To run it again, submit it under another name"
            )
        return self

    def stop(self, reason: str = "stopped by the Python client") -> Self:
        """Stop a LoRAJob for good; it publishes the best weights of its latest checkpoint unless onStop is Discard."""
        if self._view.kind is not Kind.LORAJOB:
            raise UsageError(f"{self._view.reference}: only a LoRAJob can be stopped", "Use suspend to pause it")
        return self._change({"spec": {"stop": reason}})

    def suspend(self) -> Self:
        """Suspend the object; a LoRAJob saves a checkpoint first."""
        return self._change({"spec": {"suspend": True}})

    def resume(self) -> Self:
        """Resume the suspended object from its latest checkpoint."""
        return self._change({"spec": {"suspend": False}})

    def retry(self) -> Self:
        """Retry the failed object from its latest checkpoint. Raises UsageError if it has not failed."""
        if self.phase != Phase.FAILED or self._view.sweep is not None:
            why = "is a trial, which its sweep retries" if self._view.sweep else f"has not failed: {self._view.phase}"
            raise UsageError(f"{self._view.reference} {why}", "Read status['failure'], or run: tunery explain")
        return self._change({"metadata": {"annotations": {RETRY_ANNOTATION: datetime.now(UTC).isoformat()}}})

    def _change(self, change: Json) -> Self:
        """Send a merge patch for this very object. Raises UsageError for a server, TuneryError."""
        if self._view.kind not in RUNNABLE:
            raise UsageError(f"{self._view.reference} is a server", "Scale it by kubectl scale, or delete it")
        try:
            self._view = patch(self._cluster, self._view, change)
        except TuneryError:
            # The API server says of an object with another UID only that the UID is immutable.
            self.refresh()
            raise
        return self


def _in_notebook() -> bool:
    """Return whether IPython runs this in a notebook, which has a kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
