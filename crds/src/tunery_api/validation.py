"""Validate a manifest and return its spec or every error; the operator and runs without a cluster share it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import FieldError, InvalidSpec, drop_nulls, field_error, format_value, object_errors
from tunery_api.fields import ApiModel, bucket_problem, iter_fields
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import API_VERSION
from tunery_api.rules import RULES

Spec = TypeVar("Spec", bound=ApiModel)
Check = Callable[[Spec], Iterable[FieldError]]
LARGEST_CLIENTS: Final = 200_000
"""The most characters in names of clients and their models: they share one ConfigMap with the adapters."""


def parse_lorajob(obj: Any, *, local: bool = False) -> LoRAJobSpec:
    """Return the spec of a LoRAJob object.

    `local` allows file:// URIs, for runs without a cluster.
    Raises InvalidSpec with every error, whatever `obj` is.
    """
    return parse_spec(obj, LoRAJobSpec, (), local)


def lorajob_errors(spec: LoRAJobSpec) -> list[FieldError]:
    """Return an error for each rule that a spec breaks."""
    return list(RULES.errors(LoRAJobSpec, spec.to_json_dict()))


def parse_adaptermerge(obj: Any, *, local: bool = False) -> AdapterMergeSpec:
    """Return the spec of an AdapterMerge object; see parse_lorajob."""
    return parse_spec(obj, AdapterMergeSpec, (), local)


def parse_adapterserver(obj: Any, *, local: bool = False) -> AdapterServerSpec:
    """Return the spec of an AdapterServer object; see parse_lorajob."""
    return parse_spec(obj, AdapterServerSpec, (_base_names, _client_names), local)


def parse_batchinference(obj: Any, *, local: bool = False) -> BatchInferenceSpec:
    """Return the spec of a BatchInference object; see parse_lorajob."""
    return parse_spec(obj, BatchInferenceSpec, (), local)


def parse_spec(obj: Any, model: type[Spec], checks: Iterable[Check[Spec]], local: bool) -> Spec:
    """Return the spec of an object of class `model`, validated by RULES and `checks`; see parse_lorajob."""
    if not isinstance(obj, Mapping):
        raise InvalidSpec([FieldError("manifest", "must be a mapping with apiVersion, kind, metadata and spec")])
    if "spec" not in obj:
        raise InvalidSpec([FieldError("spec", "is missing")])
    _check_version(obj)
    # In a cluster, the API server has checked the rest of the object.
    outside = (
        list(object_errors(obj, [info.alias or name for name, info in model.model_fields.items()])) if local else []
    )
    stored, type_errors = drop_nulls(model, obj["spec"])
    try:
        spec = model.model_validate(stored)
    except ValidationError as error:
        rejected = [field_error(detail, model, local) for detail in error.errors()]
        paths = {each.path for each in rejected}
        raise InvalidSpec([*outside, *rejected, *(each for each in type_errors if each.path not in paths)]) from error
    if outside or type_errors:
        raise InvalidSpec([*outside, *type_errors])
    problems = [*RULES.errors(model, spec.to_json_dict()), *_buckets(spec), *_duplicates(spec)]
    problems += itertools.chain.from_iterable(check(spec) for check in checks)
    if not local:
        problems += _file_uris(spec)
    if problems:
        raise InvalidSpec(dict.fromkeys(problems))
    return spec


def _check_version(obj: Mapping[str, Any]) -> None:
    version = obj.get("apiVersion")
    if version is not None and version != API_VERSION:
        raise InvalidSpec([FieldError("apiVersion", f"must be {API_VERSION}, is {format_value(version)}")])


def _file_uris(spec: BaseModel) -> Iterator[FieldError]:
    """Yield an error for each file:// URI: a pod in a cluster can't read that file."""
    for field in iter_fields(spec, "spec"):
        if field.name == "uri" and isinstance(field.value, str) and field.value.startswith("file://"):
            yield FieldError(field.path, "file:// is for runs without a cluster only. Fix: use s3:// or pvc://")


def _buckets(spec: BaseModel) -> Iterator[FieldError]:
    """Yield an error for each s3:// URI with an invalid bucket name."""
    for field in iter_fields(spec, "spec"):
        if field.name == "uri" and isinstance(field.value, str) and field.value.startswith("s3://"):
            problem = bucket_problem(field.value.removeprefix("s3://").partition("/")[0])
            if problem is not None:
                yield FieldError(field.path, f"{problem}. Fix: write s3://bucket/prefix")


def _duplicates(spec: BaseModel) -> Iterator[FieldError]:
    """Yield an error for each duplicate key in a list whose keys the API server compares."""
    seen: set[tuple[str, str]] = set()
    for field in iter_fields(spec, "spec"):
        extra = field.info.json_schema_extra
        keys: Any = extra.get("x-kubernetes-list-map-keys") if isinstance(extra, dict) else None
        if not keys or field.value is None or not field.path.endswith("]"):
            continue
        value = getattr(field.value, keys[0])
        key = (field.path.rpartition("[")[0], value)
        if key in seen:
            yield FieldError(f"{field.path}.{keys[0]}", f"{value} is in the list already. Fix: remove one of the two")
        seen.add(key)


def _base_names(spec: AdapterServerSpec) -> Iterator[FieldError]:
    """Yield an error for each adapter or alias with the name of the base model, by its URI or servedName."""
    base = spec.model.effective_served_name()
    for field in ("adapters", "aliases"):
        for index, each in enumerate(getattr(spec, field) or ()):
            if each.name == base and (field == "aliases" or not spec.model.served_name):
                text = f"{base} is the name of the base model. Fix: use another name, or set model.servedName"
                yield FieldError(f"spec.{field}[{index}].name", text)


def _client_names(spec: AdapterServerSpec) -> Iterator[FieldError]:
    """Yield an error if the names of all clients and their models are too long."""
    size = sum(len(name) for client in spec.access.clients or () for name in (client.name, *client.models))
    if size > LARGEST_CLIENTS:
        text = f"has {size:,} characters of names, at most {LARGEST_CLIENTS:,} fit. Fix: list fewer, or use two servers"
        yield FieldError("spec.access.clients", text)
