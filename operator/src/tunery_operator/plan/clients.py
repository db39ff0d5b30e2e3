"""What clients of a server may ask for and that server does not have: a name misspelt, or one that is to come."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import near

_NEAR_AMONG: Final = 200
"""Names at most among which a close one is looked for."""


class NoModel(NamedTuple):
    """A model that a client may ask for, and that is none of this server's now."""

    client: str
    model: str
    near: str
    """`; did you mean …?` where there is a close name; looked for only for the first."""
    may_come: bool
    """The selector may find it yet."""


def no_models(spec: AdapterServerSpec, known: Collection[str]) -> Iterator[NoModel]:
    """Yield what clients may ask for that is none of `known`, nor an alias."""
    names = {*known, *(alias.name for alias in spec.aliases or ())}
    may_come, looks = spec.adapter_selector is not None, len(names) <= _NEAR_AMONG
    for client in spec.access.clients or ():
        for model in client.models:
            if model not in names:
                yield NoModel(client.name, model, near(model, sorted(names)) if looks else "", may_come)
                looks = False
