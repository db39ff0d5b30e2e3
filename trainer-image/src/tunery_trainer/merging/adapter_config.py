"""The adapter_config.json of a merged adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from tunery_trainer.merging.adapter_files import Adapter

KEPT: Final[tuple[str, ...]] = (
    "base_model_name_or_path",
    "revision",
    "task_type",
    "fan_in_fan_out",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
    "peft_version",
)
"""Fields that all inputs agree on and that the result takes over."""
SELECTION: Final[tuple[str, ...]] = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields that say which modules an adapter changes."""
Number = TypeVar("Number", int, float)
ModuleRank = tuple[int, float]
"""Rank and alpha of one module."""


def lora_config(adapters: Sequence[Adapter], ranks: Mapping[str, ModuleRank], *, lora_bias: bool) -> dict[str, Any]:
    """Return the config of a LoRA adapter with these ranks by module.

    The most frequent rank and alpha become `r` and `lora_alpha`; only modules that differ are named in patterns.
    """
    rank = _most_common([rank for rank, _ in ranks.values()])
    alpha = _most_common([alpha for _, alpha in ranks.values()])
    return {
        **_common(adapters, list(ranks)),
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {name: r for name, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {name: _number(a) for name, (_, a) in ranks.items() if a != alpha},
        "lora_dropout": 0.0,
        "lora_bias": lora_bias,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def ia3_config(adapters: Sequence[Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """Return the config of an IA3 adapter on these modules."""
    feedforward = {str(name) for adapter in adapters for name in _as_list(adapter.config.get("feedforward_modules"))}
    return {
        **_common(adapters, modules),
        "peft_type": "IA3",
        "feedforward_modules": sorted(feedforward),
        "init_ia3_weights": True,
    }


def _common(adapters: Sequence[Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """Take over what all agree on; where the inputs select different modules, name each module in full."""
    first = adapters[0].config
    config = {name: first[name] for name in KEPT if name in first}
    selections = [{name: adapter.config.get(name) for name in SELECTION} for adapter in adapters]
    if all(_same(selection, selections[0]) for selection in selections):
        config |= {name: value for name, value in selections[0].items() if value is not None}
    else:
        config["target_modules"] = sorted(modules)
    return {**config, "auto_mapping": None, "inference_mode": True}


def _same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(_sorted(one[name]) == _sorted(other[name]) for name in SELECTION)


def _sorted(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, list) else value


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value] if value else []


def _most_common(values: Sequence[Number]) -> Number:
    return Counter(values).most_common(1)[0][0]


def _number(value: float) -> int | float:
    """Write a whole number as one: other readers of the config expect an integer alpha."""
    return int(value) if value == int(value) else value
