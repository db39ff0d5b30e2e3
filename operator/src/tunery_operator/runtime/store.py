"""Provide a thread-safe store of views: the newest version of an object wins, and indexes find related objects.

It is what client-go calls an Indexer. Watches, reads, and writes put what they saw, in any order and repeatedly.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from tunery_operator.observed.metadata import Key

REMEMBERED: Final = 4096
"""Number of deleted objects that a store remembers: no event is late by more deletions than these."""


class View(Protocol):
    """A frozen dataclass with what the operator keeps of an object."""

    @property
    def namespace(self) -> str:
        """The namespace."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def uid(self) -> str:
        """metadata.uid."""

    @property
    def version(self) -> str:
        """metadata.resourceVersion."""


T = TypeVar("T", bound=View)
Index = Callable[[T], Iterable[Hashable]]
"""Returns the values of an index under which an object is found."""
OnChange = Callable[[T, T | None, bool], Iterable[Key]]
"""Called with an object as it is now, as it was before (None: new), and whether it was deleted; returns the keys to
reconcile."""


def later(version: str, known: str) -> bool:
    """Return whether a resource version is later than another one of the same resource, also of another object."""
    if version.isdigit() and known.isdigit():
        return int(version) > int(known)
    return version != known


class Store(Generic[T]):
    """The objects of one resource, by namespace and name. Stores with relations share one lock.

    An object for which `selects` is false is deleted.
    """

    def __init__(
        self,
        lock: threading.RLock,
        on_change: OnChange[T] = lambda item, before, deleted: (),
        indexes: Mapping[str, Index[T]] | None = None,
        selects: Callable[[T], bool] = lambda item: True,
    ) -> None:
        self._lock = lock
        self._on_change = on_change
        self._selects = selects
        self._items: dict[str, dict[str, T]] = {}
        self._indexes = dict(indexes or {})
        self._indexed: dict[str, dict[Hashable, dict[str, T]]] = {name: {} for name in self._indexes}
        """Objects by uid, by name of an index and its value."""
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        """The uids of the objects that were deleted last: no late event brings one back."""

    def put(self, item: T) -> set[Key]:
        """Add or update an object; return the keys to reconcile: none if this state is not newer than the known one."""
        with self._lock:
            before, keys = self.get(item.namespace, item.name), set[Key]()
            if item.uid in self._tombstones or (before is not None and not later(item.version, before.version)):
                return keys
            if before is not None and before.uid != item.uid:
                keys, before = self.delete(_as_of(before, item.version)), None
            if not self._selects(item):
                return keys | self.delete(item)
            if before is not None:
                self._unindex(before)
            self._items.setdefault(item.namespace, {})[item.name] = item
            for name, value in self._index_values(item):
                self._indexed[name].setdefault(value, {})[item.uid] = item
            if before is None or _as_of(before, item.version) != item:
                keys.update(self._on_change(item, before, False))
            return keys

    def delete(self, item: T) -> set[Key]:
        """Delete an object, of which `item` is the last state; return the keys to reconcile.

        Another object of its name stays.
        """
        with self._lock:
            self._tombstones[item.uid] = None
            if len(self._tombstones) > REMEMBERED:
                self._tombstones.popitem(last=False)
            known = self.get(item.namespace, item.name)
            if known is None or known.uid != item.uid:
                return set()
            self._unindex(known)
            names = self._items[item.namespace]
            del names[item.name]
            if not names:
                del self._items[item.namespace]
            return set(self._on_change(item, known, True))

    def prune(self, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Delete what a complete list of that version does not have; return the keys to reconcile.

        The list is of one namespace, or of all. An object that is newer than the list stays.
        """
        with self._lock:
            missing = [x for x in self.items(namespace) if x.uid not in uids and not later(x.version, version)]
            return {key for item in missing for key in self.delete(_as_of(item, version))}

    def get(self, namespace: str, name: str) -> T | None:
        """Return an object, or None if the store has none of that name."""
        with self._lock:
            return self._items.get(namespace, {}).get(name)

    def items(self, namespace: str | None = None) -> list[T]:
        """Return all objects, or those of one namespace."""
        with self._lock:
            if namespace is not None:
                return [*self._items.get(namespace, {}).values()]
            return [item for items in self._items.values() for item in items.values()]

    def by_index(self, index: str, value: Hashable) -> tuple[T, ...]:
        """Return the objects that an index has under a value."""
        with self._lock:
            return tuple(self._indexed[index].get(value, {}).values())

    def _index_values(self, item: T) -> Iterable[tuple[str, Hashable]]:
        return [(name, value) for name, values_of in self._indexes.items() for value in values_of(item)]

    def _unindex(self, item: T) -> None:
        for name, value in self._index_values(item):
            found = self._indexed[name][value]
            found.pop(item.uid, None)
            if not found:
                del self._indexed[name][value]


def _as_of(item: T, version: str) -> T:
    """Return an object with another version."""
    return cast(T, dataclasses.replace(cast(Any, item), version=version))
