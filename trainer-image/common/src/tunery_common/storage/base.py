"""What every store can do, and the two answers that callers must expect: missing and exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError

OWN_PREFIX: Final = ".tunery-"
"""Begins the names of Tunery's own files next to a result: its claim, probes and unfinished writes."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that moved since the last call."""


@dataclass(frozen=True)
class Entry:
    """One stored object: its full key, its size in bytes, and a mark that changes with its content."""

    key: str
    size: int
    version: str = ""
    """An ETag or an mtime: tells that an object changed, never what is in it."""


@dataclass(frozen=True)
class PutResult:
    """What became of a `put_bytes`."""

    atomic: bool = True
    """False where `if_none_match` was asked of a server without conditional writes, so HEAD and PUT had to do."""


class ObjectMissing(TuneryError):
    """No object has this key. Callers that know what was looked for raise their own reason from it."""

    def __init__(self, uri: str) -> None:
        super().__init__(FailureReason.STORAGE_NOT_FOUND, f"{uri} does not exist")
        self.uri = uri


class ObjectExists(TuneryError):
    """A write with `if_none_match=True` found an object with this key."""

    def __init__(self, uri: str) -> None:
        super().__init__(FailureReason.OUTPUT_EXISTS, f"{uri} exists already")
        self.uri = uri


class ObjectReplaced(TuneryError):
    """The object is not the one any more that was looked at before; read it anew from the start."""

    def __init__(self, uri: str) -> None:
        super().__init__(FailureReason.STORAGE_UNAVAILABLE, f"{uri} was replaced while it was read")
        self.uri = uri


class Source(Protocol):
    """As much of a store as a download needs."""

    def uri(self, key: str = "") -> str:
        """Return the URI of `key`, as a user would write it."""
        ...

    def head(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None if there is none."""
        ...

    def stream(self, entry: Entry, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield `length` of the object's bytes (None: all that follow) from `start` on.

        Raises ObjectReplaced if it is not what it was when `entry` was taken.
        """
        ...


class Store(Source, Protocol):
    """Objects by key; a key is a relative path with `/`. Safe to use from several threads.

    Every method raises TuneryError: STORAGE_ACCESS_DENIED, STORAGE_NOT_FOUND (no such bucket or folder),
    STORAGE_UNAVAILABLE, DISK_FULL, and ObjectMissing where it reads a key that does not exist.
    """

    def list(self, prefix: str, most: int | None = None, *, nested: bool = True) -> list[Entry]:
        """Return all objects below the folder `prefix` (not `prefix` itself, nor its siblings), sorted by key.

        With `most` not many more than so many are asked for: a bucket may hold millions. Without `nested` those in
        folders below it are left out.
        """
        ...

    def read_bytes(self, key: str) -> bytes:
        """Return the whole object; for small ones."""
        ...

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer only at the end of the object."""
        ...

    def download(self, key: str, path: Path, progress: OnBytes | None = None) -> str:
        """Copy the object to `path` (written under another name, size checked, renamed); return its SHA-256.

        Several ranges are read at a time, so `progress` is called by several threads. A download that was cut off goes
        on where it stopped, in this call or in the next.
        """
        ...

    def upload_file(self, path: Path, key: str, progress: OnBytes | None = None, *, if_none_match: bool = False) -> str:
        """Store the file `path` and return the SHA-256 of the bytes sent; it is read once.

        With `if_none_match` an object that exists is not replaced: ObjectExists.
        """
        ...

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        """Store `data`. With `if_none_match` exactly one of several writers succeeds; the others get ObjectExists."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none."""
        ...

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        """Remove what uploads below `prefix` that were cut off left behind; return how many."""
        ...


class StorePath(NamedTuple):
    """A place in a store: a folder of objects, or one object."""

    store: Store
    prefix: str
    """A relative path with `/`; empty: the whole store."""

    @property
    def uri(self) -> str:
        """As a user would write it."""
        return self.store.uri(self.prefix)

    def key(self, name: str = "") -> str:
        """Return the key of the object `name` below it."""
        return join_key(self.prefix, name)

    def below(self, name: str) -> StorePath:
        """Return the place `name` below it."""
        return StorePath(self.store, self.key(name))

    def read_bytes(self, name: str) -> bytes:
        """Return the whole object `name` below it; for small ones. Raises what Store.read_bytes raises."""
        return self.store.read_bytes(self.key(name))

    def relative(self, entry: Entry) -> str:
        """Return the name of an entry that `store.list(prefix)` gave, as seen from here."""
        return entry.key[len(self.key()) + 1 :] if self.key() else entry.key


def join_key(*parts: str) -> str:
    """Join parts of a key with single slashes, leaving out empty ones."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


def is_plain_path(key: str) -> bool:
    """Tell whether `key` is a relative path that cannot lead out of its folder."""
    return "\\" not in key and "\0" not in key and not any(part in ("", ".", "..") for part in key.split("/"))


def check_key(key: str, uri: str) -> str:
    """Return `key` if it is a plain relative path; raise INVALID_SPEC if it could lead out of its folder."""
    if not is_plain_path(key):
        raise TuneryError(FailureReason.INVALID_SPEC, f"{uri}: the key {key!r} is not a plain relative path")
    return key
