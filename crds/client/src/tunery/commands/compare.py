"""Provide `tunery compare`: the results of LoRAJobs, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from tunery.app import App
from tunery.errors import NotFound, UsageError
from tunery.text import Column, print_table

if TYPE_CHECKING:
    from tunery.comparison import Compared
    from tunery.objects import View

_COLUMNS: Final = tuple(map(Column, ("NAME", "RESULT", "HELD-OUT LOSS", "CHANGE", "GPU HOURS")))
_DIGITS: Final = 12
"""The first digits of a digest that are shown."""


@click.command("compare")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("-l", "--selector", metavar="LABELS", help="The LoRAJobs with these labels: tunery.dev/sweep=search.")
@click.pass_obj
def compare_command(app: App, /, names: Sequence[str], selector: str | None) -> None:
    """Compare the settings and results of LoRAJobs.

    Losses are compared only if they were measured on the same held-out rows as those of the first job. The error of a
    loss is the standard error of its change by training, so what makes some rows difficult for all models cancels.
    """
    from tunery.comparison import compare, differing_settings

    compared = compare(_views(app, names, selector))
    settings = differing_settings([each.view for each in compared])
    if app.is_json:
        app.print_json({"jobs": [_document(each) for each in compared], "settings": _by_name(compared, settings)})
        return
    print_table(app.console, _COLUMNS, [_cells(each) for each in compared])
    app.print()
    if settings:
        named = [Column("SETTING"), *(Column(each.view.name) for each in compared)]
        print_table(
            app.console,
            named,
            [[path, *(_short(path, value) for value in values)] for path, values in settings.items()],
        )
    else:
        app.print("No setting differs")


def _views(app: App, names: Sequence[str], selector: str | None) -> list[View]:
    """Return the named or selected jobs. Raises UsageError if there are fewer than two."""
    from tunery.objects import find, list_objects
    from tunery_api.kinds import Kind

    if bool(names) == (selector is not None):
        raise UsageError(
            "name the jobs, or select them by labels", "Write tunery compare A B, or tunery compare -l LABELS"
        )
    if selector is None:
        views = [find(app.cluster, name, (Kind.LORAJOB,)) for name in names]
        views = list({view.name: view for view in views}.values())
    else:
        views = list_objects(app.cluster, (Kind.LORAJOB,), selector=selector)
    if not views:
        message = f"no LoRAJob in namespace {app.cluster.namespace} has the labels {selector}"
        raise NotFound(
            "NotFound", message, f"See the labels: kubectl get lorajobs -n {app.cluster.namespace} --show-labels"
        )
    if len(views) < 2:
        raise UsageError(f"{views[0].reference} alone can't be compared", "Name at least two jobs")
    return views


def _cells(each: Compared) -> list[str]:
    loss = "" if each.loss is None else f"{each.loss:.4g}" + (f" ± {each.error:.2g}" if each.error is not None else "")
    note = "" if each.view.finished else f" ({each.view.phase})"
    return [each.view.name, each.result + note, loss, each.change, f"{each.gpu_hours:.2f}"]


def _short(path: str, value: str) -> str:
    return value[:_DIGITS] if path.endswith("sha256") or path == "model.revision" else value


def _by_name(compared: Sequence[Compared], settings: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    names = [each.view.name for each in compared]
    return {path: dict(zip(names, values, strict=True)) for path, values in settings.items()}


def _document(each: Compared) -> dict[str, object]:
    return {
        "name": each.view.name,
        "phase": each.view.phase,
        "result": each.result,
        "evalLoss": each.loss,
        "baseEvalLoss": each.base_loss,
        "error": each.error,
        "gpuHours": round(each.gpu_hours, 4),
    }
