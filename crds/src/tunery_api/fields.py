"""Provide the building blocks of every spec: the base models, field helpers, names, numbers, quantities and URIs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from posixpath import normpath
from typing import Annotated, Any, ClassVar, Final, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Model = TypeVar("Model", bound=BaseModel)


class ApiModel(BaseModel):
    """A frozen block of the API: snake_case in Python, camelCase in YAML; unknown fields are errors."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the camelCase dict of the fields that were set, for JSON and the API server.

        Defaults stay out: a reader can tell set fields from unset ones.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


class KindSpec(ApiModel):
    """The spec of a kind, with its mutable fields."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset()
    """Fields that may change at any time."""
    MUTABLE_AT_REST: ClassVar[frozenset[str]] = frozenset()
    """Fields that may change while no pod runs."""
    SET_ONCE: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be set at any time, then never changed or removed."""
    MUTABLE_RESOURCES: ClassVar[frozenset[str]] = frozenset()
    """The fields of `resources` that may change while no pod runs."""


def alias_of(block: ApiModel, name: str) -> str:
    """Return the YAML name of the field `name` of `block`."""
    return type(block).model_fields[name].alias or name


class OpenModel(ApiModel):
    """A block that programs of different versions exchange: it ignores unknown fields of later versions."""

    model_config = ConfigDict(extra="ignore")


class FieldValue(NamedTuple):
    """One field of a model, or one entry of a field that is a list."""

    path: str
    """As in the manifest: `spec.adapters[0].uri`."""
    name: str
    """As in Python."""
    value: Any
    info: FieldInfo


def iter_fields(model: BaseModel, path: str) -> Iterator[FieldValue]:
    """Yield every field of a model whose own path is `path`, and after each block the fields in it."""
    for name, info in type(model).model_fields.items():
        for at, value in _entries(getattr(model, name), f"{path}.{info.alias or name}"):
            yield FieldValue(at, name, value, info)
            if isinstance(value, BaseModel):
                yield from iter_fields(value, at)


def _entries(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return [(path, value)]


def map_fields(model: Model, change: Callable[[str, Any], Any]) -> Model:
    """Return a copy of a model with each set field replaced by `change(name, value)`, in nested models too."""

    def mapped(name: str, value: Any) -> Any:
        if isinstance(value, BaseModel):
            return map_fields(value, change)
        if isinstance(value, list):
            return [mapped(name, item) for item in value]
        return change(name, value)

    return model.model_copy(update={name: mapped(name, getattr(model, name)) for name in model.model_fields_set})


def enum_values(known: type[StrEnum]) -> str:
    """Return the known values of an open string for its description; the schema accepts others."""
    return ", ".join(member.value for member in known)


UNOBSERVED: Final = -1
"""status.observedGeneration until the operator has read the object; no generation of a spec has this value."""

SERVER_DEFAULT: Final = "x-tunery-server-default"
"""Marks a field whose default the API server sets, so that a printer column can show it."""

_NAME: Final = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
DNS_SUBDOMAIN: Final = f"^{_NAME}$"

Text = Annotated[str, Field(max_length=1024)]
"""A sentence in a status."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""The name of an object in the same namespace."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number without quotes; a field adds its bounds."""


_LONGEST_TEXT: Final = 32


def decimal_text(value: float) -> str:
    """Return the shortest text of the same number, without an exponent if 32 characters suffice."""
    text = f"{Decimal(repr(value)).normalize() + 0:f}"
    return text if len(text) <= _LONGEST_TEXT else repr(value)


LEAST: Final = "x-tunery-least"
"""Marks the minimum of a quantity of bytes, for a CEL rule."""
_MOST: Final = 2**63
"""The API server reads larger integers as floats."""


@dataclass(frozen=True)
class Quantity:
    """Marks a string as a Kubernetes quantity. A manifest may write it as a string or an integer, as in a pod."""

    wanted: str
    """What it must be, for messages after `must be`."""
    pattern: str
    least: str = ""
    """The minimum; empty: only the pattern applies."""
    bounds: tuple[tuple[str, int], ...] = ()
    """The bounds of an integer, as in JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._text, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        least = {LEAST: self.least} if self.least else {}
        text = {"pattern": self.pattern, "maxLength": _LONGEST_TEXT}
        return {"x-kubernetes-int-or-string": True, **text, **dict(self.bounds), **least}

    def _text(self, value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool) and value < _MOST
        text = str(value) if is_whole else value
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT or re.fullmatch(self.pattern, text) is None:
            raise PydanticCustomError("quantity", "must be {wanted}", {"wanted": self.wanted})
        if self.least and parse_quantity(text) < parse_quantity(self.least):
            raise PydanticCustomError("too_few_bytes", "must be at least {least}", {"least": self.least})
        return text


QuantityString = Annotated[
    str,
    Quantity("a quantity, such as 4, 500m or 24Gi", r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"),
]
"""A Kubernetes quantity: 4, 500m, 24Gi."""
CpuString = Annotated[
    str,
    Quantity(
        'an amount of CPU of at most 1000, such as 4, "0.5" or 500m',
        r"^0*(1000(\.0+)?|[0-9]{1,3}(\.[0-9]+)?|(1000000(\.0+)?|[0-9]{1,6}(\.[0-9]+)?)m)$",
        bounds=(("minimum", 0), ("maximum", 1000)),
    ),
]
"""A quantity of CPU, at most 1000 cores."""
_BYTES: Final = "a number of bytes above 0, such as 24Gi"
_BYTES_PATTERN: Final = r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
"""Doesn't match `100m`, a tenth of a byte, which Kubernetes accepts."""
_SOME_BYTES: Final = (("minimum", 1),)
MemoryString = Annotated[str, Quantity(_BYTES, _BYTES_PATTERN, "64Mi", _SOME_BYTES)]
"""A quantity of bytes that a container can start with, such as 24Gi. A smaller value lacks its unit."""
DiskString = Annotated[str, Quantity(_BYTES, _BYTES_PATTERN, "1Mi", _SOME_BYTES)]
"""A quantity of bytes of ephemeral storage."""

_BAD_PATH: Final = "://(.*/)?([.]{0,2}/|[.][.]?$)"
"""Matches a URI whose path has an empty segment, "." or "..": an alias of another URI. A trailing slash is allowed."""
PLAIN_PATH: Final = 'must be like s3://bucket/folder, with no empty part, "." or ".." in the path'


def _check_path(uri: str) -> str:
    # Without a cluster, file:// may be relative; is_same_uri compares the resolved path.
    if not uri.startswith("file://") and re.search(_BAD_PATH, uri):
        raise PydanticCustomError("uri_path", PLAIN_PATH)
    return uri


def _uri(pattern: str) -> Any:
    """Return the constraints of a URI in Python."""
    return Field(min_length=6, max_length=1024, pattern=pattern)


def _uri_schema(pattern: str) -> WithJsonSchema:
    """Return the JSON schema of a URI. file:// is for runs without a cluster, so the CRD doesn't allow it."""
    rule = {"rule": f"!self.matches('{_BAD_PATH}')", "message": f"uri {PLAIN_PATH}"}
    schema = {"type": "string", "minLength": 6, "maxLength": 1024, "pattern": pattern}
    return WithJsonSchema({**schema, "x-kubernetes-validations": [rule]})


ModelUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$"),
]
"""The URI of a base model."""

DatasetUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$"),
]
"""The URI of a data set: a file, a folder or a glob."""

AdapterUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$"),
]
"""The URI of a folder with an adapter's two files: hf://owner/name, or a folder in it."""

StorageUri = Annotated[
    str, _uri(r"^(s3|file)://[^\s?#*]+$"), AfterValidator(_check_path), _uri_schema(r"^s3://[^\s?#*]+$")
]
"""A writable URI: a bucket and a prefix."""


def is_same_uri(one: str, other: str | None) -> bool:
    """Return whether two URIs have the same location, regardless of repeated slashes or dots."""
    return other is not None and normpath(one) == normpath(other)


def uris_overlap(one: str, other: str | None) -> bool:
    """Return whether two URIs are the same, or one is within the other."""
    if other is None:
        return False
    first, second = (f"{normpath(uri)}/" for uri in (one, other))
    return first.startswith(second) or second.startswith(first)


_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.+")
"""A bucket of any S3-compatible storage, even with upper case and underscores, or an access point, as in boto3."""


def bucket_problem(bucket: str) -> str | None:
    """Return what is wrong with the bucket of a URI, or None.

    The text doesn't show the bucket, which may contain credentials.
    """
    if _BUCKET.fullmatch(bucket):
        return None
    return "holds credentials, which belong in the Secret of secretRef" if "@" in bucket else "names no bucket"


_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_SUFFIX |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}


def parse_quantity(text: str) -> Decimal:
    """Return the number of a Kubernetes quantity such as `24Gi` or `500m`.

    Raises ValueError if `text` isn't a quantity.
    """
    number = text.rstrip("mkKMGTPEi")
    suffix = text[len(number) :]
    if suffix == "m":
        return Decimal(number) / 1000
    if suffix not in _SUFFIX:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(number) * _SUFFIX[suffix]
