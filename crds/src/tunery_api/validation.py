"""Validate a manifest: return its spec or every error, alike in the operator and without a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import ApiModel
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import API_VERSION
from tunery_api.rules import ADAPTERMERGE_RULES, LORAJOB_RULES
from tunery_api.schema_errors import as_stored, field_error, object_errors, shown
from tunery_api.server_rules import ADAPTERSERVER_RULES, BATCHINFERENCE_RULES
from tunery_api.walk import fields

Spec = TypeVar("Spec", bound=ApiModel)
Rule = Callable[[Spec], Iterable[FieldError]]


def parse_lorajob(obj: Any, *, local: bool = False) -> LoRAJobSpec:
    """Return the spec of a LoRAJob object.

    `local` allows file:// URIs, for runs without a cluster.
    Raises InvalidSpec with every error, for any object whatsoever.
    """
    return parse_spec(obj, LoRAJobSpec, LORAJOB_RULES, local)


def lorajob_errors(spec: LoRAJobSpec) -> list[FieldError]:
    """Return what a spec says that the schema allows and that cannot be."""
    return [error for rule in LORAJOB_RULES for error in rule(spec)]


def parse_adaptermerge(obj: Any, *, local: bool = False) -> AdapterMergeSpec:
    """Return the spec of an AdapterMerge object; see parse_lorajob."""
    return parse_spec(obj, AdapterMergeSpec, ADAPTERMERGE_RULES, local)


def parse_adapterserver(obj: Any, *, local: bool = False) -> AdapterServerSpec:
    """Return the spec of an AdapterServer object; see parse_lorajob."""
    return parse_spec(obj, AdapterServerSpec, ADAPTERSERVER_RULES, local)


def parse_batchinference(obj: Any, *, local: bool = False) -> BatchInferenceSpec:
    """Return the spec of a BatchInference object; see parse_lorajob."""
    return parse_spec(obj, BatchInferenceSpec, BATCHINFERENCE_RULES, local)


def parse_spec(obj: Any, model: type[Spec], rules: Iterable[Rule[Spec]], local: bool) -> Spec:
    """Return the spec of an object of class `model`, which satisfies `rules`; see parse_lorajob."""
    if not isinstance(obj, Mapping):
        raise InvalidSpec([FieldError("manifest", "must be a mapping with apiVersion, kind, metadata and spec")])
    if "spec" not in obj:
        raise InvalidSpec([FieldError("spec", "is missing")])
    _check_version(obj)
    # In a cluster the API server has looked at it.
    outside = (
        list(object_errors(obj, [info.alias or name for name, info in model.model_fields.items()])) if local else []
    )
    stored, misfits = as_stored(model, obj["spec"])
    try:
        spec = model.model_validate(stored)
    except ValidationError as error:
        refused = [field_error(detail, model, local) for detail in error.errors()]
        told = {each.path for each in refused}
        raise InvalidSpec([*outside, *refused, *(each for each in misfits if each.path not in told)]) from error
    if outside or misfits:
        raise InvalidSpec([*outside, *misfits])
    problems = list(itertools.chain.from_iterable(rule(spec) for rule in rules))
    if not local:
        problems += _file_uris(spec)
    if problems:
        raise InvalidSpec(problems)
    return spec


def _check_version(obj: Mapping[str, Any]) -> None:
    version = obj.get("apiVersion")
    if version is not None and version != API_VERSION:
        raise InvalidSpec([FieldError("apiVersion", f"must be {API_VERSION}, is {shown(version)}")])


def _file_uris(spec: BaseModel) -> Iterator[FieldError]:
    """Yield an error for each file:// URI: in a cluster nobody else sees that file."""
    for field in fields(spec, "spec"):
        if field.name == "uri" and isinstance(field.value, str) and field.value.startswith("file://"):
            yield FieldError(field.path, "file:// works without a cluster only; use s3:// or pvc:// here")
