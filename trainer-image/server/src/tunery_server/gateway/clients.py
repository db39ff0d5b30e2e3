"""Clients that the spec lists and the Secret does not have: a rule for a misspelt name binds nobody."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from tunery_api.errors import did_you_mean

CLIENTS_HINT: Final = (
    "Correct the name in spec.access.clients, or add the key to the Secret: the replicas see it within "
    "90 seconds, without a restart."
)
_NAMED: Final = 5
"""Names in a message; the others are counted."""
_NEAR_AMONG: Final = 200
"""Names at most among which a close one is looked for."""


@lru_cache(maxsize=4)
def unknown_clients(listed: frozenset[str], held: frozenset[str], secret: str) -> str | None:
    """Return what is wrong with the clients that spec.access.clients lists; None: all are keys of the Secret.

    Who is a key of the Secret and not listed may ask for every model, which is what a misspelt name leads to.
    """
    missing, free = sorted(listed - held), sorted(held - listed)
    if not missing:
        return None
    has = f"it has {_names(sorted(held))}" if held else "it has none"
    what = "is no key" if len(missing) == 1 else "are no keys"
    meant = did_you_mean(missing[0], free) if len(free) <= _NEAR_AMONG else ""
    text = f"spec.access.clients names {_names(missing)}, which {what} of Secret {secret} ({has}){meant}"
    if not free:
        return text
    end = "" if text.endswith("?") else "."
    verb = "is not listed and so may" if len(free) == 1 else "are not listed and so may"
    return f"{text}{end} {_names(free)} {verb} ask for every model"


def _names(names: Collection[str]) -> str:
    shown, more = list(names)[:_NAMED], len(names) - _NAMED
    return ", ".join(shown) if more <= 0 else f"{', '.join(shown)} and {more} more"
