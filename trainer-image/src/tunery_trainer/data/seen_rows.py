"""The rows of one side by their digests: how many differ, which stand there again, and where each stood first."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunery_trainer.data.spill import Buckets, Records

Digest = bytes
"""16 bytes, as good as drawn: Example.digest()."""

_BUCKETS: Final = 256
_ROW: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("ordinal", "<u8"), ("note", "<u8")])
_PACK: Final = struct.Struct("<QQ").pack
_GROUP: Final = np.dtype([*_ROW.descr, ("rows", "<u8")])
_PENDING: Final = 1 << 15
"""So many rows of a bucket wait at least before equal ones become one."""


class Pair(NamedTuple):
    """A row and the one that it equals, by their ordinals and notes."""

    ordinal: int
    note: int
    of_ordinal: int
    of_note: int


class Pairs:
    """Rows, each with the one that it equals: counted, and the first ones kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0
        self.first: list[Pair] = []
        """At most as many as were asked for, in the order of the rows."""

    def add(self, rows: Records, equals: Records) -> None:
        """Look at some, in any order, each beside its equal."""
        self.count += len(rows)
        some = np.argsort(rows["ordinal"], kind="stable")[: self._most]
        columns = (side[name][some].tolist() for side in (rows, equals) for name in ("ordinal", "note"))
        self.first = heapq.nsmallest(self._most, [*self.first, *(Pair(*each) for each in zip(*columns, strict=True))])


class SeenRows:
    """Memory does not grow with the rows: a file takes 32 bytes for each.

    Equal rows have equal digests and so lie in one bucket, and only one bucket is looked at at a time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._rows = Buckets(_ROW, _BUCKETS, folder)
        self._count = 0

    def __len__(self) -> int:
        """How many rows there are, equal ones included."""
        return self._count

    def add(self, digest: Digest, note: int = 0) -> None:
        """Append a row; its ordinal is the number of rows before it. `note` is kept beside it: at least 0."""
        self._rows.append(digest[0] % _BUCKETS, digest + _PACK(self._count, note))
        self._count += 1

    def groups(self) -> Iterator[Records]:
        """Yield the different rows, a bucket at a time: digest, ordinal of the first, how many `rows` there are.

        The notes of equal rows are joined bit by bit.
        """
        for bucket in range(_BUCKETS):
            yield self._groups(bucket, None)

    def repeated(self, most: int) -> Pairs:
        """Return the rows that stand there again, each with the first one."""
        pairs = Pairs(most)
        for bucket in range(_BUCKETS):
            self._groups(bucket, pairs)
        return pairs

    def shared(self, earlier: SeenRows, most: int) -> Pairs:
        """Return the rows that `earlier` has, too, each with the first one there."""
        pairs = Pairs(most)
        for bucket in range(_BUCKETS):
            groups = earlier._groups(bucket, Pairs(0))
            for piece in self._rows.read(bucket):
                found = matching(piece, groups)
                pairs.add(piece[found >= 0], groups[found[found >= 0]])
        return pairs

    def _groups(self, bucket: int, again: Pairs | None) -> Records:
        found, waiting, count = np.empty(0, _GROUP), [], 0
        for piece in self._rows.read(bucket):
            waiting.append(piece)
            count += len(piece)
            if count >= max(_PENDING, len(found)):
                found, waiting, count = _joined(found, waiting, again), [], 0
        return _joined(found, waiting, again) if waiting else found

    def ordinals(self, digests: Collection[Digest]) -> npt.NDArray[np.int64]:
        """Return the ordinals of all rows with one of these digests, ascending."""
        wanted: dict[int, list[Digest]] = {}
        for digest in digests:
            wanted.setdefault(digest[0] % _BUCKETS, []).append(digest)
        found = [np.empty(0, np.int64)]
        for bucket, some in wanted.items():
            keys = np.frombuffer(b"".join(sorted(some)), [("high", ">u8"), ("low", ">u8")])
            for piece in self._rows.read(bucket):
                found.append(piece["ordinal"][matching(piece, keys) >= 0].astype(np.int64))
        return np.sort(np.concatenate(found))


def _joined(found: Records, waiting: Iterable[Records], again: Pairs | None) -> Records:
    """Return the groups of `found` and of further rows, by digest; `again` is told of rows that are there again."""
    rows = np.concatenate(list(waiting))
    every = np.ones(len(found) + len(rows), _GROUP)
    every[: len(found)] = found
    for name in _ROW.names or ():
        every[name][len(found) :] = rows[name]
    # Stable, and what was found before stands first: of equal rows the first stays the first.
    every = every[np.lexsort((every["low"], every["high"]))]
    first = np.ones(len(every), bool)
    first[1:] = (every["high"][1:] != every["high"][:-1]) | (every["low"][1:] != every["low"][:-1])
    starts = np.flatnonzero(first)
    groups = every[starts]
    groups["rows"] = np.add.reduceat(every["rows"], starts)
    if again is None:
        groups["note"] = np.bitwise_or.reduceat(every["note"], starts)
    elif len(starts) < len(every):
        again.add(every[~first], groups[(np.cumsum(first) - 1)[~first]])
    return groups


def matching(rows: Records, groups: Records) -> npt.NDArray[np.int64]:
    """Return of each row the index of the one of `groups`, sorted by digest, that has its digest; -1 where none has."""
    if not len(groups) or not len(rows):
        return np.full(len(rows), -1)
    keys, wanted = (np.ascontiguousarray(each["high"]).astype("<u8") for each in (groups, rows))
    at = np.searchsorted(keys, wanted).astype(np.int64)
    result = np.full(len(rows), -1)
    # Digests whose first halves are equal are next to impossible; of those each one is looked at.
    while (open_ := (at < len(keys)) & (result < 0) & (keys[np.minimum(at, len(keys) - 1)] == wanted)).any():
        same = open_ & (groups["low"][np.minimum(at, len(keys) - 1)] == rows["low"])
        result[same] = at[same]
        at[open_ & ~same] += 1
    return result
