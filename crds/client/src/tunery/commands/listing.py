"""Provide `tunery list` and `tunery get`: all objects in a table, or one object in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from tunery.app import App
from tunery.text import Column, phase_style, print_table

if TYPE_CHECKING:
    from tunery.cluster import Json
    from tunery_api.kinds import Kind

_COLUMNS: Final = (
    Column("NAMESPACE"),
    Column("KIND"),
    Column("NAME"),
    Column("PHASE"),
    Column("PROGRESS"),
    Column("REASON", optional=True),
    Column("LOSS", optional=True),
    Column("AGE"),
)
_CELLS: Final = (
    ("Namespace",), ("Kind",), ("Name",), ("Phase",), ("Progress", "Trials", "Adapters"), ("Reason",), ("Loss", "Best"),
    ("Age",),
)  # fmt: skip
"""The printer columns of tunery_api.kinds that each column shows; a kind has at most one of them."""


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
