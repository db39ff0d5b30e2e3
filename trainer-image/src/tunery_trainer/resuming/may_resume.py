"""Whether a run may go on from a checkpoint, its own or another's: what must be the same, and what may differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from pydantic.alias_generators import to_camel

from tunery_api.inputs import DatasetEvaluation
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import MergeInputRecord
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import FetchedModel
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.resuming.memo import Base, Origin
from tunery_trainer.resuming.taken_settings import ROWS
from tunery_trainer.settings.types import AdaLoraSettings, PreferenceSettings, RunSettings

_OTHER = "the checkpoint of spec.resumeFrom was trained"
_OWN = "this job began"
_OTHER_REMEDIES = (
    recreate("Name the model and the data of the checkpoint, and omit the named settings", "model.uri", "dataset.uri"),
    recreate("Omit resumeFrom to train from the start", "resumeFrom"),
)
_OWN_REMEDIES = (retry("Restore the earlier inputs"), recreate("Train on the present inputs"))
_MAX_SHOWN = 120
"""Bytes of a value that a message shows."""


def base_of(uri: str, model: FetchedModel) -> Base:
    """Return what is known of the base at `uri` before its weights are read."""
    config = hashlib.sha256(Path(model.folder, "config.json").read_bytes()).hexdigest()
    return Base(uri=uri, revision=model.revision, config_sha256=config)


def settings_of(resolved: RunSettings, target_modules: Sequence[str], steps: int) -> dict[str, JsonValue]:
    """Return the settings that must be the same, by field, beside those of the data."""
    settings = _adapter(resolved, target_modules)
    if resolved.method is Method.ADALORA:
        settings["training (steps, over which AdaLoRA prunes)"] = steps
    return {**settings, **_loop(resolved)}


def rows_of(spec: LoRAJobSpec, report: DatasetReport) -> dict[str, JsonValue]:
    """Return what decides which rows there are, in which order, and which are held out."""
    held = spec.dataset.evaluation or DatasetEvaluation()
    drawn = held.uri is None and held.split is None
    return {
        "dataset.uri (SHA-256 of its content)": report.sha256,
        "dataset.format": report.format.value,
        "dataset.template": spec.dataset.template.value,
        "dataset.split": spec.dataset.split,
        "dataset.columns": dict(spec.dataset.columns or {}),
        "dataset.evaluation.uri (SHA-256 of its content)": report.evaluation_sha256,
        "dataset.evaluation.split": held.split,
        "dataset.evaluation.fraction": (held.fraction or DataOptions().evaluation_fraction) if drawn else None,
        "dataset (sequences to train on)": report.tokens.sequences if report.tokens else 0,
    }


def _adapter(resolved: RunSettings, target_modules: Sequence[str]) -> dict[str, JsonValue]:
    """Return what the adapter is like; dropout draws anew anyway."""
    adapter, quantization = resolved.adapter, resolved.quantization
    settings: dict[str, Any] = {
        "method": resolved.method.value,
        # AdaLoRA's is its targetRank.
        "lora.rank": adapter.rank if resolved.method is not Method.ADALORA else None,
        "lora.alpha": adapter.alpha,
        "lora.targetModules": sorted(target_modules),
        "lora.modulesToSave": sorted(adapter.modules_to_save),
        "lora.useRslora": adapter.use_rslora,
        "lora.init": adapter.init.value,
        "lora.rankPattern": dict(adapter.rank_pattern),
        "lora.alphaPattern": dict(adapter.alpha_pattern),
        **_fields("adalora", resolved.adalora),
        **_prompt(resolved),
        "quantization.type": quantization.type.value if quantization else None,
        "quantization.doubleQuant": quantization.double_quant if quantization else None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _prompt(resolved: RunSettings) -> dict[str, JsonValue]:
    prompt = resolved.prompt
    if prompt is None:
        return {}
    if resolved.method is Method.PROMPT_TUNING:
        return {"promptTuning.virtualTokens": prompt.virtual_tokens}
    return {"prefixTuning.virtualTokens": prompt.virtual_tokens, "prefixTuning.projection": prompt.projection}


def _loop(resolved: RunSettings) -> dict[str, JsonValue]:
    """Return what decides which rows a step sees, and what the optimizer's moments mean."""
    training = resolved.training
    return {
        "task": resolved.task.value,
        **_fields("preference", resolved.preference),
        ROWS: training.batch_size * training.gradient_accumulation,
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


def check_base(theirs: Origin, base: Base, *, own: bool = False) -> None:
    """Raise TuneryError(InvalidSpec) where a checkpoint, `own` or another run's, was trained on another base.

    What is not known of it yet is not compared.
    """
    difference = _base(theirs.base, base, _OWN if own else _OTHER)
    if difference:
        raise _refused([difference], own=own)


def check_start(before: MergeInputRecord | None, now: MergeInputRecord | None) -> None:
    """Raise TuneryError(InvalidSpec) where a run's own checkpoint began with another adapter than is there now."""
    if before is None or now is None or before.digest is None or before.digest == now.digest:
        return
    problem = f"spec.continueFrom: {now.uri} has the digest {now.digest}, and {_OWN} with {before.digest}"
    raise _refused([problem], own=True)


def check_own(theirs: Origin, now: Origin) -> None:
    """Raise TuneryError(InvalidSpec) where a run's own checkpoint is of another base or of other rows than are there.

    Its manifest is the same; what lies at the URIs that it names may not be.
    """
    check_base(theirs, now.base, own=True)
    problems = [text for name, text in _differences(theirs, now, _OWN) if name.startswith("dataset")]
    if problems:
        raise _refused(problems, own=True)


def check_origin(theirs: Origin, step: int, now: Origin) -> None:
    """Raise TuneryError(InvalidSpec) naming each field in which a run differs that may not go on from a checkpoint."""
    check_base(theirs, now.base)
    problems = [text for _, text in _differences(theirs, now, _OTHER)]
    if step > now.steps:
        problems.append(
            f"spec.training: this job has {now.steps} steps in all, and the checkpoint is of step {step}; ask for more "
            "by maxSteps or epochs"
        )
    if problems:
        raise _refused(problems, own=False)


def _refused(problems: list[str], *, own: bool) -> TuneryError:
    remedies = _OWN_REMEDIES if own else _OTHER_REMEDIES
    return TuneryError(FailureReason.INVALID_SPEC, "; ".join(problems), *remedies)


def _base(before: Base, now: Base, was: str) -> str | None:
    """Return how two bases differ; None where they are the same as far as both are known."""
    if bool(before.revision) != bool(now.revision):
        at = f"{before.uri} at {before.revision}" if before.revision else before.uri
        return (
            f"spec.model: is {now.uri}, and {was} on {at}; a commit of a hub cannot be compared with files that lie "
            "elsewhere: name the same"
        )
    for name in ("revision", "digest"):
        theirs, ours = getattr(before, name), getattr(now, name)
        if theirs and ours and theirs != ours:
            return f"spec.model: is {now.uri} at {ours}, and {was} on {before.uri} at {theirs}"
    if before.config_sha256 != now.config_sha256:
        return f"spec.model: is {now.uri}, whose config.json is another than that of {before.uri}, which {was} on"
    return None


def _differences(theirs: Origin, own: Origin, was: str) -> Iterator[tuple[str, str]]:
    """Yield each field that differs, and how."""
    for name in dict.fromkeys([*theirs.settings, *own.settings]):
        before, now = theirs.settings.get(name), own.settings.get(name)
        if before != now:
            yield name, f"spec.{name}: is {_shown(now)}, and {was} with {_shown(before)}"


def _shown(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value) if value not in (None, {}, []) else "not set"
    return shorten(text, _MAX_SHOWN)
