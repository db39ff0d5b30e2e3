"""Copy an object to a file: temporary name, digest while reading, resumable, then renamed."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_trainer.errors import TrainerError
from tunery_trainer.storage.base import Entry, ObjectMissing, Progress, Store

CHUNK_BYTES: Final = 1 << 20
_ATTEMPTS: Final = 5
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left on device' into DISK_FULL; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise TrainerError(FailureReason.DISK_FULL, f"no space left on the disk of {path.parent}") from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def download(store: Store, key: str, path: Path, progress: Progress | None = None) -> str:
    """The `Store.download` of every store, on top of its `head` and `stream`."""
    entry = store.head(key)
    if entry is None:
        raise ObjectMissing(store.uri(key))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_name(path, entry)
        digest = _fill(store, entry, partial, progress)
        os.replace(partial, path)
        sync_folder(path.parent)
    return digest


def _partial_name(path: Path, entry: Entry) -> Path:
    """The name says which content it is a part of: a part of an older version is never continued."""
    mark = hashlib.sha256(f"{entry.size}:{entry.version}".encode()).hexdigest()[:12]
    return path.with_name(f".{path.name}.{mark}.partial")


def _fill(store: Store, entry: Entry, partial: Path, progress: Progress | None) -> str:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            if progress is not None and attempt == 1 and partial.exists():
                progress(min(partial.stat().st_size, entry.size))
            return _append(store, entry, partial, progress)
        except TrainerError as error:
            if error.reason is not FailureReason.STORAGE_UNAVAILABLE or attempt == _ATTEMPTS:
                raise
            _log.warning("download of %s was cut off (attempt %d): %s", store.uri(entry.key), attempt, error.message)
            time.sleep(0.2 * 2**attempt)
    raise RuntimeError("unreachable: the last attempt returns or raises")


def _append(store: Store, entry: Entry, partial: Path, progress: Progress | None) -> str:
    sha = hashlib.sha256()
    with partial.open("a+b") as file:
        if file.tell() > entry.size:
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
        start = file.tell()
        for chunk in store.stream(entry, start) if start < entry.size else ():
            file.write(chunk)
            sha.update(chunk)
            if progress is not None:
                progress(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if size != entry.size:
        if size > entry.size:
            partial.unlink()
        raise TrainerError(
            FailureReason.STORAGE_UNAVAILABLE,
            f"{store.uri(entry.key)}: received {size:,} of {entry.size:,} bytes",
        )
    return sha.hexdigest()
