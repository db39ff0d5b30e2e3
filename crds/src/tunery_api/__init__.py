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

_MODULE_OF = {
    "API_VERSION": "names",
    "AdapterMergeSpec": "adaptermerge",
    "AdapterMergeStatus": "status",
    "AdapterServerSpec": "adapterserver",
    "AdapterServerStatus": "serverstatus",
    "BatchInferenceSpec": "batchinference",
    "BatchInferenceStatus": "batchinference",
    "ConditionType": "status",
    "ExitCode": "reasons",
    "FailureReason": "reasons",
    "FieldError": "errors",
    "GROUP": "names",
    "InvalidSpec": "errors",
    "KINDS": "kinds",
    "Kind": "kinds",
    "KindDefinition": "kinds",
    "LoRAJobSpec": "lorajob",
    "LoRAJobStatus": "status",
    "MANIFEST_NAME": "manifest",
    "Manifest": "manifest",
    "Phase": "status",
    "PreflightReport": "runspec",
    "RunResult": "runspec",
    "RunSpec": "runspec",
    "Task": "runspec",
    "VERSION": "names",
    "parse_adaptermerge": "validation",
    "parse_adapterserver": "validation",
    "parse_batchinference": "validation",
    "parse_lorajob": "validation",
}


def __getattr__(name: str) -> Any:
    """Return a public name from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
