"""Provide the public names of the Tunery API: kinds, run contract, names, failure reasons.

Each name is imported at its first use, so that a program that needs an exit code does not load every model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery_api.adaptermerge import AdapterMergeSpec
    from tunery_api.adapterserver import AdapterServerSpec
    from tunery_api.batchinference import BatchInferenceSpec, BatchInferenceStatus
    from tunery_api.errors import FieldError, InvalidSpec
    from tunery_api.kinds import KINDS, Kind, KindDefinition
    from tunery_api.lorajob import LoRAJobSpec
    from tunery_api.manifest import MANIFEST_NAME, Manifest
    from tunery_api.names import API_VERSION, GROUP, VERSION
    from tunery_api.reasons import ExitCode, FailureReason
    from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
    from tunery_api.serverstatus import AdapterServerStatus
    from tunery_api.status import AdapterMergeStatus, ConditionType, LoRAJobStatus, Phase
    from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "MANIFEST_NAME",
    "VERSION",
    "AdapterMergeSpec",
    "AdapterMergeStatus",
    "AdapterServerSpec",
    "AdapterServerStatus",
    "BatchInferenceSpec",
    "BatchInferenceStatus",
    "ConditionType",
    "ExitCode",
    "FailureReason",
    "FieldError",
    "InvalidSpec",
    "Kind",
    "KindDefinition",
    "LoRAJobSpec",
    "LoRAJobStatus",
    "Manifest",
    "Phase",
    "PreflightReport",
    "RunResult",
    "RunSpec",
    "Task",
    "parse_adaptermerge",
    "parse_adapterserver",
    "parse_batchinference",
    "parse_lorajob",
]

_HOMES = {
    "adaptermerge": ("AdapterMergeSpec",),
    "adapterserver": ("AdapterServerSpec",),
    "batchinference": (
        "BatchInferenceSpec",
        "BatchInferenceStatus",
    ),
    "errors": (
        "FieldError",
        "InvalidSpec",
    ),
    "kinds": (
        "KINDS",
        "Kind",
        "KindDefinition",
    ),
    "lorajob": ("LoRAJobSpec",),
    "manifest": (
        "MANIFEST_NAME",
        "Manifest",
    ),
    "names": (
        "API_VERSION",
        "GROUP",
        "VERSION",
    ),
    "reasons": (
        "ExitCode",
        "FailureReason",
    ),
    "runspec": (
        "PreflightReport",
        "RunResult",
        "RunSpec",
        "Task",
    ),
    "serverstatus": ("AdapterServerStatus",),
    "status": (
        "AdapterMergeStatus",
        "ConditionType",
        "LoRAJobStatus",
        "Phase",
    ),
    "validation": (
        "parse_adaptermerge",
        "parse_adapterserver",
        "parse_batchinference",
        "parse_lorajob",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a name of the face from its home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
