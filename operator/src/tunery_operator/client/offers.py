"""What each LoRAJob and AdapterMerge offers to servers, and which servers want it; not safe for threads, see cache.py.

An offer outlives its object's end: of an object that has ended nothing else is kept. It goes with the object.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError

from tunery_api.adapterserver import AdapterSelector
from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.published_result import PublishedResult, parse_published_result
from tunery_operator.planning.resolution import selects

OfferKey = tuple[Kind, str]
_REFERENCES: Final = {"loraJobRef": Kind.LORAJOB, "adapterMergeRef": Kind.ADAPTERMERGE}


@dataclass(slots=True)
class AdapterQuery:
    """What one server asks for, by name or by labels, and what that is now."""

    names: frozenset[OfferKey]
    selector: AdapterSelector | None
    found: set[OfferKey] = field(default_factory=set)

    def wants(self, offer: PublishedResult) -> bool:
        """Tell whether the server has to know of an offer."""
        named = (offer.kind, offer.name) in self.names
        return named or (self.selector is not None and selects(self.selector, offer.labels))


class Offers:
    """Offers and wishes, by namespace."""

    def __init__(self) -> None:
        self._offers: dict[str, dict[OfferKey, PublishedResult]] = {}
        self._wishes: dict[str, dict[Key, AdapterQuery]] = {}

    def see(self, key: Key, body: Mapping[str, Any]) -> set[Key]:
        """Take note of an object's newest state; return the servers that have to know of what changed."""
        offers = self._offers.setdefault(key.namespace, {})
        place, offer = (key.kind, key.name), _small(parse_published_result(key.kind, body))
        if offers.get(place) == offer:
            return set()
        offers[place] = offer
        woken = set()
        for server, wish in self._wishes.get(key.namespace, {}).items():
            if wish.wants(offer):
                wish.found.add(place)
                woken.add(server)
            elif place in wish.found:
                wish.found.discard(place)
                woken.add(server)
        return woken

    def forget(self, key: Key) -> set[Key]:
        """Forget a deleted object; return the servers that wanted what it offered."""
        offers, place = self._offers.get(key.namespace, {}), (key.kind, key.name)
        if offers.pop(place, None) is not None and not offers:
            del self._offers[key.namespace]
        woken = set()
        for server, wish in self._wishes.get(key.namespace, {}).items():
            if place in wish.found:
                wish.found.discard(place)
                woken.add(server)
        return woken

    def follow(self, key: Key, spec: Mapping[str, Any]) -> None:
        """Take note of what a server asks for, in whatever state its spec is."""
        wishes = self._wishes.setdefault(key.namespace, {})
        names, selector = _names(spec), _selector(spec)
        before = wishes.get(key)
        if before is not None and (before.names, before.selector) == (names, selector):
            return
        wish = wishes[key] = AdapterQuery(names, selector)
        wish.found = {place for place, offer in self._offers.get(key.namespace, {}).items() if wish.wants(offer)}

    def leave(self, key: Key) -> None:
        """Forget what a server asked for."""
        wishes = self._wishes.get(key.namespace, {})
        if wishes.pop(key, None) is not None and not wishes:
            del self._wishes[key.namespace]

    def servers(self, namespace: str) -> list[str]:
        """Return the names of all servers of a namespace."""
        return sorted(key.name for key in self._wishes.get(namespace, {}))

    def of(self, key: Key) -> dict[OfferKey, PublishedResult]:
        """Return what a server asks for and what exists of that."""
        wish = self._wishes.get(key.namespace, {}).get(key)
        offers = self._offers.get(key.namespace, {})
        return {} if wish is None else {place: offers[place] for place in wish.found}


_NONE: Final[dict[str, str]] = {}


def _small(offer: PublishedResult) -> PublishedResult:
    """Return the offer with every text that others have too kept once: 10,000 of them are to cost little."""
    return replace(
        offer,
        created=sys.intern(offer.created),
        labels={sys.intern(name): sys.intern(value) for name, value in offer.labels.items()} or _NONE,
        phase=sys.intern(offer.phase),
        served_name=_shared(offer.served_name),
        method=_shared(offer.method),
    )


def _shared(text: str | None) -> str | None:
    return None if text is None else sys.intern(text)


def _names(spec: Mapping[str, Any]) -> frozenset[OfferKey]:
    items = [item for item in spec.get("adapters") or () if isinstance(item, Mapping)]
    found = ((kind, (item.get(field) or {}).get("name", "")) for item in items for field, kind in _REFERENCES.items())
    return frozenset((kind, name) for kind, name in found if name)


def _selector(spec: Mapping[str, Any]) -> AdapterSelector | None:
    """Return the selector of a spec; None where it has none, or one that is not valid: nothing is resolved then."""
    try:
        return AdapterSelector.model_validate(spec["adapterSelector"])
    except (KeyError, ValidationError):
        return None
