"""Checks of single fields: each gives the value back or raises a RowError that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunery_trainer.data.nesting import TOO_DEEP, too_deep
from tunery_trainer.data.rows import JsonObject, RowError, json_type


def text_field(row: Mapping[str, Any], key: str, at: str = "", *, blank: bool = False) -> str:
    """The string at `key`; `at` is the path of `row` in messages; white space alone is refused unless `blank`."""
    field = f"{at}{key}"
    if key not in row:
        raise RowError(field, "is missing")
    return text_value(row[key], field, blank=blank)


def text_value(value: Any, field: str, *, blank: bool = False) -> str:
    """`value` as a string that can be encoded; white space alone is refused unless `blank`."""
    if not isinstance(value, str):
        raise RowError(field, f"must be a string, found {json_type(value)}")
    if not blank and (not value or value.isspace()):
        raise RowError(field, "must not be empty")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise RowError(field, "holds half of a surrogate pair, which is not text") from error
    return value


def optional_text(row: Mapping[str, Any], key: str, at: str = "") -> str:
    """The string at `key`, empty where it is missing or null."""
    return "" if row.get(key) is None else text_field(row, key, at, blank=True)


def list_field(row: Mapping[str, Any], key: str, at: str = "") -> list[JsonObject]:
    """The list of objects at `key`, which must not be empty; a string that holds such a list as JSON is parsed."""
    field = f"{at}{key}"
    if key not in row:
        raise RowError(field, "is missing")
    value = parsed(row[key], field)
    if not isinstance(value, list):
        raise RowError(field, f"must be an array, found {json_type(value)}")
    if not value:
        raise RowError(field, "must not be empty")
    return [item if isinstance(item, dict) else object_value(item, f"{field}[{n}]") for n, item in enumerate(value)]


def object_value(value: Any, field: str) -> JsonObject:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise RowError(field, f"must be an object, found {json_type(value)}")
    return value


def parsed(value: Any, field: str) -> Any:
    """`value`, or what it holds as JSON where it is a string (CSV cells, OpenAI's tool arguments)."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError as error:
        raise RowError(field, f"must hold JSON: {error}") from error
    except RecursionError as error:
        raise RowError(field, TOO_DEEP) from error
    if too_deep(found, value.count("[") + value.count("{")):
        raise RowError(field, TOO_DEEP)
    return found


def json_value(value: Any, field: str) -> Any:
    """`value` as JSON has it in text that can be encoded: what templates write down, and parquet may hold as dates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except TypeError as error:
        raise RowError(field, f"holds what JSON has not: {error}") from error
    except UnicodeEncodeError as error:
        raise RowError(field, "holds half of a surrogate pair, which is not text") from error
    return value
