"""Provide `tunery stop`, `suspend`, `resume`, `retry` and `resubmit`: they change one object and wait for nothing."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from tunery.app import App
from tunery.errors import Conflict, TuneryError, UsageError

if TYPE_CHECKING:
    from tunery.cluster import Json
    from tunery.objects import View

_PUBLISH: Final = "Publish"
_DISCARD: Final = "Discard"
_MANAGED_LABELS: Final = ("app.kubernetes.io/managed-by", "app.kubernetes.io/instance")
"""Labels by which a tool owns an object: with them, Argo CD or Helm would delete a copy."""
_MANAGED_PREFIXES: Final = ("tunery.dev/", "helm.", "argocd.argoproj.io/", "kustomize.toolkit.fluxcd.io/")
_MAX_COPIES: Final = 1000


class NotPossible(TuneryError):
    """The object is in no state for this change; nothing was changed."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__("NotPossible", message, remedy)


@click.command("stop")
@click.argument("name")
@click.option("--reason", default="stopped by tunery stop", help="Why; the status and the model card show it.")
@click.option("--discard", is_flag=True, help="Publish nothing: set spec.onStop to Discard, too.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.pass_obj
def stop_command(app: App, /, name: str, reason: str, discard: bool, yes: bool) -> None:
    """Stop a LoRAJob for good, or let a LoRASweep create no more trials.

    A LoRAJob publishes the best weights of its latest checkpoint, unless spec.onStop is Discard. A LoRASweep publishes
    its best trial once the trials that run have ended. To pause an object, use suspend.
    """
    view = _find(app, name)
    if view.kind.value == "LoRASweep":
        _stop_sweep(app, view)
        return
    if view.kind.value != "LoRAJob":
        raise UsageError(f"{view.reference}: only a LoRAJob or a LoRASweep can be stopped", _other_end(app, view))
    if view.spec.get("stop"):
        _show(app, view, f"is stopped already: {view.spec['stop']}")
        return
    if view.phase in ("Succeeded", "Stopped"):
        raise NotPossible(f"{view.reference} has finished with phase {view.phase}: a stop does nothing")
    lost = _lost_by_stop(view, discard)
    asks = bool(lost) and not yes and sys.stdin.isatty()
    if asks and not click.confirm(f"{view.reference}: {lost}. Stop it for good?", err=True):
        raise NotPossible(f"{view.reference} is not stopped: you did not confirm it")
    spec = {"stop": reason} | ({"onStop": _DISCARD} if discard else {})
    text = lost or "the best weights of its latest checkpoint will be published"
    if view.phase == "Failed":
        end = f"has failed; once you retry it, it is stopped, and {text}: tunery retry {view.reference}{_where(app)}"
    else:
        end = f"will be stopped; {text}. To follow it: tunery watch {view.reference}{_where(app)}"
    _change(app, view, {"spec": spec}, end)


def _lost_by_stop(view: View, discard: bool) -> str:
    """Return why a stop of a LoRAJob publishes nothing; empty if it publishes an adapter."""
    if view.sweep:
        return "a trial that is stopped publishes nothing"
    if discard or view.spec.get("onStop", _PUBLISH) == _DISCARD:
        return "onStop is Discard, so nothing will be published"
    return "" if view.at("status.checkpoint") else "no checkpoint is reported yet, so nothing may be published"


def _stop_sweep(app: App, view: View) -> None:
    """Let a sweep create no more trials, by the lowest maxTrials."""
    if view.finished:
        raise NotPossible(f"{view.reference} has finished with phase {view.phase}: a stop does nothing")
    if not view.at("status.counts.created"):
        raise NotPossible(
            f"{view.reference} has no trial yet", f"Delete it: kubectl delete {view.reference}{_where(app)}"
        )
    text = "will create no more trials, and publishes the best when those that run have ended"
    _change(app, view, {"spec": {"maxTrials": 1}}, f"{text}. To follow it: tunery watch {view.reference}{_where(app)}")


def _other_end(app: App, view: View) -> str:
    """Return the command that ends an object of a kind without a stop."""
    if view.kind.value == "AdapterServer":
        return f"To scale it to zero: kubectl scale {view.reference} --replicas=0{_where(app)}"
    return f"To pause it: tunery suspend {view.reference}. To end it: kubectl delete {view.reference}{_where(app)}"


@click.command("suspend")
@click.argument("name")
@click.pass_obj
def suspend_command(app: App, /, name: str) -> None:
    """Suspend an object: its pods end, a LoRAJob after it has saved a checkpoint."""
    view = _runnable(app, name)
    if view.finished:
        raise NotPossible(f"{view.reference} has finished with phase {view.phase}: there is nothing to suspend")
    if view.spec.get("suspend"):
        _show(app, view, f"is suspended already, phase {view.phase}")
        return
    _change(
        app,
        view,
        {"spec": {"suspend": True}},
        f"will be suspended. To resume it: tunery resume {view.reference}{_where(app)}",
    )


@click.command("resume")
@click.argument("name")
@click.pass_obj
def resume_command(app: App, /, name: str) -> None:
    """Resume a suspended object from its latest checkpoint."""
    view = _runnable(app, name)
    if not view.spec.get("suspend"):
        _show(app, view, f"is not suspended, phase {view.phase}")
        return
    _change(
        app, view, {"spec": {"suspend": False}}, f"resumes. To follow it: tunery watch {view.reference}{_where(app)}"
    )


@click.command("retry")
@click.argument("name")
@click.pass_obj
def retry_command(app: App, /, name: str) -> None:
    """Retry a failed object from its latest checkpoint.

    Fix the cause first: `tunery explain NAME` says how.
    """
    from tunery_api.names import RETRY_ANNOTATION

    view = _runnable(app, name)
    if view.sweep:
        raise NotPossible(
            f"{view.reference} is a trial of LoRASweep {view.sweep}, which alone is retried",
            f"If the sweep has failed: tunery retry lorasweep/{view.sweep}{_where(app)}",
        )
    if view.phase in ("Succeeded", "Stopped"):
        remedy = f"To run it again under a new name: tunery resubmit {view.reference}{_where(app)}"
        raise NotPossible(f"{view.reference} has not failed, its phase is {view.phase}", remedy)
    if view.phase != "Failed":
        remedy = f"Tunery retries attempts itself. Why it waits: tunery explain {view.reference}{_where(app)}"
        raise NotPossible(f"{view.reference} has not failed, its phase is {view.phase}", remedy)
    annotations = {RETRY_ANNOTATION: datetime.now(UTC).isoformat()}
    text = f"will be retried. To follow it: tunery watch {view.reference}{_where(app)}"
    _change(app, view, {"metadata": {"annotations": annotations}}, text)


@click.command("resubmit")
@click.argument("name")
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="A field of the copy: training.epochs=3.")
@click.option("--name", "new", metavar="NEW", help="The name of the copy; default: NAME-2, or the next that is free.")
@click.pass_obj
def resubmit_command(app: App, /, name: str, settings: Sequence[str], new: str | None) -> None:
    """Create a copy of an object with other settings.

    The copy has the spec and the labels, without stop and suspend. If the last part of output.uri is the name, it
    becomes the new name. Another output.uri has to be set: a result is published at its own URI.
    """
    from tunery.manifest import create, validate, with_settings

    view = _find(app, name)
    spec = with_settings(view.spec, settings)
    for field in ("stop", "suspend"):
        if not any(_names_field(setting, field) for setting in settings):
            spec.pop(field, None)
    own_uri = any(_names_field(setting, "output") for setting in settings)
    for candidate in [new] if new else _free_names(view.name):
        body = copy_of(view, candidate, spec if own_uri else with_own_output(view, candidate, spec))
        try:
            created = next(iter(create(app.cluster, validate([body], "the copy", app.cluster.namespace))))
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
            if new:
                remedy = "Choose another name, or omit --name for the next that is free"
                raise Conflict(error.reason, error.message, remedy) from error
            continue
        _created(app, created)
        return
    raise NotPossible(f"the names {view.name}-2 to {view.name}-{_MAX_COPIES} are in use", "Choose another: --name NEW")


def _names_field(setting: str, field: str) -> bool:
    path = setting.partition("=")[0].strip().removeprefix("spec.")
    return path == field or (field == "output" and path == "output.uri")


def _free_names(name: str) -> Sequence[str]:
    return [f"{name}-{number}" for number in range(2, _MAX_COPIES + 1)]


def copy_of(view: View, name: str, spec: Json) -> Json:
    """Return the manifest of a copy, without status and without the metadata that a cluster or a tool manages."""
    from tunery_api.names import API_VERSION, TOPOLOGY_ANNOTATIONS

    labels = {
        key: value
        for key, value in (view.metadata.get("labels") or {}).items()
        if key not in _MANAGED_LABELS and not key.startswith(_MANAGED_PREFIXES)
    }
    annotations = {
        key: value for key, value in (view.metadata.get("annotations") or {}).items() if key in TOPOLOGY_ANNOTATIONS
    }
    metadata: Json = {"name": name, "namespace": view.metadata["namespace"]}
    metadata |= ({"labels": labels} if labels else {}) | ({"annotations": annotations} if annotations else {})
    return {"apiVersion": API_VERSION, "kind": view.kind.value, "metadata": metadata, "spec": spec}


def with_own_output(view: View, name: str, spec: Json) -> Json:
    """Return a spec that publishes at a URI of the copy's own. Raises UsageError if none can be derived."""
    output = spec.get("output") or {}
    uri = output.get("uri")
    if not uri:
        return spec
    head, _, last = uri.rstrip("/").rpartition("/")
    if head.endswith(":/") or last != view.name or output.get("overwrite"):
        remedy = (
            "Set one of its own, --set output.uri=s3://bucket/prefix, or the platform's default: --set output.uri=null"
        )
        raise UsageError(f"the copy would publish at {uri}, too, as {view.reference} does", remedy)
    copied = copy.deepcopy(spec)
    copied["output"]["uri"] = f"{head}/{name}"
    return copied


def _created(app: App, view: View) -> None:
    if app.is_json:
        app.print_json(view.body)
        return
    uri = view.at("spec.output.uri")
    where = f" and publishes at {uri}" if uri else ""
    app.print(f"{view.reference} is created{where}. To follow it: tunery watch {view.reference}{_where(app)}")


def _find(app: App, name: str) -> View:
    from tunery.objects import find

    return find(app.cluster, name)


def _runnable(app: App, name: str) -> View:
    """Return an object of a kind that ends. Raises UsageError for a server."""
    from tunery.objects import RUNNABLE

    view = _find(app, name)
    if view.kind not in RUNNABLE:
        raise UsageError(f"{view.reference} runs until it is deleted or scaled to zero", _other_end(app, view))
    return view


def _where(app: App) -> str:
    """Return the option -n of a command to paste, if this command was called with it."""
    return f" -n {app.namespace}" if app.namespace else ""


def _show(app: App, view: View, text: str) -> None:
    """Print the object as JSON, or its name with a text."""
    if app.is_json:
        app.print_json(view.body)
    else:
        app.print(f"{view.reference} {text}")


def _change(app: App, view: View, change: Json, text: str) -> None:
    """Change the very object that was read, and print what that does."""
    from tunery.objects import patch

    _show(app, patch(app.cluster, view, change), text)
