"""Provide `tunery list` and `tunery get`: all objects in a table, or one object in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from tunery.app import App
from tunery.text import Column, duration_text, phase_style, print_table

if TYPE_CHECKING:
    from tunery.cluster import Json
    from tunery.describe import Line
    from tunery.objects import View
    from tunery_api.kinds import Kind

_COLUMNS: Final = (
    Column("NAMESPACE"),
    Column("NAME"),
    Column("KIND", optional=True),
    Column("PHASE"),
    Column("PROGRESS", optional=True),
    Column("REASON", optional=True),
    Column("LOSS", optional=True),
    Column("AGE"),
)
_CELLS: Final = (
    ("Namespace",), ("Name",), ("Kind",), ("Phase",), ("Progress", "Trials", "Adapters"), ("Reason",), ("Loss", "Best"),
    ("Age",),
)  # fmt: skip
"""The printer columns of tunery_api.kinds that each column shows; a kind has at most one of them."""
_RESULTS: Final = {"adapter": "Adapter", "output": "Answers", "rejectedAdapter": "Rejected adapter"}
_NORMAL: Final = "Removed"
"""The reason of CheckpointSaved after the result was published."""
_NOT_TRUE: Final = ("False", "Unknown")
_SHOWN: Final = {
    **dict.fromkeys(
        (
            "Validated", "InputsReady", "Preflight", "QuotaReserved", "ProgressReported", "RankSufficient",
            "TrialsRemoved", "AdaptersResolved", "Available", "AdaptersServed",
        ),
        _NOT_TRUE,
    ),
    "CheckpointSaved": _NOT_TRUE,
    "Stopped": ("True", "False"),
    "Suspended": ("True",),
    "Progressing": ("True",),
}  # fmt: skip
"""The statuses of each condition type that `get` shows: those that say what is missing or what a user has changed."""


@click.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="The objects of all namespaces.")
@click.option("-l", "--selector", metavar="LABELS", default="", help="Only objects with these labels: team=support.")
@click.option("--kind", "kinds", metavar="KIND", multiple=True, help="Only this kind, such as lorajob; repeatable.")
@click.option("--trials", is_flag=True, help="The trials of sweeps, too; a selector of their label shows them as well.")
@click.pass_obj
def list_command(app: App, /, all_namespaces: bool, selector: str, kinds: Sequence[str], trials: bool) -> None:
    """List jobs, merges, sweeps, batches and servers.

    PROGRESS is the percentage of the steps; of a sweep its finished trials, of a server its adapters. LOSS of a sweep
    is the held-out loss of its best trial.
    """
    from tunery.objects import parse_kind
    from tunery_api.kinds import Kind

    chosen = [parse_kind(each) for each in kinds] or list(Kind)
    selectors = {kind: _selector(kind, selector, trials) for kind in chosen}
    if app.is_json:
        app.print_json({"apiVersion": "v1", "kind": "List", "items": list(_bodies(app, selectors, all_namespaces))})
        return
    rows = [_cells(row) for row in _rows(app, selectors, all_namespaces)]
    if rows:
        print_table(app.console, _COLUMNS, rows, phase_style)
    else:
        where = "in any namespace" if all_namespaces else f"in namespace {app.cluster.namespace}"
        app.print(f"No objects {where}" + (" with these labels" if selector else ""))


def _selector(kind: Kind, selector: str, trials: bool) -> str:
    """Return the label selector for a kind: without trials, unless the user asked for them."""
    from tunery_api.kinds import Kind
    from tunery_api.names import SWEEP_LABEL, TRIAL_LABEL

    if kind != Kind.LORAJOB or trials or SWEEP_LABEL in selector or TRIAL_LABEL in selector:
        return selector
    return ",".join(each for each in (selector, f"!{SWEEP_LABEL}") if each)


def _bodies(app: App, selectors: dict[Kind, str], all_namespaces: bool) -> Iterator[Json]:
    from tunery.objects import list_objects

    for kind, selector in selectors.items():
        found = list_objects(app.cluster, (kind,), selector=selector, all_namespaces=all_namespaces)
        yield from (each.body for each in found)


def _rows(app: App, selectors: dict[Kind, str], all_namespaces: bool) -> Iterator[Json]:
    from tunery.cluster import resource_of

    for kind, selector in selectors.items():
        for row in app.cluster.rows(resource_of(kind), selector=selector, all_namespaces=all_namespaces):
            yield row | {"Kind": kind.value}


def _cells(row: Json) -> list[str]:
    """Return the cells of a row; the phase is Pending until the operator has seen the object."""
    found: list[Any] = [next((row[name] for name in names if row.get(name) is not None), "") for names in _CELLS]
    cells = [str(each) for each in found]
    return [*cells[:3], cells[3] or "Pending", *cells[4:]]


@click.command("get")
@click.argument("name")
@click.pass_obj
def get_command(app: App, /, name: str) -> None:
    """Show one object, and its failure in full."""
    from tunery.objects import find

    view = find(app.cluster, name)
    if app.is_json:
        app.print_json(view.body)
        return
    app.print(view.reference, "bold")
    facts = [(label, text) for label, text in _facts(view) if text]
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        app.print(f"  {label:<{width}}  {text}", phase_style(view.phase) if label == "Phase" else None)
    for title, lines in _sections(view):
        shown = [line for line in lines if line.text]
        if shown:
            app.print(f"\n{title}", "bold")
            for line in shown:
                app.print(f"  {line.text}", line.style)


def _sections(view: View) -> Iterator[tuple[str, Iterable[Line]]]:
    """Yield the titles and the lines of what the summary does not show."""
    from tunery.describe import Line, attempt, finding

    failure = view.failure
    if failure is not None:
        title = "Failure" if view.phase == "Failed" else "Blocked"
        yield title, (Line(f"{failure.reason}: {failure.message}", "red"), Line(failure.hint))
    yield "Findings", map(finding, view.status.get("findings") or ())
    yield "Conditions", map(Line, _conditions(view))
    history = view.status.get("attemptHistory") or []
    if len(history) > 1:
        yield "Attempts", (Line(f"{each['startTime']} {attempt(each)}") for each in history)


def _facts(view: View) -> Iterator[tuple[str, str]]:
    """Yield the labels and texts of an object's summary; an empty text is not measured or not of its kind."""
    reason = view.at("status.reason")
    yield "Phase", f"{view.phase}, {reason}" if reason else view.phase
    yield "Progress", _progress(view)
    yield "Trials", _text(view, "status.countsText")
    yield "Best trial", _best(view)
    yield "Replicas ready", _text(view, "status.readyText")
    yield "Adapters served", _text(view, "status.adaptersText")
    yield "Loss", _text(view, "status.metrics.loss")
    yield "Held-out loss", _held_out(view)
    yield "Model", _text(view, "spec.model.uri")
    yield "Method", _method(view)
    yield "Device", _text(view, "status.resolved.device")
    yield "Checkpoint", _text(view, "status.checkpoint.step", "after step {}")
    yield "Stopped", _text(view, "status.stopped.afterStep", "after step {}")
    for label in ("adapter", "output", "rejectedAdapter"):
        yield _RESULTS[label], _text(view, f"status.{label}.uri")
    yield "URL", _text(view, "status.url")
    yield "Queue", _text(view, "status.queue")
    yield "GPU time", duration_text(view.at("status.gpuSeconds")) if view.at("status.gpuSeconds") else ""
    yield "Created", f"{duration_text((datetime.now(UTC) - view.created).total_seconds())} ago"


def _text(view: View, path: str, form: str = "{}") -> str:
    value = view.at(path)
    return "" if value is None else form.format(value)


def _progress(view: View) -> str:
    progress = view.at("status.progress") or {}
    parts = [progress.get("percentText", "")]
    if progress.get("totalSteps"):
        parts.append(f"step {progress.get('step', 0):,} of {progress['totalSteps']:,}")
    parts += [f"ETA {progress['eta']}"] if progress.get("eta") and not view.finished else []
    return ", ".join(part for part in parts if part)


def _held_out(view: View) -> str:
    """Return the held-out loss after training, before it, and the change with its standard error."""
    from tunery_api.measured import change_text, parse_finite

    metrics = view.at("status.metrics") or {}
    after, before = metrics.get("evalLoss"), metrics.get("baseEvalLoss")
    if after is None or before is None:
        return str(after) if after is not None else f"{before} before training" if before is not None else ""
    improvement, error = parse_finite(metrics.get("improvement")), parse_finite(metrics.get("improvementError"))
    change = "" if improvement is None else f": {change_text(-improvement, error)}"
    return f"{after}, before training {before}{change}"


def _best(view: View) -> str:
    best = view.at("status.best") or {}
    if not best:
        return ""
    change = f", {best['improvement']} below the base model" if best.get("improvement") else ""
    return f"{best['name']}, held-out loss {best['value']}{change}"


def _method(view: View) -> str:
    method = view.at("status.resolved.method") or view.at("spec.method")
    rank = view.at("status.resolved.rank")
    return f"{method}, rank {rank}" if method and rank else str(method or "")


def _conditions(view: View) -> Iterator[str]:
    """Yield the conditions that a reader has to know about: those of _SHOWN."""
    failure = view.failure.message if view.failure is not None else None
    for each in view.status.get("conditions") or ():
        shown = each["status"] in _SHOWN.get(each["type"], ()) and each["reason"] != _NORMAL
        if shown and each.get("message") and each["message"] != failure:
            yield f"{each['type']}={each['status']} {each['reason']}: {each['message']}"
