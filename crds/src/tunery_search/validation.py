"""Validate the manifest of a LoRASweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunery_api.errors import FieldError
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.validation import parse_spec
from tunery_search.rules import LORASWEEP_RULES, warm_start_of_another


def parse_lorasweep(obj: Any, *, local: bool = False) -> LoRASweepSpec:
    """Return the spec of a LoRASweep object; see tunery_api.validation.parse_lorajob."""

    def warm_start(spec: LoRASweepSpec) -> Iterable[FieldError]:
        return warm_start_of_another(spec, _name(obj))

    return parse_spec(obj, LoRASweepSpec, (*LORASWEEP_RULES, warm_start), local)


def _name(obj: Mapping[str, Any]) -> str:
    """Return the name of an object, "" where it has none."""
    metadata = obj.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""
