"""Records that grow with the rows and shall not grow memory: a few hundred KiB are held, the rest is in a file."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[Any]
"""Structured: a field for each part of a record. Shape (records,)."""

HELD_BYTES: Final = 1 << 18
"""A column holds so many before it writes them down."""
_HELD_OF_BUCKET: Final = 1 << 14


class _Unnamed:
    """A file without a name, made as soon as something is written; it goes with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, data: bytearray) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (it lives as long as this)
        self._file.seek(self.size)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        if self._file is None or not size:
            return b""
        self._file.seek(offset)
        return self._file.read(size)


class Column:
    """Records one after the other, each of `dtype`'s size; `folder` is where the file lies (None: the usual place)."""

    def __init__(self, dtype: npt.DTypeLike, folder: Path | None) -> None:
        self._dtype = np.dtype(dtype)
        self._file = _Unnamed(folder)
        self._held = bytearray()

    def append(self, record: bytes) -> None:
        """Add one."""
        self._held += record
        if len(self._held) >= HELD_BYTES:
            self._file.append(self._held)
            self._held = bytearray()

    def __len__(self) -> int:
        """How many there are."""
        return (self._file.size + len(self._held)) // self._dtype.itemsize

    def read(self, first: int, end: int) -> Records:
        """Return records `first` to `end`, the last one not included."""
        start, stop = first * self._dtype.itemsize, min(end, len(self)) * self._dtype.itemsize
        written = self._file.size
        data = self._file.read(start, max(0, min(stop, written) - start))
        data += self._held[max(0, start - written) : max(0, stop - written)]
        return np.frombuffer(data, self._dtype)

    def chunks(self, size: int) -> Iterator[Records]:
        """Yield all of them in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.read(first, first + size)


class Buckets:
    """Records of `dtype` in `count` buckets, in each of them in the order in which they came."""

    def __init__(self, dtype: npt.DTypeLike, count: int, folder: Path | None) -> None:
        self._dtype = np.dtype(dtype)
        self._file = _Unnamed(folder)
        self._held = [bytearray() for _ in range(count)]
        self._pieces = [array("Q") for _ in range(count)]
        """Of each bucket where its pieces lie, and how long they are."""

    def append(self, bucket: int, record: bytes) -> None:
        """Add one."""
        held = self._held[bucket]
        held += record
        if len(held) >= _HELD_OF_BUCKET:
            self._pieces[bucket].extend((self._file.size, len(held)))
            self._file.append(held)
            self._held[bucket] = bytearray()

    def read(self, bucket: int) -> Iterator[Records]:
        """Yield the records of a bucket in pieces."""
        pieces = self._pieces[bucket]
        for offset, size in zip(pieces[::2], pieces[1::2], strict=True):
            yield np.frombuffer(self._file.read(offset, size), self._dtype)
        if self._held[bucket]:
            yield np.frombuffer(bytes(self._held[bucket]), self._dtype)
