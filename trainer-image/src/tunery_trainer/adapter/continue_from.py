"""Train a published adapter on: what the manifest leaves open is taken from it, what disagrees is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.methods import PROMPT_LEARNING, Method
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.status import ResolvedValue
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.headers import Tensor
from tunery_common.inputs.misfit import CHANGED_BASE_INITS, OTHER_BASE, VARIANTS, lacking, misfit, other_rank, untold
from tunery_common.inputs.name_patterns import broken_pattern, slow_pattern
from tunery_trainer.adapter.attach import attach
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.adapter.methods.lora_init import ADAPTER
from tunery_trainer.model.targets import (
    ends_with,
    expert_names,
    expert_parameters,
    ia3_targets,
    linear_layers,
    lora_targets,
)
from tunery_trainer.settings.experts import EXPERT_METHODS, EXPERTS, adapts_experts, told_again
from tunery_trainer.settings.loop import SCALED_LEARNING_RATE, learning_rate_factor
from tunery_trainer.settings.types import AdapterSettings, RunSettings, SettingSource

_KINDS: Final = {
    Method.LORA: ("LORA", False),
    Method.QLORA: ("LORA", False),
    Method.DORA: ("LORA", True),
    Method.QDORA: ("LORA", True),
    Method.PROMPT_TUNING: ("PROMPT_TUNING", False),
    Method.PREFIX_TUNING: ("PREFIX_TUNING", False),
    Method.IA3: ("IA3", False),
}
"""PEFT's type, and whether it is DoRA; AdaLoRA cannot be continued."""
_NAMES: Final = {"ADALORA": Method.ADALORA.value}
"""What the API calls PEFT's types of the others."""
_NOT_TRAINED_ON: Final = ("lora_bias", "trainable_token_indices", *VARIANTS)
"""Fields of a configuration that would be lost as the adapter is trained on."""
_NARROWED: Final = ("exclude_modules", "layers_to_transform", "layers_pattern")
_AS_SAVED: Final = (
    retry("Upload both files as PEFT's save_pretrained wrote them (with save_embedding_layers=False)"),
    retry(f"If you removed or added tensors, change {CONFIG_FILE} accordingly"),
)
_ANOTHER: Final = recreate("Name another adapter in continueFrom, or omit it to train a new one", "continueFrom")


def settings_from(resolved: RunSettings, model: PreTrainedModel, folder: Path, served_name: str | None) -> RunSettings:
    """Return `resolved` with rank, alpha, targets and the like as the adapter published in `folder` has them.

    Without `served_name` any name of the base is taken: that of an adapter made elsewhere proves nothing.
    `model` may be on the meta device. Call it before attaching, in preflight and in training alike.
    Raises TuneryError: AdapterMissing, AdapterCorrupt, or InvalidSpec naming what the manifest and the adapter
    disagree about.
    """
    config = _read_config(folder)
    odd = broken_pattern(config) or slow_pattern(config, (name for name, _ in model.named_modules()))
    if odd is not None:
        raise _corrupt(f"{CONFIG_FILE}: {odd}", *(() if served_name else _AS_SAVED))
    _check_kind(resolved, config)
    if served_name is None:
        _check_variant(config)
    base = config.get("base_model_name_or_path")
    if served_name is not None and base != served_name:
        raise _disagree("continueFrom", f"the adapter is for the base model {base!r}, this job trains {served_name!r}")
    if resolved.method in PROMPT_LEARNING:
        return _inherit_prompt(resolved, config)
    adapter = _inherit_names(resolved, model, config)
    if resolved.method is Method.IA3:
        names = {"lora.targetModules": _list(adapter.target_modules or ())}
        return replace(resolved, adapter=adapter, values=_noted(resolved.values, names))
    experts = adapts_experts(resolved.method, adapter.target_modules, expert_names(model))
    values = tuple(
        value.model_copy(update={"value": told_again(value.value, adapted=experts)}) if value.name == EXPERTS else value
        for value in resolved.values
    )
    return _with_rank(replace(resolved, values=values), _inherit_numbers(resolved, adapter, config))


def attach_published(model: PreTrainedModel, resolved: RunSettings, start: MethodContext, folder: Path) -> PeftModel:
    """Return `model` with the adapter published in `folder` attached, trainable; `resolved` comes from settings_from.

    Raises TuneryError(AdapterCorrupt) when its tensors are not those of its configuration.
    """
    adapted = attach(model, resolved, start)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        _check_shapes(weights, _own_shapes(adapted, resolved))
        result = set_peft_model_state_dict(adapted, weights)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _corrupt(f"{WEIGHTS_FILE} does not fit {CONFIG_FILE}: {first_line(error)}") from error
    # PEFT loads a prompt by its own way, and then calls it unexpected.
    prompt = resolved.method in PROMPT_LEARNING and set(weights) == {"prompt_embeddings"}
    own = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    missing = sorted(own.intersection(result.missing_keys))
    if not prompt and (missing or result.unexpected_keys):
        raise _corrupt(f"{WEIGHTS_FILE} lacks {missing[:3]}, and nothing asks for {result.unexpected_keys[:3]} in it")
    return adapted


def check_fits(
    model: PreTrainedModel, resolved: RunSettings, start: MethodContext, found: Mapping[str, Tensor]
) -> None:
    """Compare the tensors of an adapter made elsewhere with those that its configuration has on `model`.

    That may be on the meta device, and bears the adapter afterwards; `resolved` comes from settings_from. Raises
    TuneryError: AdapterCorrupt where a rank is not that of the configuration, or tensors are missing; BaseMismatch
    naming the first tensor that does not fit.
    """
    leaves = {path for path, module in model.named_modules() if not list(module.children())}
    try:
        wanted = _own_shapes(attach(model, resolved, start), resolved)
    except ValueError as error:  # PEFT's, where no module of the base bears such a name
        message = f"spec.continueFrom: {CONFIG_FILE} does not fit this base: {first_line(error)}"
        raise TuneryError(FailureReason.BASE_MISMATCH, message, OTHER_BASE) from error
    # First what is wrong on whatever base, as for a merge: another base would not mend it.
    ranks = (other_rank(name, tensor.shape, wanted[name]) for name, tensor in found.items() if name in wanted)
    odd = next(filter(None, ranks), None)
    if odd is not None:
        raise _corrupt(odd, *_AS_SAVED)
    for name, tensor in found.items():
        if name not in wanted:
            told = untold(name, leaves)
            if told is not None:
                raise _corrupt(told, *_AS_SAVED)
            text = f"{name[:300]}: this base with that {CONFIG_FILE} has no such tensor"
        elif tensor.shape != wanted[name]:
            text = misfit(name, tensor.shape, wanted[name])
        else:
            continue
        raise TuneryError(FailureReason.BASE_MISMATCH, f"spec.continueFrom: {text}", OTHER_BASE)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise _corrupt(lacking(missing), *_AS_SAVED)


def _check_shapes(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AdapterCorrupt naming the first tensor that has not the shape of its configuration, as a merge does."""
    for name, tensor in weights.items():
        if name in wanted and tuple(tensor.shape) != wanted[name]:
            raise _corrupt(other_rank(name, tensor.shape, wanted[name]) or misfit(name, tensor.shape, wanted[name]))


def _own_shapes(adapted: PeftModel, resolved: RunSettings) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what PEFT saves of an adapter, by the names that it saves them under."""
    if resolved.method in PROMPT_LEARNING:
        return {"prompt_embeddings": tuple(adapted.prompt_encoder[ADAPTER].embedding.weight.shape)}
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TuneryError(FailureReason.ADAPTER_MISSING, f"spec.continueFrom: there is no {CONFIG_FILE}") from error
    except ValueError as error:
        raise _corrupt(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _corrupt(f"{CONFIG_FILE} is not a JSON object")
    return config


def _check_kind(resolved: RunSettings, config: Mapping[str, Any]) -> None:
    found = (config.get("peft_type"), bool(config.get("use_dora")))
    if found == _KINDS.get(resolved.method):
        return
    fitting = [method.value for method, kind in _KINDS.items() if kind == found]
    fix = f"use method: {' or '.join(fitting)}" if fitting else "such an adapter cannot be trained on"
    theirs = fitting[0] if fitting else _NAMES.get(str(found[0]), found[0])
    raise _disagree("method", f"is {resolved.method}, but the adapter of continueFrom is {theirs}; {fix}")


def _check_variant(config: Mapping[str, Any]) -> None:
    """Refuse what no adapter of Tunery has, and what would be lost as it is trained on."""
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGED_BASE_INITS):
        raise _disagree(
            "continueFrom",
            f"init_lora_weights is {init[:64]!r}: the adapter is relative to a changed base; convert it to a plain "
            "LoRA first (path_initial_model_for_weight_conversion of PEFT's save_pretrained)",
            _ANOTHER,
        )
    if config.get("bias") not in (None, "none"):
        message = "bias is set in its configuration, and trained biases are not trained on"
        raise _disagree("continueFrom", message, _ANOTHER)
    for name in _NOT_TRAINED_ON:
        if config.get(name):
            message = f"{name} is set in its configuration, which cannot be trained on"
            raise _disagree("continueFrom", message, _ANOTHER)


def _inherit_prompt(resolved: RunSettings, config: Mapping[str, Any]) -> RunSettings:
    if resolved.prompt is None:
        raise ValueError(f"{resolved.method} needs its settings")
    block = "promptTuning" if resolved.method is Method.PROMPT_TUNING else "prefixTuning"
    field = f"{block}.virtualTokens"
    tokens = _agree(resolved, field, resolved.prompt.virtual_tokens, config.get("num_virtual_tokens"))
    return replace(
        resolved,
        prompt=replace(resolved.prompt, virtual_tokens=tokens, init_text=None),
        values=_noted(resolved.values, {field: tokens}),
    )


def _inherit_names(resolved: RunSettings, model: PreTrainedModel, config: Mapping[str, Any]) -> AdapterSettings:
    """Return the settings with the adapter's target modules and modules to save."""
    adapter = resolved.adapter
    theirs = tuple(sorted([*_their_modules(model, config), *(config.get("target_parameters") or ())]))
    if _from_manifest(resolved, "lora.targetModules"):
        asked = adapter.target_modules or ()
        ours = _ours(resolved, model, asked)
        if _paths(model, ours) != _paths(model, theirs):
            raise _differs("lora.targetModules", _list(ours), _list(theirs))
    saved = tuple(sorted(config.get("modules_to_save") or ()))
    if adapter.modules_to_save and set(adapter.modules_to_save) != set(saved):
        raise _differs("lora.modulesToSave", _list(adapter.modules_to_save), _list(saved))
    return replace(adapter, target_modules=theirs, modules_to_save=saved)


def _their_modules(model: PreTrainedModel, config: Mapping[str, Any]) -> Iterable[str]:
    """Return the modules that a configuration names; by their paths where it is a pattern, or for some layers only."""
    named = config.get("target_modules") or ()
    if named == "all-linear":
        return lora_targets(model, ["all-linear"], experts=False)[0]
    if not isinstance(named, str) and not any(config.get(field) is not None for field in _NARROWED):
        return tuple(named)
    fields = {"target_parameters": None, "modules_to_save": None} | dict(config)
    asked = SimpleNamespace(**fields)
    return tuple(path for path in linear_layers(model) if check_target_module_exists(asked, path))


def _ours(resolved: RunSettings, model: PreTrainedModel, asked: Iterable[str]) -> tuple[str, ...]:
    if resolved.method is Method.IA3:
        return ia3_targets(model, asked)[0]
    modules, experts = lora_targets(model, asked, experts=resolved.method in EXPERT_METHODS)
    return (*modules, *experts)


def _inherit_numbers(resolved: RunSettings, adapter: AdapterSettings, config: Mapping[str, Any]) -> AdapterSettings:
    for field, ours, key in (
        ("lora.rankPattern", adapter.rank_pattern, "rank_pattern"),
        ("lora.alphaPattern", adapter.alpha_pattern, "alpha_pattern"),
    ):
        if ours and dict(ours) != (config.get(key) or {}):
            raise _differs(field, dict(ours), config.get(key))
    return replace(
        adapter,
        rank=_agree(resolved, "lora.rank", adapter.rank, config.get("r", LoraConfig.r)),
        alpha=_number(_agree(resolved, "lora.alpha", adapter.alpha, config.get("lora_alpha", LoraConfig.lora_alpha))),
        use_rslora=_agree(resolved, "lora.useRslora", adapter.use_rslora, bool(config.get("use_rslora"))),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern={name: _number(alpha) for name, alpha in (config.get("alpha_pattern") or {}).items()},
    )


def _with_rank(resolved: RunSettings, adapter: AdapterSettings) -> RunSettings:
    """Return `resolved` with `adapter`, and the learning rate scaled anew where it is scaled with the rank."""
    changed: dict[str, Any] = {
        "lora.rank": adapter.rank,
        "lora.alpha": adapter.alpha,
        "lora.targetModules": _list(adapter.target_modules or ()),
        "lora.useRslora": str(adapter.use_rslora).lower(),
    }
    training = resolved.training
    if any(value.name == SCALED_LEARNING_RATE for value in resolved.values):
        rate = training.learning_rate * learning_rate_factor(adapter.rank) / learning_rate_factor(resolved.adapter.rank)
        training = replace(training, learning_rate=rate)
        changed[SCALED_LEARNING_RATE] = f"{rate:g}"
    return replace(resolved, adapter=adapter, training=training, values=_noted(resolved.values, changed))


def _agree(resolved: RunSettings, field: str, ours: Any, theirs: Any) -> Any:
    """Return the adapter's value; a manifest that says another one is refused."""
    if theirs is None:
        raise _corrupt(f"{CONFIG_FILE} does not say what {field} is", *_AS_SAVED)
    if _from_manifest(resolved, field) and ours != theirs:
        raise _differs(field, ours, theirs)
    return theirs


def _number(alpha: float) -> float:
    """Return a whole number as one, as a manifest and a checkpoint have it; 8.5 stays 8.5."""
    return int(alpha) if alpha == int(alpha) else alpha


def _from_manifest(resolved: RunSettings, field: str) -> bool:
    return any(value.name == field and value.source == SettingSource.MANIFEST for value in resolved.values)


def _noted(values: Iterable[ResolvedValue], changed: Mapping[str, Any]) -> tuple[ResolvedValue, ...]:
    """Return `values` with those of `changed` that the manifest did not say replaced, as taken from the adapter."""
    renewed = []
    for value in values:
        if value.name in changed and value.source != SettingSource.MANIFEST:
            value = ResolvedValue(name=value.name, value=str(changed[value.name])[:256], source=SettingSource.ADAPTER)
        renewed.append(value)
    return tuple(renewed)


def _paths(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    endings = list(names)
    layers = (*linear_layers(model), *expert_parameters(model))
    return {path for path in layers if any(ends_with(path, name) for name in endings)}


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _disagree(field: str, message: str, *remedies: Remedy) -> TuneryError:
    return TuneryError(FailureReason.INVALID_SPEC, f"spec.{field}: {message}", *remedies)


def _differs(field: str, ours: Any, theirs: Any) -> TuneryError:
    return _disagree(field, f"is {ours}, but the adapter of continueFrom has {theirs}; leave it out")


def _corrupt(message: str, *remedies: Remedy) -> TuneryError:
    return TuneryError(FailureReason.ADAPTER_CORRUPT, f"spec.continueFrom: {message}", *remedies)
