"""Decide every setting of a run from the manifest, the preset and the guide's rules; no tensor is touched."""

from __future__ import annotations

import math
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import (
    DEFAULT_TARGET_RANK,
    INITIAL_RANK_FACTOR,
    PREFERENCE_TASKS,
    PRESETS,
    PROMPT_LEARNING,
    QUANTIZED,
    ComputeType,
    LoraInit,
    Method,
    PrefixTuningSpec,
    PromptTuningSpec,
    QuantizationSpec,
)
from tunery_api.reasons import FailureReason
from tunery_api.training import Precision
from tunery_common.errors import TuneryError
from tunery_trainer.settings.auto_method import MethodChoice
from tunery_trainer.settings.decisions import Decisions, Fallback
from tunery_trainer.settings.evaluation import evaluation_settings
from tunery_trainer.settings.experts import EXPERTS, adapts_experts, check_experts, told_of_experts
from tunery_trainer.settings.loop import Chosen, Given, training_settings
from tunery_trainer.settings.parallelism import check_spread
from tunery_trainer.settings.preference import preference_settings
from tunery_trainer.settings.presets import rank_reason
from tunery_trainer.settings.stored_quantization import check_stored
from tunery_trainer.settings.types import (
    AdaLoraSettings,
    AdapterSettings,
    DeviceFacts,
    ModelFacts,
    PromptSettings,
    QuantizationSettings,
    RunSettings,
    SettingSource,
    StoredQuantization,
)

DEFAULT_RANK: Final = 16
DEFAULT_DROPOUT: Final = 0.05
IA3_TARGETS: Final = "keys, values, second feed-forward layer"


def resolve(
    spec: LoRAJobSpec, facts: ModelFacts, devices: DeviceFacts, choice: MethodChoice, chosen: Chosen | None = None
) -> RunSettings:
    """Return every effective setting of the run that `spec` asks for.

    `choice` is the method, which is never Auto; `chosen` is what the data and the memory have decided. A value of the
    manifest always wins, then the preset's, then a rule or default. Before the data is tokenised, and so without
    `chosen`, packing is whether it may be packed, and batches and passes are the largest.
    Raises TuneryError(InvalidSpec) where the model cannot do what the manifest asks for.
    """
    method = choice.method
    decisions = Decisions(spec, method, PRESETS[spec.preset] if spec.preset else None)
    decisions.note("method", method, SettingSource.RULE if spec.method is Method.AUTO else SettingSource.MANIFEST)
    decisions.note(
        "task", spec.task, SettingSource.MANIFEST if "task" in spec.model_fields_set else SettingSource.DEFAULT
    )
    decisions.plain(spec.dataset, "dataset", "template")
    adapter = _adapter(decisions, facts)
    training = training_settings(decisions, adapter.rank, Given(facts, devices, chosen or Chosen()))
    resolved = RunSettings(
        method=method,
        method_reason=choice.reason,
        adapter=adapter,
        adalora=_adalora(decisions) if method is Method.ADALORA else None,
        prompt=_prompt(decisions),
        quantization=_quantization(decisions, training.precision, facts.stored),
        training=training,
        evaluation=evaluation_settings(decisions, training, chosen.data if chosen else None),
        task=spec.task,
        preference=preference_settings(decisions),
        values=tuple(decisions.values),
    )
    check_spread(devices, resolved.quantization, sharded=training.sharded)
    return resolved


def _adapter(decisions: Decisions, facts: ModelFacts) -> AdapterSettings:
    if decisions.method in PROMPT_LEARNING:
        return AdapterSettings(rank=0, alpha=0, dropout=0.0, target_modules=None)
    if decisions.method is Method.IA3:
        return _ia3_adapter(decisions)
    lora = decisions.spec.lora
    rank, rank_source = _rank(decisions)
    alpha_source = rank_source if rank_source is SettingSource.PRESET else SettingSource.RULE
    targets = _targets(decisions)
    return AdapterSettings(
        rank=rank,
        alpha=decisions.pick("lora.alpha", lora.alpha, None, Fallback(2 * rank, alpha_source)),
        dropout=_dropout(decisions, targets, facts),
        target_modules=targets,
        use_rslora=decisions.plain(lora, "lora", "use_rslora") if decisions.method is not Method.ADALORA else False,
        init=decisions.plain(lora, "lora", "init") if decisions.method is not Method.ADALORA else LoraInit.DEFAULT,
        modules_to_save=tuple(lora.modules_to_save or ()),
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
    )


def _targets(decisions: Decisions) -> tuple[str, ...]:
    asked, preset = decisions.spec.lora.target_modules, decisions.preset
    return decisions.pick(
        "lora.targetModules",
        tuple(asked) if asked else None,
        preset.target_modules if preset else None,
        Fallback(("all-linear",), SettingSource.DEFAULT),
    )


def _dropout(decisions: Decisions, targets: tuple[str, ...], facts: ModelFacts) -> float:
    """Return the dropout, which PEFT has none of for a mixture's experts, and record what becomes of them."""
    asked, preset = decisions.spec.lora.dropout, decisions.preset
    if adapts_experts(decisions.method, targets, facts.experts):
        check_experts(decisions.spec)
        decisions.note(EXPERTS, told_of_experts(facts, adapted=True), SettingSource.RULE)
        return decisions.pick("lora.dropout", asked, None, Fallback(0.0, SettingSource.RULE))
    if facts.experts:
        decisions.note(EXPERTS, told_of_experts(facts, adapted=False), SettingSource.RULE)
    otherwise = Fallback(DEFAULT_DROPOUT, SettingSource.DEFAULT)
    if decisions.spec.task in PREFERENCE_TASKS:
        # As in TRL: the model is compared with what it was, and noise would be a difference of its own.
        otherwise = Fallback(0.0, SettingSource.RULE)
    return decisions.pick("lora.dropout", asked, preset.dropout if preset else None, otherwise)


def _ia3_adapter(decisions: Decisions) -> AdapterSettings:
    lora = decisions.spec.lora
    targets = tuple(lora.target_modules) if lora.target_modules else None
    decisions.note(
        "lora.targetModules", targets or IA3_TARGETS, SettingSource.MANIFEST if targets else SettingSource.RULE
    )
    return AdapterSettings(0, 0, 0.0, targets, modules_to_save=tuple(lora.modules_to_save or ()))


def _rank(decisions: Decisions) -> tuple[int, SettingSource]:
    """Return the rank and its source; AdaLoRA's is the average it ends with, and no guideline knows it."""
    if decisions.method is Method.ADALORA:
        block = decisions.spec.adalora
        target = block.target_rank if block else None
        rank = decisions.pick("adalora.targetRank", target, None, Fallback(DEFAULT_TARGET_RANK, SettingSource.DEFAULT))
    else:
        preset = decisions.preset.rank if decisions.preset else None
        rank = decisions.pick(
            "lora.rank", decisions.spec.lora.rank, preset, Fallback(DEFAULT_RANK, SettingSource.DEFAULT)
        )
        decisions.explain(rank_reason(rank, decisions.preset))
    return rank, SettingSource(decisions.values[-1].source)


def _adalora(decisions: Decisions) -> AdaLoraSettings:
    block = decisions.spec.adalora
    target = (block.target_rank if block else None) or DEFAULT_TARGET_RANK
    initial = decisions.pick(
        "adalora.initialRank",
        block.initial_rank if block else None,
        None,
        Fallback(math.ceil(INITIAL_RANK_FACTOR * target), SettingSource.RULE),
    )
    if initial <= target:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.adalora.initialRank: must be above targetRank, {target}, is {initial}: AdaLoRA prunes from the one "
            "down to the other",
        )
    return AdaLoraSettings(
        initial_rank=initial,
        target_rank=target,
        warmup_steps=block.warmup_steps if block else None,
        final_steps=block.final_steps if block else None,
        update_every_steps=block.update_every_steps if block else None,
    )


def _prompt(decisions: Decisions) -> PromptSettings | None:
    if decisions.method is Method.PROMPT_TUNING:
        text = decisions.spec.prompt_tuning or PromptTuningSpec()
        tokens = decisions.plain(text, "promptTuning", "virtual_tokens")
        start = text.init_text or "sampled from the vocabulary"
        decisions.note(
            "promptTuning.initText", start, SettingSource.MANIFEST if text.init_text else SettingSource.DEFAULT
        )
        return PromptSettings(tokens, init_text=text.init_text)
    if decisions.method is Method.PREFIX_TUNING:
        prefix = decisions.spec.prefix_tuning or PrefixTuningSpec()
        return PromptSettings(
            decisions.plain(prefix, "prefixTuning", "virtual_tokens"),
            projection=decisions.plain(prefix, "prefixTuning", "projection"),
        )
    return None


def _quantization(
    decisions: Decisions, precision: Precision, stored: StoredQuantization | None
) -> QuantizationSettings | None:
    """Return how the base is quantised: as it is stored, or as asked, else NF4 for QLoRA and QDoRA.

    Computed in the run's precision.
    """
    spec = decisions.spec.quantization
    if stored is not None:
        check_stored(decisions.spec, decisions.method, stored)
        decisions.note("quantization.type", stored.type, SettingSource.MODEL)
        decisions.note("quantization.doubleQuant", stored.double_quant, SettingSource.MODEL)
        asked = spec.compute_type if spec and "compute_type" in spec.model_fields_set else None
        compute = decisions.pick(
            "quantization.computeType", asked, None, Fallback(ComputeType(precision.value), SettingSource.RULE)
        )
        return QuantizationSettings(stored.type, stored.double_quant, compute, stored)
    if spec is None and decisions.method not in QUANTIZED:
        return None
    block = spec or QuantizationSpec()
    asked = block.compute_type if "compute_type" in block.model_fields_set else None
    return QuantizationSettings(
        type=decisions.plain(block, "quantization", "type"),
        double_quant=decisions.plain(block, "quantization", "double_quant"),
        compute_type=decisions.pick(
            "quantization.computeType", asked, None, Fallback(ComputeType(precision.value), SettingSource.RULE)
        ),
    )
