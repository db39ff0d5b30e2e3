"""What the API server makes of an object: null is absent, and "5" is no number; the schema's reader is more lenient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from tunery_api.errors import FieldError
from tunery_api.schema_errors import shown

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAMES: Final = ("name", "generateName")
_LONGEST_NAME: Final = 253
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")


def as_stored(model: type[BaseModel], value: Any, path: str = "spec") -> tuple[Any, list[FieldError]]:
    """Return what is stored of a value of `model`, and what is no number or boolean where one must be."""
    errors: list[FieldError] = []
    return _stored(model, value, path, errors), errors


def _stored(annotation: Any, value: Any, path: str, errors: list[FieldError]) -> Any:
    kinds = list(_kinds(annotation))
    for kind in kinds:
        inner = get_args(kind)
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, BaseModel):
            return _block(kind, value, path, errors)
        if isinstance(value, Mapping) and get_origin(kind) is dict:
            there = {name: item for name, item in value.items() if item is not None}
            return {name: _stored(inner[1], item, f"{path}.{name}", errors) for name, item in there.items()}
        if isinstance(value, list) and get_origin(kind) is list:
            return [_stored(inner[0], item, f"{path}[{index}]", errors) for index, item in enumerate(value)]
    if int in kinds and isinstance(value, (str, bool)):
        plain = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
        errors.append(FieldError(path, _misfit("a whole number", value, plain=plain)))
    if bool in kinds and value is not None and not isinstance(value, bool):
        errors.append(FieldError(path, _misfit("true or false", value, plain=value in ("true", "false"))))
    return value


def _block(model: type[BaseModel], value: Mapping[Any, Any], path: str, errors: list[FieldError]) -> dict[Any, Any]:
    """Return a block without the fields that are null; what is no field stays, and is refused later."""
    by_name = {key: info for name, info in model.model_fields.items() for key in (name, info.alias or name)}
    found = {}
    for name, item in value.items():
        info = by_name.get(name)
        if info is None:
            found[name] = item
        elif item is not None:
            found[name] = _stored(info.annotation, item, f"{path}.{name}", errors)
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a field may have."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    else:
        yield annotation


def _misfit(wanted: str, value: Any, *, plain: bool) -> str:
    """Return what a value must be; `plain`: it would be without its quotes."""
    return f"must be {wanted}{f': write it without quotes, {value}' if plain else f', is {shown(value)}'}"


def metadata_errors(obj: Mapping[Any, Any]) -> Iterator[FieldError]:
    """Yield what the API server would refuse of an object before it looks at its spec."""
    if obj.get("apiVersion") is None:
        yield FieldError("apiVersion", "is missing")
    metadata = obj.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        yield FieldError("metadata", f"must be a mapping, is {shown(metadata)}")
        return
    names = {key: value for key, value in (metadata or {}).items() if key in _NAMES and value not in (None, "")}
    if not names:
        yield FieldError("metadata.name", "is required")
    for key, value in names.items():
        # What the API server appends to the latter is letters and digits.
        whole = f"{value}x" if key == "generateName" else value
        if not isinstance(value, str):
            yield FieldError(f"metadata.{key}", f"must be a string, is {shown(value)}")
        elif len(whole) > _LONGEST_NAME or not _DNS_NAME.fullmatch(whole):
            yield FieldError(
                f"metadata.{key}",
                "must be a DNS name (at most 253 lower-case letters, digits, - and ., each part beginning and ending "
                f"with a letter or digit), is {shown(value)}",
            )
