"""A folder as PEFT saves an adapter, without a manifest: what of it is read, and what is refused before it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.headers import ADAPTER_HEADER, BadHeader, Tensor, header_of
from tunery_common.inputs.name_patterns import broken_pattern
from tunery_common.storage import ObjectMissing, StorePath
from tunery_common.storage.claims import CLAIM_NAME

PICKLED: Final = "adapter_model.bin"
LARGEST_CONFIG: Final = 16_000_000
"""Bytes."""
CONVERT: Final = retry(
    'If you trust the file, write safetensors next to it: python -c "import torch; from safetensors.torch import '
    "save_file; w = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, 'adapter_model.safetensors', {'format': 'pt'})\""
)
_SAVE_AGAIN: Final = retry("Save the adapter again with PEFT's save_pretrained, and upload that")
_Task = Literal["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e9, le=1e9)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Row = Annotated[int, Field(strict=True, ge=0)]


class _Config(BaseModel):
    """The fields that are read of a configuration that others wrote; all else is left as it is.

    What PEFT fills in may be left out, and is then what PEFT takes; null it cannot be.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: _Task | None = None
    r: Count = 8
    lora_alpha: Number = 8
    lora_dropout: Annotated[Number, Field(ge=0, le=1)] = 0.0
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Number] | None = None
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    feedforward_modules: list[str] | str | None = None
    init_lora_weights: bool | str | None = None
    trainable_token_indices: list[Row] | dict[str, list[Row]] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    fan_in_fan_out: bool | None = None
    init_r: Count = 12
    num_virtual_tokens: Count | None = None

    @field_validator("peft_type")
    @classmethod
    def _is_a_method(cls, found: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", found):
            raise ValueError(f"{found[:100]!r} is no method's name in PEFT, such as LORA")
        return found

    @model_validator(mode="after")
    def _goes_together(self) -> _Config:
        broken = broken_pattern(self.__dict__)
        if broken is not None:
            raise ValueError(broken)
        if self.target_modules in ([], "") and not self.target_parameters:
            raise ValueError("target_modules: is empty")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform: goes with a list of target_modules, not with a pattern")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern: goes with layers_to_transform only")
        return self


class _LowRank(_Config):
    rank_pattern: dict[str, Count] | None = None


class _AdaLora(_Config):
    rank_pattern: dict[str, list[bool]] | None = None
    """Which of the singular values that training began with are left, by the name of their tensor."""


def read_config(place: StorePath) -> bytes:
    """Return the bytes of adapter_config.json, at most a few megabytes.

    Raises TuneryError: AdapterMissing where there is none, AdapterUnsupported where the weights are a pickle,
    AdapterCorrupt.
    """
    if place.store.head(place.key(CLAIM_NAME)) is not None:
        message = f"{place.uri} is being written by Tunery, or was when that ended: it has no manifest.json yet"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message, retry("Let the job that publishes there succeed"))
    try:
        content = place.store.read_range(place.key(CONFIG_FILE), 0, LARGEST_CONFIG + 1)
    except ObjectMissing as error:
        message = f"{place.uri} holds no adapter: it has neither a manifest.json of Tunery nor {CONFIG_FILE}"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message) from error
    if len(content) > LARGEST_CONFIG:
        raise _corrupt(place, f"{CONFIG_FILE} has more than {LARGEST_CONFIG:,} bytes, which no configuration has")
    return content


def parse_config(place: StorePath, content: bytes) -> dict[str, Any]:
    """Return what adapter_config.json says; raises TuneryError(AdapterCorrupt), which names the field."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _corrupt(place, f"{CONFIG_FILE} is not JSON") from error
    if not isinstance(found, dict):
        raise _corrupt(place, f"{CONFIG_FILE} is not a JSON object")
    try:
        (_AdaLora if found.get("peft_type") == "ADALORA" else _LowRank).model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        said = [".".join(str(part)[:100] for part in first["loc"]), first["msg"].removeprefix("Value error, ")[:300]]
        raise _corrupt(place, ": ".join([CONFIG_FILE, *filter(None, said)])) from error
    return found


def read_header(place: StorePath) -> Mapping[str, Tensor]:
    """Return the tensors of adapter_model.safetensors by name, by its header, which must fit its size.

    Raises TuneryError: AdapterMissing, AdapterUnsupported where there is a pickle only, AdapterCorrupt.
    """
    store, key = place.store, place.key(WEIGHTS_FILE)
    entry = store.head(key)
    if entry is None and store.head(place.key(PICKLED)) is not None:
        message = f"{place.uri} has {PICKLED} and no {WEIGHTS_FILE}: a pickle may hold code, and is not read"
        raise TuneryError(FailureReason.ADAPTER_UNSUPPORTED, message, CONVERT)
    if entry is None:
        raise TuneryError(FailureReason.ADAPTER_MISSING, f"{place.uri} has no {WEIGHTS_FILE}")
    try:
        tensors = header_of(lambda at, length: store.read_range(key, at, length), entry.size, ADAPTER_HEADER)
    except BadHeader as error:
        raise _corrupt(place, f"{WEIGHTS_FILE} {error}") from error
    odd = next((name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS), None)
    if odd is not None:
        raise _corrupt(place, f"{WEIGHTS_FILE}: {odd[:200]} is of type {tensors[odd].dtype[:16]}, which no adapter has")
    if not tensors:
        raise _corrupt(place, f"{WEIGHTS_FILE} holds no tensor")
    return tensors


def _corrupt(place: StorePath, what: str) -> TuneryError:
    return TuneryError(FailureReason.ADAPTER_CORRUPT, f"{place.uri}: {what}", _SAVE_AGAIN)
