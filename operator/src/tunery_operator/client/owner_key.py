"""Whose a child is, by its controller reference."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key, controller_of

_KINDS: Final = {kind.value: kind for kind in Kind}


def owner_key(body: dict[str, Any]) -> Key | None:
    """Return the key of the object of ours that controls a child, or None."""
    reference = controller_of(body)
    kind = _KINDS.get(reference.get("kind", ""))
    if kind is None or not str(reference.get("apiVersion", "")).startswith("tunery.dev/"):
        return None
    return Key(kind, body["metadata"]["namespace"], reference["name"])
