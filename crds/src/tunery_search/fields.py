"""Provide the searchable fields of a template: their types, and the text of their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from tunery_api.errors import did_you_mean
from tunery_api.fields import ApiModel, decimal_text
from tunery_api.lorasweep import TrialTemplate
from tunery_search.dimensions import DECIMALS, plain

_ALIKE: Final = "it doesn't change what a trial learns; set it in the template, for all trials"
_MEASURED: Final = "losses of trials that are measured in different ways cannot be compared; set it in the template"
_TEXT: Final = "it isn't a single value; set it in the template, for all trials"

NOT_SEARCHABLE: Final[Mapping[str, str]] = {
    "model": "losses per token of two base models cannot be compared; use one sweep for each",
    "dataset": "trials must learn from and be measured on the same rows; use one sweep for each data set",
    "task": "losses of two tasks cannot be compared; use one sweep for each",
    "preference": "it is a part of the loss itself, and losses of different kinds cannot be compared; "
    "set it in the template",
    "evaluation": _MEASURED,
    "training.maxLength": "other tokens would be measured, and such losses cannot be compared; set it in the template",
    "training.loss": "other tokens would be measured, and such losses cannot be compared; set it in the template",
    "training.seed": "it draws the held-out rows: losses on others cannot be compared; set it in the template",
    "training.onOutOfMemory": _ALIKE,
    "training.parallelism": _ALIKE,
    "lora.modulesToSave": _TEXT,
    "lora.rankPattern": _TEXT,
    "lora.alphaPattern": _TEXT,
    "promptTuning.initText": _TEXT,
    "continueFrom": "all trials start from the same weights; set it in the template",
    "diagnosis": _ALIKE,
    "checkpoint": _ALIKE,
    "tracking": _ALIKE,
    "cache": _ALIKE,
    "resources": _ALIKE,
    "scheduling": _ALIKE,
    "retries": _ALIKE,
    "activeDeadlineSeconds": _ALIKE,
    "output": "each trial has its own location below spec.output; remove it",
    "suspend": "the sweep sets it; use spec.suspend",
    "preflight": "the sweep sets it; use spec.preflight",
    "ttlSecondsAfterFinished": "the sweep sets it; use spec.ttlSecondsAfterFinished",
    "stop": "the sweep sets it to stop trials; remove it",
    "onStop": "the sweep sets it to stop trials; remove it",
    "resumeFrom": "all trials start from the same weights; remove it",
}
"""Fields and blocks of a LoRAJob that can't be searched, with the reason."""


class FieldType(Enum):
    """The type of a searchable field."""

    INTEGER = auto()
    NUMBER = auto()
    ENUM = auto()
    BOOLEAN = auto()
    LIST = auto()
    """A list of names, joined by commas in its text."""


NUMERIC: Final = frozenset({FieldType.INTEGER, FieldType.NUMBER})
"""The types of fields that take a range."""


def _type_at(path: str) -> FieldType:
    """Return the type of the field at a path, from the annotation of its class.

    Raises KeyError if there is no such field, and ValueError if its type can't be searched.
    """
    model: Any = TrialTemplate
    for name in path.split("."):
        names = {info.alias: key for key, info in model.model_fields.items()}
        hint = get_type_hints(model)[names[name]]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        model = options[0]
    for annotation, found in ((int, FieldType.INTEGER), (float, FieldType.NUMBER), (bool, FieldType.BOOLEAN)):
        if model is annotation:
            return found
    if get_origin(model) is list:
        return FieldType.LIST
    if isinstance(model, type) and issubclass(model, Enum):
        return FieldType.ENUM
    raise ValueError(f"{path}: {model} cannot be searched")


_BLOCKS: Final = ("lora", "adalora", "promptTuning", "prefixTuning", "quantization", "training")
"""Blocks whose fields can be searched, except those of NOT_SEARCHABLE."""


def _searched() -> Iterator[str]:
    """Yield the paths of the searchable fields."""
    yield from ("method", "preset")
    blocks = {info.alias: info.annotation for info in TrialTemplate.model_fields.values()}
    for block in _BLOCKS:
        model = next(
            part
            for part in (blocks[block], *get_args(blocks[block]))
            if isinstance(part, type) and issubclass(part, ApiModel)
        )
        paths = (f"{block}.{info.alias}" for info in model.model_fields.values())
        yield from (path for path in paths if path not in NOT_SEARCHABLE)


FIELD_TYPES: Final[Mapping[str, FieldType]] = {path: _type_at(path) for path in _searched()}
"""The searchable fields by path, with their types."""


def path_problem(path: str) -> str | None:
    """Return why a field can't be searched, with the fix. Return None if it can."""
    if path in FIELD_TYPES:
        return None
    for refused, reason in NOT_SEARCHABLE.items():
        if path == refused or path.startswith(f"{refused}."):
            return f"{refused} cannot be searched: {reason}"
    inside = [known for known in FIELD_TYPES if known.startswith(f"{path}.")]
    if inside:
        return f"{path} is a block; write one of its fields: {', '.join(inside)}"
    plain_path = path.removeprefix("spec.").removeprefix("template.")
    if plain_path in FIELD_TYPES:
        return f"{path} must be relative to the template: write {plain_path}"
    return f"{path} isn't a searchable field{_meant(plain_path) or '; searchable: ' + ', '.join(FIELD_TYPES)}"


def _meant(path: str) -> str:
    """Return `; did you mean …?` for an unknown path: by its last part, then by the initials of one (lr, wd).

    If the block is right, only the last part is compared: as whole paths, all fields of a block are similar.
    """
    block, _, word = path.rpartition(".")
    by_word = {known: known.rpartition(".")[2] for known in FIELD_TYPES}
    inside = {known: last for known, last in by_word.items() if known.rpartition(".")[0] == block} if block else {}
    for found in (
        [known for known, last in by_word.items() if last == word],
        [known for known, last in (inside or by_word).items() if _initials(last) == word.lower()],
    ):
        if len(found) == 1:
            return f"; did you mean {found[0]}?"
    if not inside:
        return did_you_mean(path, FIELD_TYPES)
    close = did_you_mean(word, inside.values())
    return close.replace("mean ", f"mean {block}.") or f"; fields of {block}: {', '.join(inside.values())}"


def _initials(word: str) -> str:
    """Return the initials of a field name: lr of learningRate."""
    return "".join(letter for place, letter in enumerate(word) if not place or letter.isupper()).lower()


def canonical(path: str, text: str) -> str:
    """Return a value as in the manifest of a trial and the status of the sweep: each value has one text.

    Raises ValueError, with a message that begins with "must", if the text isn't of the field's type.
    """
    kind = FIELD_TYPES[path]
    if kind in NUMERIC:
        return _number(kind, text)
    if kind is FieldType.BOOLEAN and text not in _SWITCH:
        raise ValueError(f"must be true or false, is {text!r}")
    if kind is FieldType.LIST:
        names = [name.strip() for name in text.split(",")]
        if not all(names):
            raise ValueError(f"must be names joined by commas, is {text!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"must have each name once, is {text!r}")
        return ",".join(names)
    return text


_SWITCH: Final = {"true": True, "false": False}
_DECIMAL: Final = re.compile(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")
_WHOLE: Final = re.compile(r"[0-9]+")
_BEYOND: Final = 1e32
"""Upper limit of a field's value: its text has a limited number of digits."""


def _number(kind: FieldType, text: str) -> str:
    if kind is FieldType.INTEGER:
        if not _WHOLE.fullmatch(text):
            how = ", in digits alone" if _DECIMAL.fullmatch(text) and float(text).is_integer() else ""
            raise ValueError(f"must be a whole number of at least 0{how}, is {text!r}")
        return str(int(text))
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"must be a number of at least 0, is {text!r}")
    value = float(text)
    if value >= _BEYOND:
        raise ValueError(f"must be below 1e32, is {text!r}")
    if float(plain(value)) != value:
        raise ValueError(f"must have at most {DECIMALS} digits after the point, is {text!r}")
    return plain(value)


def with_values(template: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a template's dict with the values, each as its field takes it.

    The values are canonical texts.
    """
    result = dict(template)
    for path, text in values.items():
        *blocks, last = path.split(".")
        block = result
        for name in blocks:
            block[name] = block = dict(block.get(name, {}))
        block[last] = _in_manifest(FIELD_TYPES[path], text)
    return result


def _in_manifest(kind: FieldType, text: str) -> float | bool | str | list[str]:
    if kind in NUMERIC:
        return int(text) if text.isdecimal() else float(text)
    if kind is FieldType.BOOLEAN:
        return _SWITCH[text]
    return text.split(",") if kind is FieldType.LIST else text


def read_value(spec: Mapping[str, Any], path: str) -> str | None:
    """Return the value at a path of a manifest's spec as canonical text. Return None if it is unset."""
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return decimal_text(value) if isinstance(value, float) else str(value)
