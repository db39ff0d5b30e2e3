"""The validation of each kind in Python, and in an API server, of the same spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tunery_api.errors import InvalidSpec
from tunery_api.kinds import Kind
from tunery_api.names import API_VERSION
from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

Spec = dict[str, Any]
PARSERS: Final[Mapping[str, Callable[..., Any]]] = {
    Kind.LORAJOB: parse_lorajob,
    Kind.ADAPTERMERGE: parse_adaptermerge,
    Kind.LORASWEEP: parse_lorasweep,
    Kind.ADAPTERSERVER: parse_adapterserver,
    Kind.BATCHINFERENCE: parse_batchinference,
}
MODEL: Final = {"uri": "hf://models/m"}
ROWS: Final = {"uri": "s3://d/rows.jsonl"}
ONE: Final = {"uri": "s3://adapters/one"}
TEMPLATE: Final[Spec] = {"model": MODEL, "dataset": ROWS}
BASES: Final[Mapping[Kind, Spec]] = {
    Kind.LORAJOB: TEMPLATE,
    Kind.ADAPTERMERGE: {"adapters": [ONE]},
    Kind.LORASWEEP: {"template": TEMPLATE, "preset": "Guide"},
    Kind.ADAPTERSERVER: {"model": MODEL},
    Kind.BATCHINFERENCE: {"serverRef": {"name": "s"}, "input": ROWS},
}
"""The smallest valid spec of each kind."""


def manifest(kind: Kind, changes: Spec, name: str = "case") -> dict[str, Any]:
    """Return an object whose spec is the smallest one with `changes`; a change to None removes the field."""
    spec = {field: value for field, value in (BASES[kind] | changes).items() if value is not None}
    return {"apiVersion": API_VERSION, "kind": kind.value, "metadata": {"name": name}, "spec": spec}


def python_errors(body: Mapping[str, Any]) -> list[str]:
    """Return each error of Python: the field, a colon, and the message."""
    try:
        PARSERS[body["kind"]](body)
    except InvalidSpec as error:
        return [str(each) for each in error.errors]
    return []


def server_error(api_server: ApiServer, namespace: str, body: Mapping[str, Any]) -> str:
    """Return why an API server rejects an object, or nothing."""
    try:
        api_server.create(body, namespace, dry_run=True)
    except KubectlError as error:
        return str(error)
    return ""
