"""The building blocks of every spec: the base model, and strings with a pattern and a maximum."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from posixpath import normpath
from typing import Annotated, Any, Final, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class ApiModel(BaseModel):
    """A frozen part of the API: snake_case in Python, camelCase in YAML, no unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the camelCase dict of the fields that were set, fit for JSON and for the API server.

        Defaults stay out, so that a reader can still tell what a manifest said from what it left open.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def alias_of(block: ApiModel, name: str) -> str:
    """Return how YAML writes the field `name` of `block`."""
    return type(block).model_fields[name].alias or name


class OpenModel(ApiModel):
    """A part of what programs of different versions tell each other: fields that a later one added are read over."""

    model_config = ConfigDict(extra="ignore")


UNOBSERVED: Final = -1
"""status.observedGeneration of an object that the operator has not seen yet: no generation of a spec is that."""

SERVER_DEFAULT: Final = "x-tunery-server-default"
"""Marks a field whose default the API server itself fills in, so that a column can show it."""

Bounds = tuple[tuple[str, float | bool], ...]
"""Of a number without quotes, as JSON Schema names them in OpenAPI's version 3.0."""

_NAME: Final = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
DNS_SUBDOMAIN: Final = f"^{_NAME}$"

Text = Annotated[str, Field(max_length=1024)]
"""A sentence of a status."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""The name of an object in the same namespace."""

_LONGEST_NUMBER: Final = 32
"""Characters of a number, which is more than any float needs."""
_LARGEST: Final = 1e100
"""By amount, below it is every number without quotes: as a text its exponent has two digits, as in quotes."""
_SMALLEST: Final = 1e-99
"""By amount, but for 0."""
_WHOLE: Final = 2**63 - 1024
"""The largest bound that the API server compares a whole number with: it makes 64 bits of it, and none above fits."""


def _up_to(largest: float) -> tuple[Bounds, ...]:
    """Return the ranges that the numbers above 0 lie in."""
    return (
        (("minimum", _SMALLEST), ("maximum", _WHOLE)),
        (("minimum", _WHOLE), ("maximum", largest), ("exclusiveMaximum", True)),
    )


_NOT_ABOVE_0: Final[Bounds] = (("maximum", 0),)
_BELOW_0: Final[Bounds] = (("maximum", -_SMALLEST), ("minimum", -_LARGEST), ("exclusiveMinimum", True))
_SHARES: Final[tuple[Bounds, ...]] = ((("minimum", _SMALLEST),), _NOT_ABOVE_0)
_ZERO: Final[Bounds] = (("minimum", 0), ("maximum", 0))


@dataclass(frozen=True)
class Number:
    """Marks a text that a manifest writes with or without quotes, as YAML then reads a number.

    No type of a CRD is number or string. The API server stores such a field as it is written, checks it by what follows
    here, and its CEL cannot look at it (decision 80). In Python it is the text that was written, never a float: 2e-4 is
    no other number after it has been read.
    """

    wanted: str
    """What it must be, after `must be`."""
    pattern: str
    bounds: Bounds
    """Of a number without quotes, as JSON Schema names them; the pattern says the same of one in quotes."""
    ranges: tuple[Bounds, ...] = ()
    """Of a number without quotes: it lies in one of these."""
    told: tuple[tuple[str, Any], ...] = ()
    """What the API server is told besides, where no field can say it: of the entries of a list."""
    finest: Decimal | None = None
    """Numbers without quotes are rounded up to multiples of it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._text, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return what can be said where no type can: each word holds for the values of its own type."""
        return {
            "x-kubernetes-preserve-unknown-fields": True,
            "pattern": self.pattern,
            "maxLength": _LONGEST_NUMBER,
            **dict(self.bounds),
            **({"anyOf": [dict(each) for each in self.ranges]} if self.ranges else {}),
            "maxItems": 0,
            "maxProperties": 0,
            "not": {"enum": [True, False, [], {}]},
            **dict(self.told),
        }

    def _text(self, value: Any) -> str:
        text = number_text(value, self.finest)
        if isinstance(value, int) and _WHOLE < value < 2**63:
            text = None  # as the API server has it, which compares it with no bound above it
        if not isinstance(text, str) or len(text) > _LONGEST_NUMBER or re.fullmatch(self.pattern, text) is None:
            number = isinstance(value, (int, float)) and value not in (0, math.inf, -math.inf)
            beyond = number and not _SMALLEST <= abs(value) < _LARGEST
            wanted = f"{self.wanted}, with an exponent of at most two digits" if beyond else self.wanted
            raise PydanticCustomError("number", "must be {wanted}", {"wanted": wanted})
        return text


def number_text(value: Any, finest: Decimal | None = None) -> Any:
    """Return a number as the shortest text that is the same number, without an exponent where there is room.

    It is rounded up to a multiple of `finest`, where there is one. What is no number stays as it is, and so does one
    that is larger than any float; of a whole number of more than 64 bits a float is left, as an API server stores it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(exact := _stored(value)):
        return value
    number = Decimal(repr(exact)) + 0  # -0 is 0
    if finest is not None and abs(number) < 2**53:  # beyond, a float is whole
        rounded = number.quantize(finest, ROUND_CEILING)
        number = number if number == rounded else rounded
    whole = number == number.to_integral_value()
    text = f"{number.to_integral_value() if whole else number:f}"
    return text if len(text) <= _LONGEST_NUMBER else f"{number.normalize():e}"


def _stored(value: float) -> float:
    try:
        return value if -(2**63) <= value < 2**63 else float(value)
    except OverflowError:
        return math.inf


_DECIMAL: Final = r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?"
_TINY: Final = "[eE]-(0?[1-9]|[1-9][0-9])"
_BELOW_1: Final = rf"0(\.[0-9]+)?|0?\.[0-9]+|[0-9](\.[0-9]+)?{_TINY}"
_SHARE: Final = rf"0?\.[0-9]*[1-9][0-9]*|([1-9](\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*){_TINY}"
"""Above 0 and below 1."""
_ONE: Final = r"1(\.0+)?"

DecimalString = Annotated[
    str,
    Number(
        "a number of at least 0",
        f"^{_DECIMAL}$",
        (("minimum", 0),),
        (*_up_to(_LARGEST), _NOT_ABOVE_0),
    ),
]
"""A number of at least 0. float() parses it."""

_TO_1: Final[Bounds] = (("minimum", 0), ("maximum", 1))
FractionString = Annotated[str, Number("a number from 0 to 1", f"^({_BELOW_1}|{_ONE})$", _TO_1, _SHARES)]
"""A number from 0 to 1."""

SignedDecimalString = Annotated[
    str,
    Number(
        "a number",
        f"^-?{_DECIMAL}$",
        (),
        (*_up_to(_LARGEST), _BELOW_0, _ZERO),
    ),
]
"""A number of any sign."""

QuantityString = Annotated[
    str,
    Number(
        "a quantity, such as 4, 0.5 or 500m",
        r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        (("minimum", 0),),
        ((("maximum", _WHOLE),), (("minimum", _WHOLE), ("maximum", 1e31))),
        finest=Decimal("1e-9"),
    ),
]
"""A Kubernetes quantity: 4, 500m, 24Gi. Without quotes it is rounded up to a billionth, as Kubernetes does, and has at
most 32 digits."""

CpuString = Annotated[
    str,
    Number(
        "an amount of CPU of at most 1000, such as 4, 0.5 or 500m",
        r"^0*(1000(\.0+)?|[0-9]{1,3}(\.[0-9]+)?|(1000000(\.0+)?|[0-9]{1,6}(\.[0-9]+)?)m)$",
        (("minimum", 0), ("maximum", 1000)),
        finest=Decimal("1e-9"),
    ),
]
"""A quantity of CPU: no node has more, and none counts them in bytes."""

ABOVE_0: Final[JsonDict] = {
    "pattern": r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)([eE][-+]?[0-9]{1,2})?$",
    "exclusiveMinimum": True,
}
"""Of a decimal: what the API server is told, which cannot compute with it; rules.py tells the rest of us."""
BELOW_1: Final[JsonDict] = {"pattern": f"^({_BELOW_1})$", "exclusiveMaximum": True}
"""Of a fraction."""
SOME: Final[JsonDict] = {"pattern": f"^({_SHARE}|{_ONE})$", "exclusiveMinimum": True}
"""Of a fraction: above 0."""
SHARE: Final[JsonDict] = {"pattern": f"^({_SHARE})$", "exclusiveMinimum": True, "exclusiveMaximum": True}
"""Of a fraction: above 0 and below 1."""
ShareString = Annotated[
    str,
    Number("a number from 0 to 1", f"^({_BELOW_1}|{_ONE})$", _TO_1, _SHARES, told=tuple(SHARE.items())),
]
"""A fraction above 0 and below 1, as an entry of a list."""
WEIGHT: Final[JsonDict] = {
    "pattern": r"^-?(1000(\.0+)?|[0-9]{1,3}(\.[0-9]+)?([eE]-[0-9]{1,2})?|[0-9](\.[0-9]+)?[eE]\+?0?[0-2])$",
    "minimum": -1000,
    "maximum": 1000,
}
"""Of a signed decimal: the weight of an adapter in a merge."""
GAIN: Final[JsonDict] = {
    "pattern": rf"^(-{_DECIMAL}|0+(\.[0-9]+)?|[0-9](\.[0-9]+)?{_TINY})$",
    "maximum": 1,
    "exclusiveMaximum": True,
}
"""Of a signed decimal: below 1."""


def is_number(info: FieldInfo) -> bool:
    """Tell whether a field is marked as a Number, which the API server's CEL cannot look at."""
    beneath = itertools.chain.from_iterable(getattr(each, "__metadata__", ()) for each in get_args(info.annotation))
    return any(isinstance(mark, Number) for mark in (*info.metadata, *beneath))


def _whole_bytes(value: Any) -> Any:
    text = number_text(value)
    whole = not isinstance(value, (int, float)) or (abs(value) < _MOST_BYTES and value == int(value))
    if not isinstance(text, str) or not whole:
        raise PydanticCustomError("number", "must be {wanted}", {"wanted": _BYTES})
    return text


_MOST_BYTES: Final = 2**63
"""Of a number without quotes: it is one of 64 bits."""
_BYTES: Final = "a number of bytes above 0, such as 24Gi"
_BYTES_PATTERN: Final = r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LEAST: Final = "x-tunery-least"
"""Marks the least of a quantity of bytes, for a rule of the API server."""
_BYTES_SCHEMA: Final = {"x-kubernetes-int-or-string": True, "pattern": _BYTES_PATTERN, "maxLength": 32, "minimum": 1}


def _at_least(least: str) -> AfterValidator:
    def check(text: str) -> str:
        if parse_quantity(text) < parse_quantity(least):
            raise PydanticCustomError("too_few_bytes", "must be at least {least}", {"least": least})
        return text

    return AfterValidator(check)


_Bytes = Annotated[str, BeforeValidator(_whole_bytes), Field(min_length=1, max_length=32, pattern=_BYTES_PATTERN)]
"""`100m` would be a tenth of a byte, which Kubernetes takes and nobody means."""
MemoryString = Annotated[_Bytes, _at_least("64Mi"), WithJsonSchema({**_BYTES_SCHEMA, LEAST: "64Mi"})]
"""A quantity of bytes that a container can begin with: 24Gi, 25769803776. With less, a unit was forgotten: that would
end much later, on a node that can mount nothing into so little."""
DiskString = Annotated[_Bytes, _at_least("1Mi"), WithJsonSchema({**_BYTES_SCHEMA, LEAST: "1Mi"})]
"""A quantity of bytes of a disk."""

_BAD_PATH: Final = "://(.*/)?([.]{0,2}/|[.][.]?$)"
"""Matches a URI whose path has an empty part, "." or "..": another spelling of a plain URI. One slash at the end is
allowed."""
PLAIN_PATH: Final = 'must be like s3://bucket/folder, with no empty part, "." or ".." in the path'


def _check_path(uri: str) -> str:
    # Without a cluster, file:// may be relative; same_place compares it as it is resolved.
    if not uri.startswith("file://") and re.search(_BAD_PATH, uri):
        raise PydanticCustomError("uri_path", PLAIN_PATH)
    return uri


def _uri(pattern: str) -> Any:
    """Return the constraints of a URI in Python."""
    return Field(min_length=6, max_length=1024, pattern=pattern)


def _uri_schema(pattern: str) -> WithJsonSchema:
    """Return the JSON schema of a URI; file:// is for runs without a cluster, and not in the CRD."""
    rule = {"rule": f"!self.matches('{_BAD_PATH}')", "message": f"uri {PLAIN_PATH}"}
    schema = {"type": "string", "minLength": 6, "maxLength": 1024, "pattern": pattern}
    return WithJsonSchema({**schema, "x-kubernetes-validations": [rule]})


ModelUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$"),
]
"""Where a model lies."""

DatasetUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$"),
]
"""Where a data set lies: a file, a folder or a glob."""

AdapterUri = Annotated[
    str,
    _uri(rf"^((hf|s3|file)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$"),
    AfterValidator(_check_path),
    _uri_schema(rf"^((hf|s3)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$"),
]
"""Where an adapter lies: the folder of its two files; hf://owner/name, or a folder in it."""

StorageUri = Annotated[
    str, _uri(r"^(s3|file)://[^\s?#*]+$"), AfterValidator(_check_path), _uri_schema(r"^s3://[^\s?#*]+$")
]
"""A place that can be written: a bucket and a prefix."""


def same_place(one: str, other: str | None) -> bool:
    """Return whether two URIs name one place, however many slashes or dots they have."""
    return other is not None and normpath(one) == normpath(other)


def overlap(one: str, other: str | None) -> bool:
    """Return whether of two URIs one is the other's place, or lies within it."""
    if other is None:
        return False
    first, second = (f"{normpath(uri)}/" for uri in (one, other))
    return first.startswith(second) or second.startswith(first)


_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.+")
"""A bucket of any S3-compatible storage, upper case and underscores too, or an access point: as boto3 takes it."""


def bucket_problem(bucket: str) -> str | None:
    """Return what is wrong with the bucket of a URI, None where nothing is.

    The bucket is not shown: with credentials in it, it is none, but it is still a credential.
    """
    if _BUCKET.fullmatch(bucket):
        return None
    return "holds credentials, which belong into the Secret of secretRef" if "@" in bucket else "names no bucket"


_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_SUFFIX |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}


def parse_quantity(text: str) -> Decimal:
    """Return the number that a Kubernetes quantity such as `24Gi` or `500m` stands for.

    Raises ValueError when `text` is not a quantity.
    """
    number = text.rstrip("mkKMGTPEi")
    suffix = text[len(number) :]
    if suffix == "m":
        return Decimal(number) / 1000
    if suffix not in _SUFFIX:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(number) * _SUFFIX[suffix]
