"""Does an adapter fit the base model? From configs and headers alone: no library of tensors, no weight read.

What the base's files do not tell is left to the engine: refusing a good adapter is worse than asking it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE, Lineage
from tunery_api.reasons import FailureReason
from tunery_api.remedies import INTO_MODEL, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.headers import ADAPTER_HEADER, BadHeader, Tensor, read_header
from tunery_server.adapters.base import BaseModel, numbers
from tunery_server.adapters.fit_config import (
    OF_METHODS,
    SAVE_AGAIN,
    AdapterConfig,
    check_base_name,
    check_rank,
    read_config,
    unsupported,
)

_NAME: Final = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_[AB](?=\.weight$)|lora_embedding_[AB](?=$))(?:\.weight)?$"
)
_KEPT_OF_BASE: Final = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Weights of the base that PEFT may save beside an adapter; the engine reads over them."""
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_EXPERTS: Final = ".experts"
"""Experts have many layouts, in files and in classes."""
_OTHER_METHODS: Final = (
    ("lora_magnitude_vector", "DoRA"),
    ("lora_E", "ADALORA"),
    ("ia3_l", "IA3"),
    ("prompt_embeddings", "PROMPT_TUNING"),
    ("modules_to_save", "modules_to_save"),
    ("lora_B.bias", "lora_bias"),
)
_OTHER_SERVER: Final = retry(
    "Serve it from an AdapterServer of the base model that it was trained on, or train it on this one"
)


@dataclass(frozen=True)
class ServedBase:
    """What adapters are for."""

    model: BaseModel
    served_name: str
    max_rank: int


@dataclass(frozen=True)
class Fit:
    """What is known of an adapter that fits."""

    rank: int
    note: str | None = None
    """What should be known of it although it is served."""


@dataclass
class _Pair:
    """The two halves of one module's change."""

    a: Tensor | None = None
    b: Tensor | None = None
    embedding: bool = False


def check_fit(folder: Path, lineage: Lineage, base: ServedBase) -> Fit:
    """Return what is known of the adapter in `folder`.

    Raises TuneryError: AdapterUnsupported, RankTooHigh or BaseMismatch, naming the file, field or module.
    """
    config = read_config(folder / CONFIG_FILE)
    return check_parts(config, lambda: read_header(folder / WEIGHTS_FILE, ADAPTER_HEADER), lineage, base)


def check_parts(
    config: AdapterConfig, header: Callable[[], dict[str, Tensor]], lineage: Lineage, base: ServedBase
) -> Fit:
    """Return what is known of the adapter with this config and header, which is asked for last.

    Raises what `check_fit` raises, and what `header` raises beside BadHeader and OSError.
    """
    check_base_name(config, lineage, base.served_name)
    check_rank(config.rank, base.max_rank, base.model.slot_bytes(1))
    try:
        tensors = header()
    except BadHeader as error:
        raise unsupported(f"{WEIGHTS_FILE} {error}", SAVE_AGAIN) from error
    except OSError as error:
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"{WEIGHTS_FILE} cannot be read: {error.strerror}") from error
    pairs = _pairs(tensors, config)
    for module, pair in pairs.items():
        _check_pair(module, pair, config)
    _check_modules(pairs, config, base.model)
    return Fit(config.rank, _note(lineage, base.model))


def _pairs(tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    for name, tensor in sorted(tensors.items()):
        if name.endswith(_KEPT_OF_BASE) or _is_whole(name, config):
            continue
        found = _NAME.match(name)
        if found is None:
            raise _unknown(name, tensors)
        if tensor.dtype not in _FLOATS:
            raise unsupported(f"{WEIGHTS_FILE}: {name} is of type {tensor.dtype[:16]}, which no LoRA is", SAVE_AGAIN)
        pair = pairs.setdefault(found["module"], _Pair())
        pair.embedding = found["part"].startswith("lora_embedding")
        if found["part"].endswith("A"):
            pair.a = tensor
        else:
            pair.b = tensor
    if not pairs:
        raise unsupported(f"{WEIGHTS_FILE} holds no tensor of a LoRA", SAVE_AGAIN)
    return pairs


def _is_whole(name: str, config: AdapterConfig) -> bool:
    """Tell whether it is the weight or bias of a module of modules_to_save, of those that are served."""
    parts = name.split(".")
    return len(parts) > 1 and parts[-1] in ("weight", "bias") and parts[-2] in config.whole_modules


def _unknown(name: str, others: Iterable[str]) -> TuneryError:
    """Return the failure for a tensor that is not of a LoRA; one of them tells of which method they are."""
    for other in (name, *others):
        method = next((what for mark, what in _OTHER_METHODS if mark in other), None)
        if method is not None:
            what = f"{WEIGHTS_FILE}: {other[:200]} is of {method}; only LoRA is served"
            return unsupported(what, OF_METHODS.get(method, INTO_MODEL))
    return unsupported(f"{WEIGHTS_FILE}: {name[:200]} is no tensor of a LoRA, as PEFT saves them", SAVE_AGAIN)


def _check_pair(module: str, pair: _Pair, config: AdapterConfig) -> None:
    """Raise AdapterUnsupported where one half is missing, or both are not of one rank that the config has."""
    if pair.a is None or pair.b is None:
        lacks = "lora_A" if pair.a is None else "lora_B"
        raise unsupported(f"{WEIGHTS_FILE}: {module[:200]} has no {lacks}", SAVE_AGAIN)
    if _EXPERTS in module or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        return
    if pair.a.shape[0] != pair.b.shape[1]:
        message = f"lora_A of {module[:200]} has rank {pair.a.shape[0]}, its lora_B {pair.b.shape[1]}"
        raise unsupported(f"{WEIGHTS_FILE}: {message}", SAVE_AGAIN)
    if pair.a.shape[0] not in config.ranks:
        said = ", ".join(map(str, sorted(config.ranks)[:8]))
        message = f"{module[:200]} has rank {pair.a.shape[0]}, {CONFIG_FILE} says {said}"
        raise unsupported(f"{WEIGHTS_FILE}: {message}", SAVE_AGAIN)


def _check_modules(pairs: dict[str, _Pair], config: AdapterConfig, base: BaseModel) -> None:
    """Raise BaseMismatch at the first module that the base has not, or has with another width."""
    if not base.tensors:
        return
    if not any(base.module(name) or base.has_kind(name) or name.endswith("lm_head") for name in pairs):
        first = next(iter(pairs))
        raise _mismatch(f"the base has no {first[:200]}, and no other module of it: it is of another architecture")
    for name, pair in pairs.items():
        found = base.module(name)
        if _EXPERTS in name:
            continue
        if found is None:
            _check_missing(name, base)
        elif found.weight is not None:
            _check_widths(name, pair, found.weight, config.fan_in_fan_out or base.transposed, base)


def _check_missing(name: str, base: BaseModel) -> None:
    """Raise BaseMismatch where the base's files say that there is no such module, or no such layer."""
    if name.rsplit(".", 1)[-1] == "lm_head":
        return  # tied to the embedding, as likely as not
    there = base.layers_of(name)
    layer = numbers(name).partition(".")[0]
    if there and layer:
        count = max(int(each.partition(".")[0]) for each in there) + 1
        if int(layer) >= count:
            raise _mismatch(f"{name[:200]} is of layer {layer}, and the base has {count} layers")
    if base.tells_all:
        raise _mismatch(f"the base has no {name[:200]}")


def _check_widths(name: str, pair: _Pair, weight: tuple[int, int], either_way: bool, base: BaseModel) -> None:
    """Raise BaseMismatch where the halves are not as wide as the base's weight, which is rows by columns."""
    if pair.a is None or pair.b is None or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        return
    rows, columns = weight
    takes, gives = pair.a.shape[1], pair.b.shape[0]
    if pair.embedding:
        rows, columns = columns, rows
    vocabulary = {rows, columns, base.vocabulary}
    if pair.embedding and takes in vocabulary - {rows}:
        takes = columns  # files may hold more rows than there are tokens
    if name.endswith("lm_head") and gives in vocabulary - {columns}:
        gives = rows
    fits = (takes, gives) == (columns, rows) or (either_way and (takes, gives) == (rows, columns))
    if fits:
        return
    if either_way and takes == rows:
        rows, columns = columns, rows
    if takes != columns:
        raise _mismatch(f"{name[:200]} takes {takes} inputs, the base has {columns}")
    raise _mismatch(f"{name[:200]} gives {gives} outputs, the base has {rows}")


def _mismatch(message: str) -> TuneryError:
    return TuneryError(FailureReason.BASE_MISMATCH, message, _OTHER_SERVER)


def _note(lineage: Lineage, base: BaseModel) -> str | None:
    """Return what should be known: that it was trained on the quantised base, or on another version of it."""
    notes = []
    if lineage.quantization is not None:
        notes.append(
            f"it was trained on the base quantised ({lineage.quantization}) and is served on the base as it is; "
            "AdapterMerge into: Model gives exactly what was trained"
        )
    trained = lineage.model
    if trained is not None:
        for what, then, now in (
            ("revision", trained.revision, base.revision),
            ("digest", trained.digest, base.digest),
        ):
            if then and now and then != now:
                notes.append(f"it was trained on {what} {then[:12]} of the base, and {now[:12]} is served")
    return "; ".join(notes) or None
