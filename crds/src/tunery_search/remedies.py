"""Convert the remedies of a trial's failure to remedies of its LoRASweep, whose template is immutable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from tunery_api.remedies import Action, Remedy, recreate, remedies_for
from tunery_api.status import RemedyStatus
from tunery_api.sweepstatus import TrialStatus

_COMPARED: Final = frozenset(
    {"model", "dataset", "task", "preference", "evaluation", "continueFrom"}
    | {"training.maxLength", "training.loss", "training.seed"}
)
"""Sweeps that differ in one of these measure different losses."""


def to_remedies(shown: Iterable[RemedyStatus] | None) -> list[Remedy]:
    """Return the remedies that a status shows."""
    return [Remedy(action=each.action, text=each.text, fields=each.fields or []) for each in shown or ()]


def of_sweep(reason: str, row: TrialStatus | None, searched: Collection[str]) -> list[Remedy]:
    """Return the remedies of a sweep that fails for `reason`.

    `row` is the trial that failed; None: the sweep itself. `searched` are the paths of spec.parameters.
    """
    if row is None:
        return list(remedies_for(reason))
    shown = row.failure.remedies if row.failure is not None else None
    return [_of_template(remedy, searched) for remedy in to_remedies(shown) or remedies_for(reason)]


def _of_template(remedy: Remedy, searched: Collection[str]) -> Remedy:
    """Return a remedy of a trial for the sweep: each field belongs to the template or to spec.parameters."""
    if remedy.action == Action.RETRY:
        return remedy
    found = [path for path in remedy.fields if path in searched]
    where = f"; parameters has {', '.join(found)}" if found else ""
    return recreate(f"{remedy.text}{where}", *remedy.fields)


def can_warm_start(remedies: Sequence[Remedy]) -> bool:
    """Return whether a new sweep with these changes measures the same loss, so that it can learn from the trials."""
    changes = [remedy for remedy in remedies if remedy.action == Action.RECREATE]
    fields = [path for remedy in changes for path in remedy.fields]
    return bool(fields) and not any(path in _COMPARED or path.partition(".")[0] in _COMPARED for path in fields)
