"""Define the errors of a manifest, and word schema errors: the field, what is wrong, what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel
from pydantic_core import ErrorDetails

_MAX_WITHOUT_UNIT: Final = 256
"""A smaller number without a unit probably means GiB, a larger one MiB."""
_MAX_VALUE_LENGTH: Final = 60
"""The most characters of an invalid value in a message."""

_GLOB_CHARACTERS: Final = "/*?[]"
"""Characters that a path keeps when it becomes a URI."""
_LOCAL_EXAMPLES: Final = {"model": "file://folder", "dataset": "file://data.jsonl", "storage": "file://folder"}
"""Examples of file:// URIs."""
_URI_SCHEMES: Final = {
    "model": "hf://owner/name, s3://bucket/prefix or pvc://claim/path",
    "dataset": "hf://owner/name, s3://bucket/key, pvc://claim/path or configmap://name/key",
    "storage": "s3://bucket/prefix",
}

_VALUE_FIELDS: Final = frozenset({"choices", "initial", "in"})
"""Fields of a sweep with values of other fields: strings, numbers, or booleans."""
_OBJECT_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA_NAMES: Final = ("name", "generateName")
_METADATA_STRINGS: Final = ("namespace", "uid", "resourceVersion", "selfLink", "creationTimestamp", "deletionTimestamp")
_METADATA_TYPES: Final[Mapping[str, tuple[type, str]]] = {
    **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), (int, "a whole number")),
    **dict.fromkeys(("finalizers", "ownerReferences", "managedFields"), (list, "a list")),
    **dict.fromkeys(("labels", "annotations"), (Mapping, "a mapping")),
}
"""The types of metadata fields that aren't strings."""
_DNS_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")
_MAX_NAME_LENGTH: Final = 253
_LABEL_VALUE: Final = re.compile("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE_RULE: Final = "at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit"
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"


class FieldError(NamedTuple):
    """The error of one field: `spec.lora.rank` and `must be at least 1, is 0`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidSpec(Exception):
    """Raised for an invalid manifest, with all of its errors."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if one of `known` is close to `word`, ignoring case; else an empty string."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def field_error(detail: ErrorDetails, model: type[BaseModel], local: bool) -> FieldError:
    """Return the error of a field of `model`; `local` allows file:// URIs.

    `detail` is one of pydantic's errors.
    """
    location = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    # A URI that is too short may be non-empty.
    if detail["type"] in ("string_pattern_mismatch", "string_too_short") and location[-1] == "uri" and detail["input"]:
        kind = _uri_kind(location, str(detail.get("ctx", {}).get("pattern", "")))
        return FieldError(path, _uri_message(str(detail["input"]), kind, local))
    return FieldError(path, _message(detail, location, model))


def _uri_message(uri: str, kind: str, local: bool) -> str:
    """Return the allowed forms of a URI; `local` includes file://."""
    here = ""
    if local:
        path = uri.strip().removeprefix("./")
        named = path and "://" not in path and not path.startswith("~")
        example = f"file://{quote(path, safe=_GLOB_CHARACTERS)}" if named else _LOCAL_EXAMPLES[kind]
        here = f", or {example} for a path on this machine"
    return f"must be {_URI_SCHEMES[kind]}{here}, is {format_value(uri)}"


def _message(detail: ErrorDetails, location: list[int | str], model: type[BaseModel]) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        name, above = str(location[-1]), _fields_at(model, location[:-1])
        elsewhere = len(location) > 1 and name in _fields_at(model, [])
        return "unknown field" + (f"; did you mean spec.{name}?" if elsewhere else _field_hint(name, above))
    if kind == "string_pattern_mismatch" and location[-1] == "stop":
        return "must give a reason, in a word or a sentence"
    if kind == "too_few_bytes":
        return f"must be at least {context.get('least')}, is {format_value(value)}{_unit_hint(str(value))}"
    if kind == "string_type":
        return not_a_string(value, location)
    shown = format_value(value)
    text = {
        "missing": "is required",
        "quantity": f"must be {context.get('wanted')}, is {shown}{_cpu_hint(value) if 'cpu' in location else ''}",
        "finite_number": f"must be a finite number, is {shown}",
        "float_type": _type_error("a number", value, plain=_is_number(value)),
        "int_type": f"must be a whole number, is {shown}",
        "int_parsing": f"must be a whole number, is {shown}",
        "int_from_float": f"must be a whole number, is {shown}",
        "bool_type": f"must be true or false, is {shown}",
        "bool_parsing": f"must be true or false, is {shown}",
        "list_type": f"must be a list, is {shown}",
        "dict_type": f"must be a mapping, is {shown}",
        "model_type": f"must be a mapping, is {shown}",
        "greater_than_equal": f"must be at least {_bound(context.get('ge'))}, is {shown}",
        "greater_than": f"must be above {_bound(context.get('gt'))}, is {shown}",
        "less_than": f"must be below {_bound(context.get('lt'))}, is {shown}",
        "less_than_equal": f"must be at most {_bound(context.get('le'))}, is {shown}",
        "enum": f"must be {context.get('expected')}, is {shown}",
        "string_pattern_mismatch": f"must look like {context.get('pattern')}, is {shown}",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "string_too_short": "must not be empty" if not value else f"must have {context.get('min_length')} characters",
        "too_long": f"must have at most {context.get('max_length')} entries, has {context.get('actual_length')}",
        "too_short": f"must have at least {context.get('min_length')} entries, has {context.get('actual_length')}",
    }.get(kind, f"{detail['msg']}, is {shown}")
    return text + (did_you_mean(str(value), _enum_values(context)) if kind == "enum" else "")


def _bound(value: Any) -> Any:
    """Return a bound as in the field's definition: pydantic's is a float for a number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unit_hint(quantity: str) -> str:
    """Return the unit that the user probably meant, for a quantity of too few bytes."""
    number = quantity.rstrip("kKMGTPEi")
    note = ", which are bytes" if number == quantity else ""
    unit = "Gi" if float(number) < _MAX_WITHOUT_UNIT else "Mi"
    return (
        f"{note}; did you mean {number}{unit}?"
        if 1 <= float(number) < _MAX_WITHOUT_UNIT**2
        else f"{note}; write a unit, such as 24Gi"
    )


def _cpu_hint(value: Any) -> str:
    """Return how to write an invalid amount of CPU."""
    quantity = str(value)
    if isinstance(value, float):
        return f'; write it in quotes, "{quantity}"'
    if re.fullmatch(r"[0-9]{4,6}", quantity):
        return f"; did you mean {quantity}m?"
    return ", which is a quantity of memory" if re.fullmatch(r"[0-9.]+[KMGTPE]i?", quantity) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(_DECIMAL, value) is not None


def not_a_string(value: Any, location: Sequence[int | str] = ()) -> str:
    """Return the error of a value that must be a string."""
    quoted = _quoted(value, location)
    return (
        f"must be a string: write it in quotes, {quoted}" if quoted else f"must be a string, is {format_value(value)}"
    )


def _quoted(value: Any, location: Sequence[int | str]) -> str | None:
    """Return the value as a YAML string; None if that isn't possible."""
    if isinstance(value, bool):
        return f'"{str(value).lower()}"'
    if isinstance(value, (int, float)):
        # Some fields do not accept an exponent.
        return f'"{value:.10f}'.rstrip("0") + '"' if 1e-10 <= abs(value) < 1e-4 else f'"{value}"'
    if not _VALUE_FIELDS.intersection(location):
        return None
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return f'"{",".join(value)}"'
    if isinstance(value, Mapping) and len(value) == 1 and "initial" in location:
        name, inner = next(iter(value.items()))
        return f"after the whole path: {location[-1]}.{name}: {_quoted(inner, location) or format_value(inner)}"
    return None


def _enum_values(context: Mapping[str, Any]) -> list[str]:
    return [word.strip("'") for word in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]


def _uri_kind(location: list[int | str], pattern: str) -> str:
    """Return the kind of a URI: model, dataset or storage.

    An adapter's URI is like a model's, that of a server's adapter like storage.
    """
    parents = set(location)
    if "dataset" in parents:
        return "dataset"
    return "model" if parents & {"model", "continueFrom"} or "pvc://" in pattern else "storage"


def format_value(value: Any) -> str:
    """Return an invalid value as a message shows it."""
    if isinstance(value, date):
        return f"the date {value} (write it in quotes)"
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else text[: _MAX_VALUE_LENGTH - 1] + "…"


def _field_hint(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or (f"; the fields here are {', '.join(known)}" if known else "")


def _fields_at(model: type[BaseModel], location: list[int | str]) -> list[str]:
    """Return the names of the fields at `location`."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        info = next((info for info in current.model_fields.values() if info.alias == part), None)
        current = _model_in(info.annotation) if info else None
    return [info.alias or name for name, info in current.model_fields.items()] if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside `X`, `X | None` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def drop_nulls(model: type[BaseModel], value: Any, path: str = "spec") -> tuple[Any, list[FieldError]]:
    """Return a value of `model` without nulls, as the API server stores it, and the errors of integers and booleans."""
    errors: list[FieldError] = []
    return _without_nulls(model, value, path, errors), errors


def _without_nulls(annotation: Any, value: Any, path: str, errors: list[FieldError]) -> Any:
    kinds = list(_types_in(annotation))
    for kind in kinds:
        inner = get_args(kind)
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, BaseModel):
            return _block_without_nulls(kind, value, path, errors)
        if isinstance(value, Mapping) and get_origin(kind) is dict:
            there = {name: item for name, item in value.items() if item is not None}
            return {name: _without_nulls(inner[1], item, f"{path}.{name}", errors) for name, item in there.items()}
        if isinstance(value, list) and get_origin(kind) is list:
            return [_without_nulls(inner[0], item, f"{path}[{index}]", errors) for index, item in enumerate(value)]
    if int in kinds and isinstance(value, (str, bool)):
        plain = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
        errors.append(FieldError(path, _type_error("a whole number", value, plain=plain)))
    if bool in kinds and value is not None and not isinstance(value, bool):
        errors.append(FieldError(path, _type_error("true or false", value, plain=value in ("true", "false"))))
    return value


def _block_without_nulls(
    model: type[BaseModel], value: Mapping[Any, Any], path: str, errors: list[FieldError]
) -> dict[Any, Any]:
    """Return a block without null fields. It retains unknown fields, which a later step rejects."""
    by_name = {key: info for name, info in model.model_fields.items() for key in (name, info.alias or name)}
    found = {}
    for name, item in value.items():
        info = by_name.get(name)
        if info is None:
            found[name] = item
        elif item is not None:
            found[name] = _without_nulls(info.annotation, item, f"{path}.{name}", errors)
    return found


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or the single type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _types_in(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _types_in(each)
    else:
        yield annotation


def _type_error(wanted: str, value: Any, *, plain: bool) -> str:
    """Return the type that a value must have; `plain`: the value is valid without its quotes."""
    return f"must be {wanted}{f': write it without quotes, {value}' if plain else f', is {format_value(value)}'}"


def object_errors(obj: Mapping[Any, Any], fields: Collection[str]) -> Iterator[FieldError]:
    """Yield the errors outside of an object's spec, as the API server does; `fields` are those of the spec."""
    if obj.get("apiVersion") is None:
        yield FieldError("apiVersion", "is missing")
    for name in obj:
        if name not in _OBJECT_FIELDS:
            inside = f"; did you mean spec.{name}?" if name in fields else did_you_mean(str(name), _OBJECT_FIELDS)
            yield FieldError(str(name), f"unknown field{inside}")
    metadata = obj.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        yield FieldError("metadata", f"must be a mapping, is {format_value(metadata)}")
        return
    yield from _name_errors(metadata or {})
    for name, value in (metadata or {}).items():
        if name not in _METADATA_NAMES:
            yield from _metadata_errors(name, value)


def _name_errors(metadata: Mapping[Any, Any]) -> Iterator[FieldError]:
    names = {key: value for key, value in metadata.items() if key in _METADATA_NAMES and value not in (None, "")}
    if not names:
        yield FieldError("metadata.name", "is required")
    for key, value in names.items():
        # The API server appends letters and digits to generateName.
        whole = f"{value}x" if key == "generateName" else value
        if not isinstance(value, str):
            yield FieldError(f"metadata.{key}", f"must be a string, is {format_value(value)}")
        elif len(whole) > _MAX_NAME_LENGTH or not _DNS_NAME.fullmatch(whole):
            yield FieldError(
                f"metadata.{key}",
                "must be a DNS name (at most 253 lower-case letters, digits, - and ., each part beginning and ending "
                f"with a letter or digit), is {format_value(value)}",
            )


def _metadata_errors(name: Any, value: Any) -> Iterator[FieldError]:
    """Yield the errors of a metadata field other than name and generateName."""
    path, (kind, wanted) = f"metadata.{name}", _METADATA_TYPES.get(name, (str, ""))
    if name not in _METADATA_TYPES and name not in _METADATA_STRINGS:
        yield FieldError(
            path, f"unknown field{did_you_mean(str(name), (*_METADATA_NAMES, *_METADATA_STRINGS, *_METADATA_TYPES))}"
        )
    elif value is None:
        return
    elif not isinstance(value, kind) or isinstance(value, bool):
        yield FieldError(path, f"must be {wanted}, is {format_value(value)}" if wanted else not_a_string(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _label_errors(path, key, item)


def _label_errors(path: str, key: Any, value: Any) -> Iterator[FieldError]:
    """Yield the errors of a label or annotation. An annotation may have any text; kubectl converts keys to strings."""
    text = str(key).lower() if isinstance(key, bool) else str(key)
    is_label = path == "metadata.labels"
    if key is None or not _is_qualified(text if is_label else text.lower()):
        wanted = f"the name must be {_LABEL_VALUE_RULE}, optionally after a DNS name and /"
        yield FieldError(path, f"{wanted}, is {format_value(key)}")
    if value is not None and not isinstance(value, str):
        yield FieldError(f"{path}.{text}", not_a_string(value))
    elif is_label and value and not _LABEL_VALUE.fullmatch(value):
        yield FieldError(f"{path}.{text}", f"must be {_LABEL_VALUE_RULE}, is {format_value(value)}")


def _is_qualified(name: str) -> bool:
    prefix, slash, word = name.rpartition("/")
    in_domain = not slash or (len(prefix) <= _MAX_NAME_LENGTH and _DNS_NAME.fullmatch(prefix) is not None)
    return in_domain and _LABEL_VALUE.fullmatch(word) is not None
