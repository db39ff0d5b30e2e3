"""Convert the remedies of a trial's failure to remedies of its LoRASweep, whose template is immutable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from tunery_api.failures import OF_TEMPLATE
from tunery_api.lorasweep import TrialTemplate
from tunery_api.remedies import Action, Remedy, recreate

_COMPARED: Final = frozenset(
    {"model", "dataset", "task", "preference", "evaluation", "continueFrom"}
    | {"training.maxLength", "training.loss", "training.seed"}
)
"""Sweeps that differ in one of these measure different losses."""
_TEMPLATE: Final = frozenset(info.alias or name for name, info in TrialTemplate.model_fields.items())


def of_sweep(remedies: Iterable[Remedy], searched: Collection[str]) -> list[Remedy]:
    """Return the remedies of a trial as those of its sweep; `searched` are the paths of spec.parameters."""
    return [remedy if remedy.action == Action.RETRY else _of_template(remedy, searched) for remedy in remedies]


def _of_template(remedy: Remedy, searched: Collection[str]) -> Remedy:
    """Return a remedy with the fields of the sweep: each belongs to the template or to spec.parameters."""
    found = [path for path in remedy.fields if path in searched]
    where = f"; parameters has {', '.join(found)}" if found else ""
    return recreate(f"{remedy.text}{where}", *dict.fromkeys(_field(path, searched) for path in remedy.fields))


def _field(path: str, searched: Collection[str]) -> str:
    if path in searched:
        return "parameters"
    return f"{OF_TEMPLATE}{path}" if path.partition(".")[0] in _TEMPLATE else path


def can_warm_start(remedies: Sequence[Remedy]) -> bool:
    """Return whether a new sweep with these changes measures the same loss, so that it can learn from the trials."""
    changes = [remedy for remedy in remedies if remedy.action == Action.RECREATE]
    fields = [path.removeprefix(OF_TEMPLATE) for remedy in changes for path in remedy.fields]
    return bool(fields) and not any(path in _COMPARED or path.partition(".")[0] in _COMPARED for path in fields)
