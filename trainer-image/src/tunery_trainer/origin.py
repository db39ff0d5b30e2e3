"""Whether a run may go on from another's checkpoint: what must be the same, and what may differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from pydantic.alias_generators import to_camel

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import SourceRecord
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunSpec
from tunery_api.scrub import shorten
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.errors import TrainerError
from tunery_trainer.fetch import FetchedModel
from tunery_trainer.inputs import lora_spec
from tunery_trainer.memo import Memo, Origin
from tunery_trainer.resolved import AdaLoraSettings, PreferenceSettings, Resolved

if TYPE_CHECKING:
    from tunery_trainer.planning import Plan

_ROWS = "training.batchSize × gradientAccumulation"
_MAX_SHOWN = 120
"""Bytes of a value that a message shows."""


def origin_of(run: RunSpec, model: FetchedModel, report: DatasetReport, plan: Plan) -> Origin:
    """Return what the run trains; in preflight the digest of a base without a commit is not known yet."""
    spec = lora_spec(run)
    return Origin(
        run=run.identity,
        model=SourceRecord(uri=spec.model.uri, revision=model.revision, digest=model.digest),
        config_sha256=hashlib.sha256(Path(model.folder, "config.json").read_bytes()).hexdigest(),
        settings={**_data(spec, report), **_adapter(plan), **_loop(plan.resolved)},
        steps=plan.steps,
    )


def _data(spec: LoRAJobSpec, report: DatasetReport) -> dict[str, JsonValue]:
    """Return what decides which rows there are, in which order, and which are held out."""
    own = spec.dataset.evaluation
    return {
        "dataset.uri (SHA-256 of its content)": report.sha256,
        "dataset.format": report.format.value,
        "dataset.template": spec.dataset.template.value,
        "dataset.split": spec.dataset.split,
        "dataset.columns": dict(spec.dataset.columns or {}),
        "dataset.evaluation": own.to_json_dict() if own else {},
        "dataset (sequences to train on)": report.tokens.sequences if report.tokens else 0,
    }


def _adapter(plan: Plan) -> dict[str, JsonValue]:
    """Return what the adapter is like; dropout draws anew anyway."""
    resolved, adapter, quantization = plan.resolved, plan.resolved.adapter, plan.resolved.quantization
    settings: dict[str, Any] = {
        "method": resolved.method.value,
        "lora.rank": adapter.rank,
        "lora.alpha": adapter.alpha,
        "lora.targetModules": sorted(plan.target_modules),
        "lora.modulesToSave": sorted(adapter.modules_to_save),
        "lora.useRslora": adapter.use_rslora,
        "lora.init": adapter.init.value,
        "lora.rankPattern": dict(adapter.rank_pattern),
        "lora.alphaPattern": dict(adapter.alpha_pattern),
        **_fields("adalora", resolved.adalora),
        "promptTuning.virtualTokens": resolved.prompt.virtual_tokens if resolved.prompt else None,
        "prefixTuning.projection": resolved.prompt.projection if resolved.prompt else None,
        "quantization.type": quantization.type.value if quantization else None,
        "quantization.doubleQuant": quantization.double_quant if quantization else None,
    }
    if resolved.method is Method.ADALORA:
        settings["training (steps, over which AdaLoRA prunes)"] = plan.steps
    return {name: value for name, value in settings.items() if value is not None}


def _loop(resolved: Resolved) -> dict[str, JsonValue]:
    """Return what decides which rows a step sees, and what the optimizer's moments mean."""
    training = resolved.training
    return {
        "task": resolved.task.value,
        **_fields("preference", resolved.preference),
        _ROWS: training.batch_size * training.gradient_accumulation,
        "training.maxLength": training.max_length,
        "training.packing": training.packing,
        "training.groupByLength": training.group_by_length,
        "training.loss": training.loss.value,
        "training.optimizer": training.optimizer.value,
        "training.seed": training.seed,
    }


def _fields(block: str, settings: AdaLoraSettings | PreferenceSettings | None) -> dict[str, JsonValue]:
    """Return the settings by their names in the spec."""
    known = dataclasses.asdict(settings) if settings else {}
    return {f"{block}.{to_camel(name)}": value for name, value in known.items() if value is not None}


def check_base(memo: Memo, own: Origin) -> None:
    """Raise TrainerError(InvalidSpec) where a run's own checkpoint was trained on another base than is there now."""
    if memo.origin is None:
        return
    before, now = memo.origin.model.digest, own.model.digest
    if before and now and before != now:
        raise TrainerError(
            FailureReason.INVALID_SPEC,
            f"spec.model.uri: {own.model.uri} is another model than this job began with: its digest was {before}, and "
            f"is {now}",
            "Put the model of before back and retry, or train on the new one in a new job.",
        )


def check_origin(memo: Memo, step: int, own: Origin) -> None:
    """Raise TrainerError(InvalidSpec) naming each field in which a run differs that may not go on from a checkpoint."""
    if memo.origin is None:
        message = "spec.resumeFrom: the checkpoint does not say what it was trained from; retry its own LoRAJob instead"
        raise TrainerError(FailureReason.INVALID_SPEC, message)
    problems = list(_differences(memo.origin, own))
    if step > own.steps:
        problems.append(
            f"spec.training: this job has {own.steps} steps in all, and the checkpoint is of step {step}; ask for more "
            "by maxSteps or epochs"
        )
    if problems:
        hint = "Take the values of the job that wrote the checkpoint, or leave spec.resumeFrom out, in a new job."
        raise TrainerError(FailureReason.INVALID_SPEC, "; ".join(problems), hint)


def _differences(theirs: Origin, own: Origin) -> Iterator[str]:
    was = "the checkpoint of spec.resumeFrom was trained"
    for name in ("revision", "digest"):
        before, now = getattr(theirs.model, name), getattr(own.model, name)
        if before and now and before != now:
            yield f"spec.model: is {own.model.uri} at {now}, and {was} on {theirs.model.uri} at {before}"
            return
    if theirs.config_sha256 != own.config_sha256:
        yield f"spec.model: is {own.model.uri}, whose config.json is another than that of {theirs.model.uri}, {was[4:]}"
        return
    for name in dict.fromkeys([*theirs.settings, *own.settings]):
        before, now = theirs.settings.get(name), own.settings.get(name)
        if before != now:
            yield f"spec.{name}: is {_shown(now)}, and {was} with {_shown(before)}"


def _shown(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value) if value not in (None, {}, []) else "not set"
    return shorten(text, _MAX_SHOWN)
