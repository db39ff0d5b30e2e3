"""What the layers found out, as the status and the lineage of the API say it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.manifest import QuantizationRecord
from tunery_api.measured import DatasetStatus
from tunery_api.redact import shorten
from tunery_api.status import ResolvedStatus
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.data.warnings import warnings_of
from tunery_trainer.settings.parallelism import parallelism_of
from tunery_trainer.settings.preference import weights_warning
from tunery_trainer.settings.types import DeviceFacts, RunSettings

_LIBRARIES: Final = (
    "tunery-trainer",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
)
QUANTIZATION_SETTINGS: Final = ("quantization.type", "quantization.doubleQuant", "training.precision")
"""What the lineage shows of how the base was quantised, by field of the spec."""
_MAX_TARGETS: Final = 64
_MAX_VALUES: Final = 48
_MAX_COLUMNS: Final = 16
_MAX_COLUMN: Final = 64
"""Bytes."""


def dataset_status(report: DatasetReport, resolved: RunSettings | None = None) -> DatasetStatus:
    """Return the report as it stands in status.dataset, with what it means for the settings of a LoRAJob."""
    weights = _weights_warning(resolved, report.tokens) if resolved else None
    warnings = [*warnings_of(report), *([weights] if weights else [])]
    return DatasetStatus(
        rows=report.rows,
        evaluation_rows=report.evaluation_rows,
        invalid_rows=report.invalid_rows,
        first_invalid=list(report.first_invalid) or None,
        duplicates=report.duplicates,
        sha256=report.sha256,
        evaluation_sha256=report.evaluation_sha256,
        format=report.format.value,
        overlap=report.overlap,
        ignored_columns=[shorten(name, _MAX_COLUMN) for name in report.ignored_columns[:_MAX_COLUMNS]] or None,
        warnings=warnings or None,
        **(_token_fields(report.tokens) if report.tokens else {}),
    )


def _weights_warning(resolved: RunSettings, tokens: TokenReport | None) -> str | None:
    if resolved.preference is None or tokens is None or tokens.desirable is None:
        return None
    return weights_warning(resolved.preference, tokens.desirable, tokens.sequences - tokens.desirable)


def _token_fields(tokens: TokenReport) -> dict[str, Any]:
    """Return what a tokenizer says, by field; the turns only where not every token counts."""
    fields = dataclasses.asdict(tokens) | {"truncated_percent": f"{tokens.truncated_percent:.4g}"}
    if not tokens.sequences:  # refused before that was decided
        fields |= dict.fromkeys(("sequences", "packed"))
    if not tokens.assistant_turns:
        fields |= dict.fromkeys(("assistant_turns", "context_turns", "trained_turns", "lost_reasoning"))
    return fields


def resolved_status(resolved: RunSettings, details: Mapping[str, Any]) -> ResolvedStatus:
    """Return status.resolved; `details` holds what is known of revision, steps, target_modules and so on."""
    known = dict(details)
    targets = list(known.pop("target_modules", None) or [])
    return ResolvedStatus(
        method=resolved.method.value,
        method_reason=resolved.method_reason,
        rank=resolved.adapter.rank or None,
        target_modules=targets[:_MAX_TARGETS] or None,
        values=list(resolved.values)[:_MAX_VALUES],
        **known,
    )


def devices_status(devices: DeviceFacts, resolved: RunSettings, words: str | None = None) -> dict[str, Any]:
    """Return what status.resolved says of what trains and of how many do, by field; `words` are of one of them."""
    training = resolved.training
    return {
        "device": words,
        "devices": devices.world,
        "parallelism": parallelism_of(sharded=training.sharded, devices=devices.world),
    }


def quantization_record(resolved: RunSettings) -> QuantizationRecord | None:
    """Return how the base is quantised, as the lineage says it; None where it is not."""
    settings = resolved.quantization
    if settings is None:
        return None
    loaded_as = resolved.training.precision.value
    return QuantizationRecord(type=settings.type.value, double_quant=settings.double_quant, loaded_as=loaded_as)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result, by distribution name."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def hyperparameters(resolved: RunSettings) -> dict[str, Any]:
    """Return every setting, by field of the spec."""
    return {value.name: value.value for value in resolved.values}
