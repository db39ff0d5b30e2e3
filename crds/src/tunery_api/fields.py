"""The building blocks of every spec: the base model, and strings with a pattern and a maximum."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


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


SERVER_DEFAULT: Final = "x-tunery-server-default"
"""Marks a field whose default the API server itself fills in, so that a column can show it."""

_NAME: Final = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
DNS_SUBDOMAIN: Final = f"^{_NAME}$"

Text = Annotated[str, Field(max_length=1024)]
"""A sentence of a status."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""The name of an object in the same namespace."""

DecimalString = Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$")]
"""A number of at least 0, as a string: the API conventions discourage floats. float() parses it."""

FractionString = Annotated[str, Field(min_length=1, max_length=12, pattern=r"^(0(\.[0-9]+)?|1(\.0+)?|0?\.[0-9]+)$")]
"""A number from 0 to 1, as a string."""

SignedDecimalString = Annotated[
    str, Field(min_length=1, max_length=20, pattern=r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$")
]
"""A number of any sign, as a string."""

QuantityString = Annotated[
    str, Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
]
"""A Kubernetes quantity: 4, 500m, 24Gi."""

BytesString = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
    ),
]
"""A quantity of bytes above 0: 24Gi. `100m` would be a tenth of a byte, which Kubernetes takes and nobody means."""

ModelUri = Annotated[
    str,
    Field(min_length=6, max_length=1024, pattern=rf"^((hf|s3|file)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$"),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 6,
            "maxLength": 1024,
            "pattern": rf"^((hf|s3)://[^\s?#]+|pvc://{_NAME}(/[^\s?#]*)?)$",
        }
    ),
]
"""Where a model lies; file:// is for runs without a cluster and not in the CRD."""

DatasetUri = Annotated[
    str,
    Field(min_length=6, max_length=1024, pattern=rf"^((hf|s3|file)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$"),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 6,
            "maxLength": 1024,
            "pattern": rf"^((hf|s3)://[^\s#]+|(pvc|configmap)://{_NAME}(/[^\s#]*)?)$",
        }
    ),
]
"""Where a data set lies: a file, a folder or a glob."""

AdapterUri = Annotated[
    str,
    Field(min_length=6, max_length=1024, pattern=rf"^((hf|s3|file)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$"),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 6,
            "maxLength": 1024,
            "pattern": rf"^((hf|s3)://[^\s?#*]+|pvc://{_NAME}(/[^\s?#*]*)?)$",
        }
    ),
]
"""Where an adapter lies: the folder of its two files; hf://owner/name, or a folder in it."""

StorageUri = Annotated[
    str,
    Field(min_length=6, max_length=1024, pattern=r"^(s3|file)://[^\s?#*]+$"),
    WithJsonSchema({"type": "string", "minLength": 6, "maxLength": 1024, "pattern": r"^s3://[^\s?#*]+$"}),
]
"""A place that can be written: a bucket and a prefix."""


def same_place(one: str, other: str | None) -> bool:
    """Tell whether two URIs name one place."""
    return other is not None and one.rstrip("/") == other.rstrip("/")


def overlap(one: str, other: str | None) -> bool:
    """Tell whether of two URIs one is the other's place, or lies within it."""
    if other is None:
        return False
    first, second = (f"{uri.rstrip('/')}/" for uri in (one, other))
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
    number = text.rstrip("mkMGTPEi")
    suffix = text[len(number) :]
    if suffix == "m":
        return Decimal(number) / 1000
    if suffix not in _SUFFIX:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(number) * _SUFFIX[suffix]
