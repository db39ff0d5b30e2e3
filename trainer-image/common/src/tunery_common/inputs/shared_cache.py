"""A folder on a claim that several pods use at a time: entries appear whole, and go when nobody uses them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_common.storage.transfer import sync_folder

RECORD: Final = ".tunery-cached.json"
_KEPT_SECONDS: Final = 3600
"""What was asked for so lately is not evicted: the training pod that it was brought for may be about to start."""

_NAME: Final = re.compile(r"[a-z]+-[0-9a-f]+")

_log = logging.getLogger(__name__)


class CacheUnusable(Exception):
    """The cache cannot take something: no room, no right to write, no locks. Never a reason to fail."""


@dataclass(frozen=True)
class CacheEntry:
    """A whole entry that this process holds."""

    folder: Path
    digests: Mapping[str, str]
    """SHA-256 in hex by name, as they were when the files came."""


class SharedCache:
    """One cache. It holds `models/<key>/` and `prepared/<key>/`, each with a record of its files in it.

    Beside them: `drafts/` for what is being filled, and `locks/`, whose files say by flock that an entry is used, and
    by their time when it was last asked for. The mount may be read-only: then it can be used and not filled.
    """

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        """`max_bytes`: what all entries may take together; None: what the file system has."""
        self._root = root
        self._max_bytes = max_bytes
        self._held: list[int] = []

    def use(self, kind: str, key: str) -> CacheEntry | None:
        """Return an entry, which nobody evicts while this process lives; None where there is no whole one."""
        try:
            descriptor = os.open(self._lock(kind, key), os.O_RDONLY)
        except OSError:
            return None
        digests = self._whole(kind, key) if _shared_lock(descriptor) else None
        if digests is None:
            os.close(descriptor)
            return None
        self._held.append(descriptor)  # the kernel lets go of it at the end of the process
        return CacheEntry(self.entries(kind) / key, digests)

    def entries(self, kind: str) -> Path:
        """Return the folder whose folders are the entries of a kind."""
        return self._root / kind

    def file(self, kind: str, name: str) -> Path:
        """Return the place of a small file that is no entry and is never evicted."""
        return self._root / kind / name

    def check_writable(self) -> None:
        """Raise CacheUnusable where nothing can be written."""
        with as_unusable():
            probe = self._root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()

    @contextmanager
    def filling(self, kind: str, key: str) -> Iterator[Path | None]:
        """Yield an empty or half-filled folder to fill, to nobody else at a time; None where the entry is there.

        Waits while another process fills it. Either way the entry counts as used now. Raises CacheUnusable.
        """
        with as_unusable():
            lock, draft = self._lock(kind, key), self._draft(kind, key)
            for folder in (lock.parent, draft.parent, self.entries(kind)):
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            with as_unusable():
                os.utime(descriptor)
                # Never exclusive for what is there: whoever trains from it holds it for hours.
                there = _shared_lock(descriptor) and self._whole(kind, key) is not None
                if not there:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # two that hold it shared would wait for each other
                    _exclusive_lock(descriptor, f"{kind} {key}")
                    there = self._whole(kind, key) is not None
                if not there:
                    draft.mkdir(exist_ok=True)
            yield None if there else draft
        finally:
            os.close(descriptor)

    def put(self, kind: str, key: str, folder: Path, digests: Mapping[str, str]) -> None:
        """Make the filled `folder` (in the draft, or the draft itself) the entry; raises CacheUnusable.

        Everything is on the disk before the entry has its name.
        """
        with as_unusable():
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            record = {name: [path.stat().st_size, digests.get(name)] for name, path in files.items()}
            (folder / RECORD).write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
            for path in (*files.values(), folder / RECORD):
                _sync(path)
            target = self.entries(kind) / key
            shutil.rmtree(target, ignore_errors=True)  # one that is not whole
            folder.rename(target)
            sync_folder(target.parent)
            shutil.rmtree(self._draft(kind, key), ignore_errors=True)

    def make_room(self, needed: int, kind: str, key: str) -> None:
        """Evict what was used least lately until `needed` bytes fit; raises CacheUnusable where they do not.

        What a process uses, and what was asked for within the last hour, stays; so does the entry that is filled.
        """
        with as_unusable():
            now = self._lock(kind, key).stat().st_mtime  # by the clock that all the other times are by
            for used, name in sorted(self._known()):
                if self._free() >= needed:
                    return
                if name != self._lock(kind, key).name and now - used > _KEPT_SECONDS:
                    self._evict(name)
            free = self._free()
        if free < needed:
            raise CacheUnusable(f"it has room for {free:,} bytes, {needed:,} are needed; the rest is in use")

    def _free(self) -> int:
        free = shutil.disk_usage(self._root).free
        return free if self._max_bytes is None else min(free, self._max_bytes - _size(self._root))

    def _known(self) -> Iterator[tuple[float, str]]:
        """Yield when each entry or draft was last asked for, and its name among the locks."""
        for lock in (self._root / "locks").iterdir():
            kind, _, key = lock.name.partition("-")
            if not _NAME.fullmatch(lock.name):  # nothing of ours
                continue
            if (self._root / kind / key).exists() or self._draft(kind, key).exists():
                yield lock.stat().st_mtime, lock.name

    def _evict(self, name: str) -> None:
        kind, _, key = name.partition("-")
        descriptor = os.open(self._lock(kind, key), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or no locks here
            os.close(descriptor)
            return
        try:
            # It loses its record first: what is half removed is no entry.
            entry = self.entries(kind) / key
            (entry / RECORD).unlink(missing_ok=True)
            shutil.rmtree(entry, ignore_errors=True)
            shutil.rmtree(self._draft(kind, key), ignore_errors=True)
            _log.info("evicted from the cache: %s %s", kind, key)
        finally:
            os.close(descriptor)

    def _whole(self, kind: str, key: str) -> dict[str, str] | None:
        """Return the digests of an entry all of whose files are there with their size, else None."""
        folder = self.entries(kind) / key
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if any((folder / name).stat().st_size != size for name, (size, _) in record.items()):
                return None
        except (OSError, ValueError, AttributeError, TypeError):
            return None
        return {name: digest for name, (_, digest) in record.items() if digest}

    def _lock(self, kind: str, key: str) -> Path:
        return self._root / "locks" / f"{kind}-{key}"

    def _draft(self, kind: str, key: str) -> Path:
        return self._root / "drafts" / f"{kind}-{key}"


def _shared_lock(descriptor: int) -> bool:
    """Take a shared lock; False where the entry is being filled or evicted."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # without any locks nothing is evicted either
    return True


def _exclusive_lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.info("another pod is filling the cache with %s: waiting for it", what)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def as_unusable() -> Iterator[None]:
    """Turn what the claim's file system refuses into CacheUnusable."""
    try:
        yield
    except OSError as error:
        raise CacheUnusable(f"{error.strerror} ({Path(str(error.filename or '')).name})") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process is at work, too
            total += path.stat().st_size if path.is_file() else 0
    return total
