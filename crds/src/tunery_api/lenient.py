"""Parse untrusted JSON, from a pod or another version, as a model: drop the invalid parts and retain the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

_ROUNDS: Final = 8
"""Rounds that drop single values; later rounds drop whole top-level fields."""
_MAX_INT: Final = 2**63 - 1
"""The largest integer of the API server."""


def parse_lenient(model: type[Model], text: str) -> Model | None:
    """Return the model of a JSON text without its invalid parts; None if the text is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    valid = without_invalid(model, value)
    return None if valid is None else model.model_validate(valid)


def without_invalid(model: type[BaseModel], value: Mapping[str, Any], *, strict: bool = False) -> dict[str, Any] | None:
    """Return `value` without the parts that `model` rejects; None if a required field is missing.

    `strict` accepts exact JSON types only, as the API server does.
    """
    rest: dict[str, Any] = _bounded(value)
    for round_ in range(_ROUNDS + len(rest) + 1):
        errors = _errors(model, rest, strict)
        if not errors:
            return rest
        for error in {_top(error): error for error in errors}.values():
            path = [*error["loc"]]
            if error["type"] == "missing":
                path.pop()
            if not path:
                return None
            _drop(rest, path if round_ < _ROUNDS else path[:1])
    return None


def _errors(model: type[BaseModel], value: dict[str, Any], strict: bool) -> list[ErrorDetails]:
    try:
        if strict:
            model.model_validate_json(json.dumps(value), strict=True)
        else:
            model.model_validate(value)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return []


def _top(error: ErrorDetails) -> str:
    return str(error["loc"][0]) if error["loc"] else ""


def _drop(value: Any, path: list[str | int]) -> None:
    """Delete the value at `path`, or its closest existing parent."""
    parent, last = value, path[0]
    for key in path[1:]:
        child = parent[last]
        if not _has(child, key):
            break
        parent, last = child, key
    if _has(parent, last):
        del parent[last]


def _has(value: Any, key: str | int) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


def _bounded(value: Any) -> Any:
    """Return a copy without numbers that exceed the API server's integers."""
    if isinstance(value, Mapping):
        return {name: _bounded(item) for name, item in value.items() if not _too_large(item)}
    if isinstance(value, (list, tuple)):
        return [_bounded(item) for item in value if not _too_large(item)]
    return value


def _too_large(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) <= _MAX_INT
