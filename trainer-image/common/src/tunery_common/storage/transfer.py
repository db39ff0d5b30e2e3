"""Copy an object to a file: several ranges at a time, digest right behind, resumable, then renamed."""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy
from tunery_common.errors import DISK_FULL, TuneryError
from tunery_common.storage.asker import busy_here, check_waited_for, own_streams
from tunery_common.storage.base import Entry, ObjectMissing, ObjectReplaced, OnBytes, Source
from tunery_common.storage.streams import Streams

CHUNK_BYTES: Final = 1 << 20
PART_BYTES: Final = 32 << 20
"""One request: large enough that the wait for its first byte does not count, small enough to be sent again."""
STREAMS: Final = 16
"""Requests at a time, over all files: object storage gives each of them a fraction of the network.

An asker with streams of its own has its own number of them: what hangs for one must not hold up another.
"""
_WINDOW: Final = 2 * STREAMS
"""Parts of one file that are on their way or not hashed yet, so that hashing reads from the page cache."""
_MARK_BYTES: Final = 256 << 20
"""So many bytes are downloaded again at most where a process was killed, apart from those of the window."""
_ATTEMPTS: Final = 5

_log = logging.getLogger(__name__)


@contextmanager
def disk_errors(path: Path, *remedies: Remedy) -> Iterator[None]:
    """Turn 'no space left on device' into DISK_FULL, with these remedies or the usual ones; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise TuneryError(FailureReason.DISK_FULL, f"no space left on the disk of {path.parent}", *remedies) from error


def listing_digest(digests: Iterable[tuple[str, str]]) -> str:
    """Return SHA-256, in hex, of the listing that `sha256sum` prints; `digests` are a file's name and digest each."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests).encode()).hexdigest()


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


@dataclass(frozen=True)
class _Copy:
    """One object on its way into `partial`."""

    store: Source
    entry: Entry
    partial: Path
    progress: OnBytes | None
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set once one part has failed: the others end at their next chunk."""

    @property
    def mark(self) -> Path:
        """The file that says how many bytes from the start are whole: parts arrive in any order."""
        return self.partial.with_suffix(".done")

    def moved(self, count: int) -> None:
        if self.progress is not None:
            self.progress(count)


def download(store: Source, key: str, path: Path, progress: OnBytes | None = None) -> str:
    """The `Store.download` of every store, on top of its `head` and `stream`."""
    entry = store.head(key)
    if entry is None:
        raise ObjectMissing(store.uri(key))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = _Copy(store, entry, _partial_name(path, entry), progress)
        digest = _fill(copy)
        with busy_here():
            os.replace(copy.partial, path)
            copy.mark.unlink(missing_ok=True)
            sync_folder(path.parent)
    return digest


def forget(path: Path) -> None:
    """Remove what downloads to `path` that were cut off have left."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if leftover.suffix in (".partial", ".done"):
            leftover.unlink()


def _partial_name(path: Path, entry: Entry) -> Path:
    """The name says which content it is a part of: a part of an older version is never continued."""
    mark = hashlib.sha256(f"{entry.size}:{entry.version}".encode()).hexdigest()[:12]
    return path.with_name(f".{path.name}.{mark}.partial")


def _fill(copy: _Copy) -> str:
    """Bring all bytes to the disk, and return their SHA-256, taken in order right behind the parts that arrive."""
    start, sha = _whole_bytes(copy), hashlib.sha256()
    _check_room(copy, start)
    with copy.partial.open("r+b" if copy.partial.exists() else "w+b") as file:
        descriptor = file.fileno()
        os.truncate(descriptor, copy.entry.size)
        _hash(sha, descriptor, 0, start)
        if start:
            copy.moved(start)
        done = marked = start
        try:
            with closing(_arriving(copy, descriptor, start)) as ends:
                for end in ends:
                    _hash(sha, descriptor, done, end)
                    done = end
                    if done - marked >= _MARK_BYTES:
                        marked = _mark(copy, descriptor, done)
            with busy_here():
                os.fsync(descriptor)
        except BaseException:
            _mark(copy, descriptor, done)
            raise
    return sha.hexdigest()


def _whole_bytes(copy: _Copy) -> int:
    """Return how many bytes from the start an earlier try has left."""
    try:
        done = int(copy.mark.read_text(encoding="ascii"))
        return done if 0 <= done <= copy.entry.size == copy.partial.stat().st_size else 0
    except (OSError, ValueError):
        return 0


def _mark(copy: _Copy, descriptor: int, done: int) -> int:
    """Write down that the first `done` bytes are whole; they are on the disk before that is said."""
    with busy_here():
        os.fdatasync(descriptor)
        copy.mark.write_text(str(done), encoding="ascii")
    return done


def _check_room(copy: _Copy, start: int) -> None:
    """Raise DISK_FULL before the first byte where the rest cannot be held."""
    free, needed = shutil.disk_usage(copy.partial.parent).free, copy.entry.size - start
    written = copy.partial.stat().st_blocks * 512 if copy.partial.exists() else 0
    if needed > free + max(0, written - start):
        message = f"no space left on the disk of {copy.partial.parent}: {copy.store.uri(copy.entry.key)} needs "
        raise TuneryError(FailureReason.DISK_FULL, f"{message}{needed:,} bytes, {free:,} are free")


def _hash(sha: hashlib._Hash, descriptor: int, start: int, end: int) -> None:
    with busy_here():
        while start < end:
            chunk = os.pread(descriptor, min(CHUNK_BYTES, end - start), start)
            sha.update(chunk)
            start += len(chunk)


def _arriving(copy: _Copy, descriptor: int, start: int) -> Generator[int]:
    """Fetch all parts from `start` on, several at a time; yield the end of each, in order, once it is in the file."""
    starts = iter(range(start, copy.entry.size, PART_BYTES))
    waiting: deque[Future[int]] = deque()
    streams = own_streams() or _streams()

    def submit(count: int) -> None:
        parts = (functools.partial(_fetch_part, copy, descriptor, at) for at in islice(starts, count))
        waiting.extend(streams.submit(part) for part in parts)

    try:
        submit(_WINDOW)
        while waiting:
            yield waiting.popleft().result()
            submit(1)
    finally:
        # The file is closed next: nobody may write to its descriptor any more.
        copy.stopped.set()
        for future in waiting:
            future.cancel()
        wait(waiting)


@functools.cache
def _streams() -> Streams:
    return Streams(STREAMS)


def _fetch_part(copy: _Copy, descriptor: int, start: int) -> int:
    """Write the part that begins at `start`, and return its end; a try that was cut off goes on where it was.

    Raises GivenUp where nobody waits for it any more.
    """
    part = _Part(start, min(start + PART_BYTES, copy.entry.size))
    for attempt in range(1, _ATTEMPTS + 1):
        check_waited_for()
        try:
            _receive(copy, descriptor, part)
            break
        except TuneryError as error:
            hopeless = error.reason is not FailureReason.STORAGE_UNAVAILABLE or isinstance(error, ObjectReplaced)
            if hopeless or attempt == _ATTEMPTS or copy.stopped.is_set():
                raise
            uri = copy.store.uri(copy.entry.key)
            _log.warning("download of %s was cut off at %d (attempt %d): %s", uri, part.at, attempt, error.message)
            copy.stopped.wait(0.2 * 2**attempt)
    return part.end


@dataclass
class _Part:
    """The bytes that one request is for: from `at`, which moves on as they arrive, to before `end`."""

    at: int
    end: int


def _receive(copy: _Copy, descriptor: int, part: _Part) -> None:
    uri = copy.store.uri(copy.entry.key)
    for chunk in copy.store.stream(copy.entry, part.at, part.end - part.at):
        if copy.stopped.is_set():
            return
        check_waited_for()
        if len(chunk) > part.end - part.at:  # a server that takes no notice of ranges sends other bytes
            message = f"{uri}: the server sent more than the range that it was asked for"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)
        _write(descriptor, chunk, part.at)
        part.at += len(chunk)
        copy.moved(len(chunk))
    if part.at < part.end:
        message = f"{uri}: received {part.at:,} bytes of a range that ends at {part.end:,}"
        raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)


def _write(descriptor: int, chunk: bytes, at: int) -> None:
    rest = memoryview(chunk)
    with busy_here():
        while rest:
            count = os.pwrite(descriptor, rest, at)
            rest, at = rest[count:], at + count
