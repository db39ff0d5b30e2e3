"""Classify the failure of a trial, and convert its remedies to those of its LoRASweep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import Final

from tunery_api.failures import OF_TEMPLATE
from tunery_api.lorasweep import TrialTemplate
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action, Remedy, recreate
from tunery_search.dimensions import Values

_R = FailureReason


class Fault(StrEnum):
    """The cause of a trial's failure: which trials it affects."""

    EVERY = "of every trial"
    """Every trial of the sweep would fail: the sweep fails."""
    PARAMETERS = "of the parameters"
    """Other values may work: the trial is Infeasible, and the sampler learns from it."""
    TRANSIENT = "of chance"
    """The same values may work: the failure is counted, and the sampler learns nothing."""


FAULTS: Final[dict[str, Fault]] = {
    **dict.fromkeys(
        (
            _R.INVALID_SPEC,
            _R.SECRET_NOT_FOUND,
            _R.MODEL_NOT_FOUND,
            _R.MODEL_GATED,
            _R.MODEL_UNSUPPORTED,
            _R.DATASET_NOT_FOUND,
            _R.DATASET_INVALID,
            _R.STORAGE_ACCESS_DENIED,
            _R.STORAGE_NOT_FOUND,
            _R.OUTPUT_EXISTS,
            _R.NAME_CONFLICT,
            _R.ADAPTER_MISSING,
            _R.ADAPTER_CORRUPT,
            _R.ADAPTER_UNSUPPORTED,
            _R.BASE_MISMATCH,
            _R.CHECKPOINT_MISSING,
            _R.BUDGET_EXHAUSTED,
        ),
        Fault.EVERY,
    ),
    **dict.fromkeys(
        (
            _R.WONT_FIT,
            _R.GPU_OUT_OF_MEMORY,
            _R.OUT_OF_MEMORY,
            _R.LOSS_DIVERGED,
            _R.NOT_IMPROVED,
        ),
        Fault.PARAMETERS,
    ),
}
"""Reasons with another cause than TRANSIENT."""

_OF_THE_MODEL: Final = frozenset({_R.INVALID_SPEC, _R.MODEL_UNSUPPORTED})
"""Reasons of a valid spec that the model or the data don't support."""
_METHODS: Final = ("method", "lora.targetModules", "lora.init", "quantization.")
"""Parameters that a model may not support, even if its failure doesn't name them."""


def classify_failure(reason: str, values: Values, fields: Collection[str] = (), *, ran: bool) -> Fault:
    """Return the cause of a failure: TRANSIENT if FAULTS lacks the reason.

    `values` are the trial's. `fields` are the paths that the failure names. `ran` is true if the trial has trained.
    """
    if reason in _OF_THE_MODEL and any(path.startswith(_METHODS) or path in fields for path in values):
        return Fault.PARAMETERS
    if reason == _R.ADAPTER_MISSING and ran:
        # The trial's own result is missing, not the adapter of continueFrom.
        return Fault.TRANSIENT
    return FAULTS.get(reason, Fault.TRANSIENT)


_COMPARED: Final = frozenset(
    {"model", "dataset", "task", "preference", "evaluation", "continueFrom"}
    | {"training.maxLength", "training.loss", "training.seed"}
)
"""Sweeps that differ in one of these fields measure different losses."""
_TEMPLATE: Final = frozenset(info.alias or name for name, info in TrialTemplate.model_fields.items())


def sweep_remedies(remedies: Iterable[Remedy], searched: Collection[str]) -> list[Remedy]:
    """Return the remedies of a trial as remedies of its sweep. `searched` are the paths of spec.parameters."""
    return [remedy if remedy.action == Action.RETRY else _of_template(remedy, searched) for remedy in remedies]


def _of_template(remedy: Remedy, searched: Collection[str]) -> Remedy:
    """Return a remedy with the fields of the sweep: those of the template or of spec.parameters."""
    found = [path for path in remedy.fields if path in searched]
    where = f"; parameters has {', '.join(found)}" if found else ""
    return recreate(f"{remedy.text}{where}", *dict.fromkeys(_field(path, searched) for path in remedy.fields))


def _field(path: str, searched: Collection[str]) -> str:
    if path in searched:
        return "parameters"
    return f"{OF_TEMPLATE}{path}" if path.partition(".")[0] in _TEMPLATE else path


def can_warm_start(remedies: Sequence[Remedy]) -> bool:
    """Return whether a new sweep with these changes measures the same loss, and so can learn from the trials."""
    changes = [remedy for remedy in remedies if remedy.action == Action.RECREATE]
    fields = [path.removeprefix(OF_TEMPLATE) for remedy in changes for path in remedy.fields]
    return bool(fields) and not any(path in _COMPARED or path.partition(".")[0] in _COMPARED for path in fields)
