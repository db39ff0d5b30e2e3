"""What a job that goes on from a checkpoint leaves open is taken from there: what its run was resolved to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import JsonValue

from tunery_api.fields import ApiModel, alias_of
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import (
    LORA_FIELDS,
    PREFERENCE_FIELDS,
    AdaLoraSpec,
    LoraSpec,
    Method,
    PreferenceSpec,
    PrefixTuningSpec,
    PromptTuningSpec,
    QuantizationSpec,
    TrainingTask,
)
from tunery_api.training import TrainingSpec
from tunery_trainer.settings.types import SPEC_FIELDS, RunSettings, SettingSource

if TYPE_CHECKING:
    from tunery_trainer.resuming.memo import Origin

ROWS: Final = "training.batchSize × gradientAccumulation"
"""The rows of an optimizer step, which a checkpoint fixes; how they are split into passes it does not."""


class _Lora(LoraSpec):
    """What a run had, which may be of an adapter made elsewhere: without the bounds of a manifest.

    PEFT takes an alpha that is no whole number, and it is kept exactly as it was: scaling is alpha / rank.
    """

    rank: int | None = None
    alpha: int | float | None = None  # type: ignore[assignment]  # wider than what a manifest may say
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, int | float] | None = None  # type: ignore[assignment]


_BLOCKS: Final[dict[str, type[ApiModel]]] = {
    "lora": _Lora,
    "adalora": AdaLoraSpec,
    "promptTuning": PromptTuningSpec,
    "prefixTuning": PrefixTuningSpec,
    "quantization": QuantizationSpec,
    "preference": PreferenceSpec,
    "training": TrainingSpec,
}
_OF_DEVICE: Final = frozenset({"method", "training.optimizer"})
"""What follows from the memory of the GPU, and may not change on the way."""
_OF_PRESETS: Final = frozenset(
    {
        *("lora.rank", "lora.targetModules", "lora.dropout"),
        *("training.epochs", "training.maxSteps", "training.learningRate", "training.warmup"),
    }
)
"""What a preset says in the manifest's place."""

Block = TypeVar("Block", bound=ApiModel)


@dataclass(frozen=True)
class Taken:
    """What a plan has from a checkpoint."""

    fields: frozenset[str] = frozenset()
    """Such as lora.rank."""
    rows: int | None = None
    """Of an optimizer step; None: the data decides."""

    def to_share(self, spec: LoRAJobSpec) -> int | None:
        """Return what devices have to share evenly: the passes of a step, or its rows; None: it is made so."""
        training = spec.training
        if training.gradient_accumulation is not None:
            return training.gradient_accumulation
        return self.rows // (training.batch_size or 1) if self.rows else None

    def marked(self, resolved: RunSettings) -> RunSettings:
        """Return `resolved` with the checkpoint as the source of these fields."""
        if not self.fields:
            return resolved
        values = tuple(
            value.model_copy(update={"source": SettingSource.CHECKPOINT.value}) if value.name in self.fields else value
            for value in resolved.values
        )
        reason = "The checkpoint that it goes on from has it." if "method" in self.fields else resolved.method_reason
        return replace(resolved, values=values, method_reason=reason)


NOTHING: Final = Taken()


def manifest_of(resolved: RunSettings) -> dict[str, JsonValue]:
    """Return the fields of a spec that says these settings, but for what the device decides."""
    prompt = resolved.prompt
    blocks: dict[str, dict[str, Any]] = {
        "lora": _lora(resolved),
        "adalora": _numbers(resolved.adalora, "initial_rank target_rank warmup_steps final_steps update_every_steps"),
        "promptTuning": _numbers(prompt, "virtual_tokens") if resolved.method is Method.PROMPT_TUNING else {},
        "prefixTuning": _numbers(prompt, "virtual_tokens projection")
        if resolved.method is Method.PREFIX_TUNING
        else {},
        "quantization": _numbers(resolved.quantization, "type double_quant"),
        "preference": _preference(resolved),
        "training": _training(resolved),
    }
    said = {
        block: _BLOCKS[block].model_validate({name: value for name, value in found.items() if value is not None})
        for block, found in blocks.items()
        if found
    }
    method, task = resolved.method.value, resolved.task.value
    return {"method": method, "task": task, **{block: value.to_json_dict() for block, value in said.items()}}


def with_open_taken(spec: LoRAJobSpec, origin: Origin) -> tuple[LoRAJobSpec, Taken]:
    """Return `spec` with what it leaves open as the checkpoint's run had it, and what that is.

    A preset counts as the manifest's word. Nothing is taken where method or task are others: that is refused by name.
    """
    method, task = Method(str(origin.manifest["method"])), TrainingTask(str(origin.manifest["task"]))
    if spec.method not in (Method.AUTO, method) or ("task" in spec.model_fields_set and spec.task is not task):
        return spec, NOTHING
    changes: dict[str, Any] = {"task": task, "method": method}
    fields = {name for name in changes if name not in spec.model_fields_set or getattr(spec, name) is Method.AUTO}
    for alias, model in _BLOCKS.items():
        if alias not in origin.manifest:
            continue
        name = next(name for name in LoRAJobSpec.model_fields if alias_of(spec, name) == alias)
        own = getattr(spec, name) or model()
        filled = _open(spec, alias, own, model.model_validate(origin.manifest[alias]))
        changes[name] = own.model_copy(update=filled)
        fields |= {f"{alias}.{alias_of(own, each)}" for each in filled}
    return spec.model_copy(update=changes), Taken(frozenset(fields), int(str(origin.settings[ROWS])))


def with_device_taken(spec: LoRAJobSpec, origin: Origin) -> tuple[LoRAJobSpec, Taken]:
    """Return `spec` with what the first attempt of the same job chose for its devices; a later one may get others."""
    whole, taken = with_open_taken(spec, origin)
    training = spec.training.model_copy(update={"optimizer": whole.training.optimizer})
    chosen = spec.model_copy(update={"method": whole.method, "training": training})
    return chosen, Taken(taken.fields & _OF_DEVICE, taken.rows)


def _open(spec: LoRAJobSpec, block: str, own: ApiModel, theirs: ApiModel) -> dict[str, Any]:
    """Return the fields of `theirs` that neither `own` nor a preset says."""
    closed = _OF_PRESETS if spec.preset else frozenset()
    training = spec.training
    if training.epochs is not None or training.max_steps is not None:
        closed |= {"training.epochs", "training.maxSteps"}
    if training.scale_learning_rate_with_rank:
        closed |= {"training.learningRate"}
    return {
        name: getattr(theirs, name)
        for name in theirs.model_fields_set
        if f"{block}.{alias_of(theirs, name)}" not in closed
        and (name not in own.model_fields_set or getattr(own, name) is None)
    }


def _lora(resolved: RunSettings) -> dict[str, Any]:
    adapter = resolved.adapter
    found: dict[str, Any] = {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "targetModules": list(adapter.target_modules or ()) or None,
        "useRslora": adapter.use_rslora,
        "init": adapter.init,
        "modulesToSave": list(adapter.modules_to_save) or None,
        "rankPattern": dict(adapter.rank_pattern) or None,
        "alphaPattern": dict(adapter.alpha_pattern) or None,
    }
    return {name: value for name, value in found.items() if name in LORA_FIELDS.get(resolved.method, found)}


def _preference(resolved: RunSettings) -> dict[str, Any]:
    settings = resolved.preference
    if settings is None:
        return {}
    found = {
        "beta": settings.beta,
        "lossType": settings.loss_type,
        "desirableWeight": settings.desirable_weight,
        "undesirableWeight": settings.undesirable_weight,
    }
    return {name: value for name, value in found.items() if name in PREFERENCE_FIELDS[resolved.task]}


_OF_LAYOUT: Final = frozenset(
    {"batch_size", "gradient_accumulation", "precision", "gradient_checkpointing", "on_out_of_memory"}
)
"""Settings that follow from the devices of a run: another run has its own."""


def _training(resolved: RunSettings) -> dict[str, Any]:
    return {name: getattr(resolved.training, name) for name in SPEC_FIELDS if name not in _OF_LAYOUT}


def _numbers(settings: object | None, names: str) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names.split()} if settings else {}
