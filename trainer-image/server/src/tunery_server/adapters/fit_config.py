"""What an adapter_config.json says of what the engine cannot serve: its method, its rank, its base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunery_api.manifest import CONFIG_FILE, Lineage
from tunery_api.reasons import FailureReason
from tunery_api.remedies import INTO_MODEL, Remedy, retry
from tunery_api.serving import LINEAR, PEFT_ONLY, Unservable, base_problem, rank_problem
from tunery_common.errors import TuneryError

LARGEST_CONFIG: Final = 16_000_000
SAVE_AGAIN: Final = retry("Save it again with PEFT's save_pretrained, and publish that")
_CONVERT: Final = retry("Convert it to a LoRA with PEFT's path_initial_model_for_weight_conversion, and publish that")
_PLAIN_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga", "true", "false", ""})
"""Ways to begin that leave the base model as it is; after any other the adapter is relative to a changed base."""
_SERVED_WHOLE: Final = frozenset({"classifier", "score"})
"""Modules of modules_to_save that the engine takes."""
OF_METHODS: Final[Mapping[str, Remedy]] = {
    "ADALORA": LINEAR,
    "IA3": INTO_MODEL,
    "PROMPT_TUNING": PEFT_ONLY,
    "MULTITASK_PROMPT_TUNING": PEFT_ONLY,
    "P_TUNING": PEFT_ONLY,
    "PREFIX_TUNING": PEFT_ONLY,
    "ADAPTION_PROMPT": PEFT_ONLY,
}
"""What to do with an adapter of another method; for any other, into a model."""
_REFUSED: Final[Mapping[str, tuple[str, Remedy]]] = {
    "use_dora": ("DoRA, which no engine serves as an adapter", INTO_MODEL),
    "lora_bias": ("a LoRA with biases (lora_bias), which the engine does not serve", INTO_MODEL),
    "use_qalora": ("QALoRA, which the engine does not serve", INTO_MODEL),
    "use_bdlora": ("a block-diagonal LoRA (use_bdlora), which the engine does not serve", INTO_MODEL),
    "layer_replication": (
        "an adapter that repeats layers (layer_replication), which the engine does not serve",
        INTO_MODEL,
    ),
    "alora_invocation_tokens": (
        "an activated LoRA (alora_invocation_tokens), which the engine does not serve",
        retry("Train a LoRA without alora_invocation_tokens"),
    ),
    "trainable_token_indices": (
        "an adapter with trained tokens (trainable_token_indices), which are not served",
        INTO_MODEL,
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What counts of an adapter_config.json."""

    rank: int
    """The largest of any module."""
    ranks: frozenset[int]
    """Those that its modules may have."""
    base_name: str | None
    fan_in_fan_out: bool
    whole_modules: tuple[str, ...]
    """Those of modules_to_save."""


def unsupported(message: str, remedy: Remedy = INTO_MODEL) -> TuneryError:
    """Return the failure of an adapter that the engine cannot serve."""
    return TuneryError(FailureReason.ADAPTER_UNSUPPORTED, message, remedy)


def read_config(path: Path) -> AdapterConfig:
    """Return what an adapter_config.json says; raises TuneryError(AdapterUnsupported) naming the field."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"{path} cannot be read: {error.strerror}") from error
    return parse_config(content)


def parse_config(content: bytes) -> AdapterConfig:
    """Return what the bytes of an adapter_config.json say; raises TuneryError(AdapterUnsupported) naming the field."""
    try:
        found = json.loads(content) if len(content) <= LARGEST_CONFIG else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unsupported(f"{CONFIG_FILE} is no JSON object", SAVE_AGAIN)
    for problem in _problems(found):
        raise problem
    ranks = _ranks(found)
    base = found.get("base_model_name_or_path")
    return AdapterConfig(
        max(ranks),
        frozenset(ranks),
        base if isinstance(base, str) and base else None,
        bool(found.get("fan_in_fan_out")),
        tuple(found.get("modules_to_save") or ()),
    )


def _problems(found: Mapping[str, Any]) -> Iterator[TuneryError]:
    """Yield what stands in the way, the method first."""
    method = str(found.get("peft_type") or "LORA").rsplit(".", 1)[-1].upper()
    if method != "LORA":
        remedy = OF_METHODS.get(method, INTO_MODEL)
        yield unsupported(f"its method is {method} ({CONFIG_FILE}: peft_type); only LoRA is served", remedy)
    for field, (what, remedy) in _REFUSED.items():
        if found.get(field):
            yield unsupported(f"it is {what} ({CONFIG_FILE}: {field})", remedy)
    init = str(found.get("init_lora_weights", "")).lower()
    if init not in _PLAIN_INITS:
        yield unsupported(f"it is relative to a base that PEFT has changed (init_lora_weights: {init[:64]})", _CONVERT)
    if found.get("bias") not in (None, "none"):
        yield unsupported(f"it has trained biases ({CONFIG_FILE}: bias), which are not served")
    whole = found.get("modules_to_save") or []
    if not isinstance(whole, list) or not all(isinstance(name, str) for name in whole):
        yield unsupported(f"{CONFIG_FILE}: modules_to_save is no list of names", SAVE_AGAIN)
    elif more := sorted(set(whole) - _SERVED_WHOLE):
        yield unsupported(f"it has whole modules ({CONFIG_FILE}: modules_to_save: {', '.join(more)[:128]})")
    for field in ("r", "lora_alpha", "target_modules"):
        if field not in found:
            yield unsupported(f"{CONFIG_FILE} has no {field}, which the engine needs", SAVE_AGAIN)


def _ranks(found: Mapping[str, Any]) -> list[int]:
    patterns = found.get("rank_pattern") or {}
    ranks = [found["r"], *(patterns.values() if isinstance(patterns, dict) else ["?"])]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise unsupported(f"{CONFIG_FILE}: r and rank_pattern must be whole numbers above 0", SAVE_AGAIN)
    return ranks


def check_rank(rank: int, largest: int, slot: int | None) -> None:
    """Raise RankTooHigh where `rank` is above `largest`; `slot` are the bytes that one of rank 1 takes."""
    _raise_for(rank_problem(rank, largest, slot))


def check_base_name(config: AdapterConfig, lineage: Lineage, served_name: str) -> None:
    """Raise BaseMismatch where the adapter names a base, and another than the server's."""
    names = [name for name in (lineage.served_name, config.base_name) if name]
    if served_name not in names:
        _raise_for(base_problem(names[0][:200] if names else None, served_name))


def _raise_for(problem: Unservable | None) -> None:
    if problem is not None:
        raise TuneryError(problem.reason, problem.message, problem.remedy)
