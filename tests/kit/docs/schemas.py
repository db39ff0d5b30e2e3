"""The CRDs as a reader of the docs meets them: kinds by every name of theirs, and whether a path leads to a field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from kit.shown import ROOT

_STEP = re.compile(
    r"\.?(?P<name>[A-Za-z_][\w-]*)|\[(?P<index>\d+|\*)\]|\[\?\(@(?P<filter>\.[\w.]+)[^)]*\)\]|\[(?P<quoted>'[^']+')\]"
)
_METADATA = {"name", "namespace", "uid", "labels", "annotations", "creationTimestamp", "generation"}
"""Of an object's metadata, which no CRD lists."""


@dataclass(frozen=True)
class Kind:
    """One kind of ours."""

    name: str
    names: frozenset[str]
    schema: dict[str, Any]
    selectable: frozenset[str]

    def missing(self, path: str) -> str | None:
        """Return the first part of a path, such as .status.conditions[?(@.type=="Failed")].reason, that is no field."""
        at: Any = self.schema
        for match in _STEP.finditer(path):
            if match["name"]:
                found = _below(at, match["name"])
            elif match["quoted"]:
                found = at.get("additionalProperties") if at else None
            else:
                found = at.get("items") if at else None
                if match["filter"] and found is not None and _below(found, match["filter"].lstrip(".")) is None:
                    return match["filter"]
            if found is None:
                return match.group()
            at = found
        return None

    def unknown(self, value: Any, path: str = "") -> Iterator[str]:
        """Return the paths of a patch that are no fields."""
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from self.unknown(inner, f"{path}.{name}")
        elif self.missing(path):
            yield path


def _below(at: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the schema of a field; where anything may stand, an empty one."""
    properties: dict[str, Any] = at.get("properties", {})
    if name in properties:
        found: dict[str, Any] = properties[name]
        return found
    free = at.get("additionalProperties")
    if isinstance(free, dict):
        return free
    return {} if not properties and (free or at == {} or at.get("x-kubernetes-preserve-unknown-fields")) else None


@cache
def kinds() -> dict[str, Kind]:
    """Return our kinds by every name that kubectl takes for them."""
    found: dict[str, Kind] = {}
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        names, version = spec["names"], spec["versions"][0]
        known = {names["kind"].lower(), names["plural"], names["singular"], *names.get("shortNames", [])}
        known |= {f"{names['plural']}.{spec['group']}", f"{names['singular']}.{spec['group']}"}
        schema = dict(version["schema"]["openAPIV3Schema"])
        metadata = {"properties": {name: {} for name in _METADATA}}
        schema["properties"] = schema["properties"] | {"metadata": metadata}
        selectable = {field["jsonPath"].lstrip(".") for field in version.get("selectableFields", [])}
        kind = Kind(names["kind"], frozenset(known), schema, frozenset(selectable))
        found |= dict.fromkeys(known, kind)
    return found
