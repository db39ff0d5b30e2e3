"""Define the errors of a manifest, and word those of its schema: the field, what is wrong, what to write."""

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

_FEW: Final = 256
"""So many GiB and fewer are what people write without a unit."""
_MAX_SHOWN: Final = 60
"""Characters of a bad value that a message repeats."""

_GLOBS: Final = "/*?[]"
"""Signs that a path keeps as it becomes a URI."""
_PLACES: Final = {"model": "file://folder", "dataset": "file://data.jsonl", "storage": "file://folder"}
"""Places on this machine, where a URI gives no better example."""
_URI_SCHEMES: Final = {
    "model": "hf://owner/name, s3://bucket/prefix or pvc://claim/path",
    "dataset": "hf://owner/name, s3://bucket/key, pvc://claim/path or configmap://name/key",
    "storage": "s3://bucket/prefix",
}

_VALUES: Final = frozenset({"choices", "initial", "in"})
"""Fields of a sweep that hold values of other fields, each as one text, number, true or false."""
_OF_OBJECTS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_NAMES: Final = ("name", "generateName")
_STRINGS: Final = ("namespace", "uid", "resourceVersion", "selfLink", "creationTimestamp", "deletionTimestamp")
_TYPES: Final[Mapping[str, tuple[type, str]]] = {
    **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), (int, "a whole number")),
    **dict.fromkeys(("finalizers", "ownerReferences", "managedFields"), (list, "a list")),
    **dict.fromkeys(("labels", "annotations"), (Mapping, "a mapping")),
}
"""Fields of metadata that are no strings."""
_PART: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"{_PART}(\.{_PART})*")
_LONGEST_NAME: Final = 253
_WORD: Final = re.compile("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_WORD_IS: Final = "at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit"
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"


class FieldError(NamedTuple):
    """One thing that is wrong: `spec.lora.rank` and `must be at least 1, is 0`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidSpec(Exception):
    """A manifest that cannot be run; it carries every error that was found."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


def near(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` where one of `known` is close to `word`, in any case of letters; else nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def field_error(detail: ErrorDetails, model: type[BaseModel], local: bool) -> FieldError:
    """Return what is wrong with a field of `model`; `local` allows places on this machine.

    `detail` is one of pydantic's errors.
    """
    location = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    # A URI may be too short for any scheme, which is not yet empty.
    if detail["type"] in ("string_pattern_mismatch", "string_too_short") and location[-1] == "uri" and detail["input"]:
        kind = _uri_kind(location, str(detail.get("ctx", {}).get("pattern", "")))
        return FieldError(path, _uri_message(str(detail["input"]), kind, local))
    return FieldError(path, _message(detail, location, model))


def _uri_message(uri: str, kind: str, local: bool) -> str:
    """Return what a URI must be; without a cluster with the scheme of this machine's own files."""
    here = ""
    if local:
        path = uri.strip().removeprefix("./")
        named = path and "://" not in path and not path.startswith("~")
        here = f", or {f'file://{quote(path, safe=_GLOBS)}' if named else _PLACES[kind]} for a place on this machine"
    return f"must be {_URI_SCHEMES[kind]}{here}, is {shown(uri)}"


def _message(detail: ErrorDetails, location: list[int | str], model: type[BaseModel]) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        name, above = str(location[-1]), _fields_at(model, location[:-1])
        elsewhere = len(location) > 1 and name in _fields_at(model, [])
        return "unknown field" + (f"; did you mean spec.{name}?" if elsewhere else _did_you_mean(name, above))
    if kind == "string_pattern_mismatch" and location[-1] == "stop":
        return "must say why, in a word or a sentence"
    if kind == "too_few_bytes":
        return f"must be at least {context.get('least')}, is {shown(value)}{_unit(str(value))}"
    if kind == "string_type":
        return no_string(value, location)
    text = {
        "missing": "is required",
        "quantity": f"must be {context.get('wanted')}, is {shown(value)}{_cpu(value) if location[-1] == 'cpu' else ''}",
        "finite_number": f"must be a finite number, is {shown(value)}",
        "float_type": _misfit("a number", value, plain=_is_number(value)),
        "int_type": f"must be a whole number, is {shown(value)}",
        "int_parsing": f"must be a whole number, is {shown(value)}",
        "int_from_float": f"must be a whole number, is {shown(value)}",
        "bool_type": f"must be true or false, is {shown(value)}",
        "bool_parsing": f"must be true or false, is {shown(value)}",
        "list_type": f"must be a list, is {shown(value)}",
        "dict_type": f"must be a mapping, is {shown(value)}",
        "model_type": f"must be a mapping, is {shown(value)}",
        "greater_than_equal": f"must be at least {_bound(context.get('ge'))}, is {shown(value)}",
        "greater_than": f"must be above {_bound(context.get('gt'))}, is {shown(value)}",
        "less_than": f"must be below {_bound(context.get('lt'))}, is {shown(value)}",
        "less_than_equal": f"must be at most {_bound(context.get('le'))}, is {shown(value)}",
        "enum": f"must be {context.get('expected')}, is {shown(value)}",
        "string_pattern_mismatch": f"must look like {context.get('pattern')}, is {shown(value)}",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "string_too_short": "must not be empty" if not value else f"must have {context.get('min_length')} characters",
        "too_long": f"must have at most {context.get('max_length')} entries, has {context.get('actual_length')}",
        "too_short": f"must have at least {context.get('min_length')} entries, has {context.get('actual_length')}",
    }.get(kind, f"{detail['msg']}, is {shown(value)}")
    return text + (near(str(value), _enum_values(context)) if kind == "enum" else "")


def _bound(value: Any) -> Any:
    """Return a bound as its field states it: pydantic has that of a number as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unit(quantity: str) -> str:
    """Return which unit somebody may have meant, behind a quantity of too few bytes."""
    number = quantity.rstrip("kKMGTPEi")
    said = ", which are bytes" if number == quantity else ""
    unit = "Gi" if float(number) < _FEW else "Mi"
    return (
        f"{said}; did you mean {number}{unit}?" if 1 <= float(number) < _FEW**2 else f"{said}; write 24Gi or the like"
    )


def _cpu(value: Any) -> str:
    """Return how to write an amount of CPU that is none as it is written."""
    quantity = str(value)
    if isinstance(value, float):
        return f'; write it in quotes, "{quantity}"'
    if re.fullmatch(r"[0-9]{4,6}", quantity):
        return f"; did you mean {quantity}m?"
    return ", which is one of memory" if re.fullmatch(r"[0-9.]+[KMGTPE]i?", quantity) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(_DECIMAL, value) is not None


def no_string(value: Any, location: Sequence[int | str] = ()) -> str:
    """Return what a value must be that is no string, where one must be."""
    quoted = _quoted(value, location)
    return f"must be a string: write it in quotes, {quoted}" if quoted else f"must be a string, is {shown(value)}"


def _quoted(value: Any, location: Sequence[int | str]) -> str | None:
    """Return how a value that YAML reads as something else is written as a string, None where there is no such way."""
    if isinstance(value, bool):
        return f'"{str(value).lower()}"'
    if isinstance(value, (int, float)):
        # Without an exponent, which some fields have no room for.
        return f'"{value:.10f}'.rstrip("0") + '"' if 1e-10 <= abs(value) < 1e-4 else f'"{value}"'
    if not _VALUES.intersection(location):
        return None
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return f'"{",".join(value)}"'
    if isinstance(value, Mapping) and len(value) == 1 and "initial" in location:
        name, inner = next(iter(value.items()))
        return f"after the whole path: {location[-1]}.{name}: {_quoted(inner, location) or shown(inner)}"
    return None


def _enum_values(context: Mapping[str, Any]) -> list[str]:
    return [word.strip("'") for word in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]


def _uri_kind(location: list[int | str], pattern: str) -> str:
    """Return what a URI names; adapters lie where models do, and a server's where results do."""
    parents = set(location)
    if "dataset" in parents:
        return "dataset"
    return "model" if parents & {"model", "continueFrom"} or "pvc://" in pattern else "storage"


def shown(value: Any) -> str:
    """Return a bad value as a message repeats it."""
    if isinstance(value, date):
        return f"the date {value} (write it in quotes)"
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _did_you_mean(word: str, known: list[str]) -> str:
    return near(word, known) or (f"; the fields here are {', '.join(known)}" if known else "")


def _fields_at(model: type[BaseModel], location: list[int | str]) -> list[str]:
    """Return the field names that exist where `location` points to."""
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


def object_errors(obj: Mapping[Any, Any], fields: Collection[str]) -> Iterator[FieldError]:
    """Yield what the API server would refuse of an object before it looks at its spec, which has these fields."""
    if obj.get("apiVersion") is None:
        yield FieldError("apiVersion", "is missing")
    for name in obj:
        if name not in _OF_OBJECTS:
            inside = f"; did you mean spec.{name}?" if name in fields else near(str(name), _OF_OBJECTS)
            yield FieldError(str(name), f"unknown field{inside}")
    metadata = obj.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        yield FieldError("metadata", f"must be a mapping, is {shown(metadata)}")
        return
    yield from _name_errors(metadata or {})
    for name, value in (metadata or {}).items():
        if name not in _NAMES:
            yield from _metadata_errors(name, value)


def _name_errors(metadata: Mapping[Any, Any]) -> Iterator[FieldError]:
    names = {key: value for key, value in metadata.items() if key in _NAMES and value not in (None, "")}
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


def _metadata_errors(name: Any, value: Any) -> Iterator[FieldError]:
    """Yield what is wrong with a field of metadata, but for the object's name."""
    path, (kind, wanted) = f"metadata.{name}", _TYPES.get(name, (str, ""))
    if name not in _TYPES and name not in _STRINGS:
        yield FieldError(path, f"unknown field{near(str(name), (*_NAMES, *_STRINGS, *_TYPES))}")
    elif value is None:
        return
    elif not isinstance(value, kind) or isinstance(value, bool):
        yield FieldError(path, f"must be {wanted}, is {shown(value)}" if wanted else no_string(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _label_errors(path, key, item)


def _label_errors(path: str, key: Any, value: Any) -> Iterator[FieldError]:
    """Yield what is wrong with a label or an annotation, whose value may be any text; kubectl makes keys strings."""
    text = str(key).lower() if isinstance(key, bool) else str(key)
    is_label = path == "metadata.labels"
    if key is None or not _is_qualified(text if is_label else text.lower()):
        wanted = f"the name must be {_WORD_IS}, behind a DNS name and / or not"
        yield FieldError(path, f"{wanted}, is {shown(key)}")
    if value is not None and not isinstance(value, str):
        yield FieldError(f"{path}.{text}", no_string(value))
    elif is_label and value and not _WORD.fullmatch(value):
        yield FieldError(f"{path}.{text}", f"must be {_WORD_IS}, is {shown(value)}")


def _is_qualified(name: str) -> bool:
    prefix, slash, word = name.rpartition("/")
    in_domain = not slash or (len(prefix) <= _LONGEST_NAME and _DNS_NAME.fullmatch(prefix) is not None)
    return in_domain and _WORD.fullmatch(word) is not None
