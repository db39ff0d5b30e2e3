"""The door: any object in, a spec or every error out, the same in the operator and on a laptop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import FieldError, InvalidSpec, near
from tunery_api.fields import ApiModel
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import API_VERSION
from tunery_api.rules import ADAPTERMERGE_RULES, LORAJOB_RULES
from tunery_api.server_rules import ADAPTERSERVER_RULES, BATCHINFERENCE_RULES
from tunery_api.walk import fields

Spec = TypeVar("Spec", bound=ApiModel)
Rule = Callable[[Spec], Iterable[FieldError]]

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


def parse_lorajob(obj: Any, *, local: bool = False) -> LoRAJobSpec:
    """Return the spec of a LoRAJob object.

    `local` allows file:// URIs, for runs without a cluster.
    Raises InvalidSpec with every error, for any object whatsoever.
    """
    return _parse(obj, LoRAJobSpec, LORAJOB_RULES, local)


def lorajob_errors(spec: LoRAJobSpec) -> list[FieldError]:
    """Return what a spec says that the schema allows and that cannot be."""
    return [error for rule in LORAJOB_RULES for error in rule(spec)]


def parse_adaptermerge(obj: Any, *, local: bool = False) -> AdapterMergeSpec:
    """Return the spec of an AdapterMerge object; see parse_lorajob."""
    return _parse(obj, AdapterMergeSpec, ADAPTERMERGE_RULES, local)


def parse_adapterserver(obj: Any, *, local: bool = False) -> AdapterServerSpec:
    """Return the spec of an AdapterServer object; see parse_lorajob."""
    return _parse(obj, AdapterServerSpec, ADAPTERSERVER_RULES, local)


def parse_batchinference(obj: Any, *, local: bool = False) -> BatchInferenceSpec:
    """Return the spec of a BatchInference object; see parse_lorajob."""
    return _parse(obj, BatchInferenceSpec, BATCHINFERENCE_RULES, local)


def _parse(obj: Any, model: type[Spec], rules: Iterable[Rule[Spec]], local: bool) -> Spec:
    if not isinstance(obj, Mapping):
        raise InvalidSpec([FieldError("manifest", "must be a mapping with apiVersion, kind, metadata and spec")])
    if "spec" not in obj:
        raise InvalidSpec([FieldError("spec", "is missing")])
    _check_version(obj)
    try:
        spec = model.model_validate(obj["spec"])
    except ValidationError as error:
        raise InvalidSpec(_field_error(detail, model, local) for detail in error.errors()) from error
    problems = list(itertools.chain.from_iterable(rule(spec) for rule in rules))
    problems += () if local else _file_uris(spec)
    if problems:
        raise InvalidSpec(problems)
    return spec


def _check_version(obj: Mapping[str, Any]) -> None:
    version = obj.get("apiVersion", API_VERSION)
    if version != API_VERSION:
        raise InvalidSpec([FieldError("apiVersion", f"must be {API_VERSION}, is {_shown(version)}")])


def _file_uris(spec: BaseModel) -> Iterator[FieldError]:
    """Yield an error for each file:// URI: in a cluster nobody else sees that file."""
    for field in fields(spec, "spec"):
        if field.name == "uri" and isinstance(field.value, str) and field.value.startswith("file://"):
            yield FieldError(field.path, "file:// works without a cluster only; use s3:// or pvc:// here")


def _field_error(detail: ErrorDetails, model: type[BaseModel], local: bool) -> FieldError:
    location = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    # A URI may be too short for any scheme, which is not yet empty.
    if detail["type"] in ("string_pattern_mismatch", "string_too_short") and location[-1] == "uri" and detail["input"]:
        return FieldError(path, _uri_message(str(detail["input"]), _uri_kind(location), local))
    return FieldError(path, _message(detail, location, model))


def _uri_message(uri: str, kind: str, local: bool) -> str:
    """Return what a URI must be; without a cluster with the scheme of this machine's own files."""
    here = ""
    if local:
        path = uri.strip().removeprefix("./")
        named = path and "://" not in path and not path.startswith("~")
        here = f", or {f'file://{quote(path, safe=_GLOBS)}' if named else _PLACES[kind]} for a place on this machine"
    return f"must be {_URI_SCHEMES[kind]}{here}, is {_shown(uri)}"


def _message(detail: ErrorDetails, location: list[int | str], model: type[BaseModel]) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        return "unknown field" + _did_you_mean(str(location[-1]), _fields_at(model, location[:-1]))
    if kind == "string_type" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'must be a string: write it in quotes, "{value}"'
    if kind == "string_pattern_mismatch" and location[-1] == "stop":
        return "must say why, in a word or a sentence"
    if kind == "string_pattern_mismatch" and location[-1] in ("memory", "ephemeralStorage"):
        return f"must be a number of bytes above 0, such as 24Gi, is {_shown(value)}"
    text = {
        "missing": "is required",
        "string_type": f"must be a string, is {_shown(value)}",
        "int_type": f"must be a whole number, is {_shown(value)}",
        "int_parsing": f"must be a whole number, is {_shown(value)}",
        "int_from_float": f"must be a whole number, is {_shown(value)}",
        "bool_type": f"must be true or false, is {_shown(value)}",
        "bool_parsing": f"must be true or false, is {_shown(value)}",
        "list_type": f"must be a list, is {_shown(value)}",
        "dict_type": f"must be a mapping, is {_shown(value)}",
        "model_type": f"must be a mapping, is {_shown(value)}",
        "greater_than_equal": f"must be at least {context.get('ge')}, is {_shown(value)}",
        "less_than_equal": f"must be at most {context.get('le')}, is {_shown(value)}",
        "enum": f"must be {context.get('expected')}, is {_shown(value)}",
        "string_pattern_mismatch": f"must look like {context.get('pattern')}, is {_shown(value)}",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "string_too_short": "must not be empty",
        "too_long": f"must have at most {context.get('max_length')} entries, has {context.get('actual_length')}",
        "too_short": f"must have at least {context.get('min_length')} entries, has {context.get('actual_length')}",
    }.get(kind, f"{detail['msg']}, is {_shown(value)}")
    return text + (near(str(value), _enum_values(context)) if kind == "enum" else "")


def _enum_values(context: Mapping[str, Any]) -> list[str]:
    return [word.strip("'") for word in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]


def _uri_kind(location: list[int | str]) -> str:
    parents = set(location)
    return "model" if "model" in parents else "dataset" if "dataset" in parents else "storage"


def _shown(value: Any) -> str:
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
