"""Which of two states of an object is the later one, and which objects are gone for good."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

REMEMBERED: Final = 4096
"""So many deleted objects are remembered: an event that was late by more than these is not expected."""


def later(version: str, known: str) -> bool:
    """Tell whether a resource version is later than another; they are numbers on every real API server.

    Versions of one resource can be compared across its objects, too.
    """
    if version.isdigit() and known.isdigit():
        return int(version) > int(known)
    return version != known


class Tombstones:
    """The uids of the objects that went last: a late event must not bring one back."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._uids: OrderedDict[str, None] = OrderedDict()

    def add(self, uid: str) -> None:
        """Take note that the object with this uid is gone."""
        self._uids[uid] = None
        if len(self._uids) > self._limit:
            self._uids.popitem(last=False)

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids
