"""A folder as a Store: a laptop's disk or a mounted volume claim."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.storage import transfer
from tunery_common.storage.base import (
    OWN_PREFIX,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectReplaced,
    OnBytes,
    PutResult,
    check_key,
)
from tunery_common.storage.transfer import CHUNK_BYTES, disk_errors, sync_folder

_OUTPUT_FULL: Final = (retry("Free some of the disk of output.uri"), recreate("Set another output.uri", "output.uri"))
"""What to do where the disk of the result is full, which is none of the pod's own."""

_CREATE_ATTEMPTS: Final = 10


class LocalStore:
    """Everything below `root`; `base_uri` is how the user named `root`, `field` the manifest field that did."""

    def __init__(self, root: Path, base_uri: str, field: str) -> None:
        self._root = root
        self._base_uri = base_uri.rstrip("/")
        self._field = field

    def uri(self, key: str = "") -> str:
        return f"{self._base_uri}/{key}" if key else self._base_uri

    def list(self, prefix: str, most: int | None = None, *, nested: bool = True) -> list[Entry]:
        folder = self.path(prefix.strip("/")) if prefix.strip("/") else self._root
        found: list[Entry] = []
        with self._errors("read", prefix):
            walk = os.walk(folder, onerror=_raise_unless_missing)
            for parent, _, names in walk if nested else islice(walk, 1):
                for name in names:
                    entry = self._entry(Path(parent, name))
                    if entry is not None and not name.startswith(OWN_PREFIX):
                        found.append(entry)
        return sorted(found, key=lambda entry: entry.key)

    def head(self, key: str) -> Entry | None:
        with self._errors("read", key):
            path = self.path(key)
            found = self._entry(path)
            if found is None and _is_special(path):
                raise self._no_file(key)
            return found

    def read_bytes(self, key: str) -> bytes:
        with self._errors("read", key), self._open(key) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._errors("read", key), self._open(key) as file:
            file.seek(start)
            return file.read(max(0, length))

    def stream(self, entry: Entry, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        left = entry.size - start if length is None else length
        with self._errors("read", entry.key), self._open(entry.key) as file:
            if _version(os.fstat(file.fileno())) != entry.version:
                raise ObjectReplaced(f"{self._field}: {self.uri(entry.key)}")
            file.seek(start)
            while chunk := file.read(min(CHUNK_BYTES, left)):
                left -= len(chunk)
                yield chunk

    def download(self, key: str, path: Path, progress: OnBytes | None = None) -> str:
        return transfer.download(self, key, path, progress)

    def upload_file(self, path: Path, key: str, progress: OnBytes | None = None, *, if_none_match: bool = False) -> str:
        sha = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    sha.update(chunk)
                    yield chunk
                    if progress is not None:
                        progress(len(chunk))

        self._write(key, chunks(), exclusive=if_none_match)
        return sha.hexdigest()

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        self._write(key, iter((data,)), exclusive=if_none_match)
        return PutResult()

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            path = self.path(key)
            path.unlink(missing_ok=True)
            self._remove_empty_parents(path)

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        limit = time.time() - older_than_seconds
        folder = self.path(prefix.strip("/")) if prefix.strip("/") else self._root
        removed = 0
        with self._errors("delete", prefix):
            for leftover in folder.rglob(f"{OWN_PREFIX}*.tmp"):
                if leftover.is_file() and leftover.stat().st_mtime < limit:
                    leftover.unlink(missing_ok=True)
                    removed += 1
        return removed

    def path(self, key: str) -> Path:
        """Return the file of `key`; INVALID_SPEC if it lies outside the root, also by a symbolic link."""
        path = self._root / check_key(key, self.uri())
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise TuneryError(FailureReason.INVALID_SPEC, f"{self._field}: {self.uri(key)} leads out of its folder")
        return path

    def folder(self, key: str) -> LocalStore:
        """Return the folder `key` as a store of its own, which no link leads out of."""
        return LocalStore(self.path(key), self.uri(key), self._field) if key else self

    @contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        """Open a file to read it; without waiting for the other end of a pipe, which may never come."""
        with open(self.path(key), "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise self._no_file(key)
            yield file

    def _no_file(self, key: str) -> TuneryError:
        message = f"{self._field}: {self.uri(key)} is a pipe, a socket or a device, and not a file"
        return TuneryError(FailureReason.INVALID_SPEC, message, retry("Replace it with a file"))

    def _entry(self, path: Path) -> Entry | None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode) or not path.resolve().is_relative_to(self._root.resolve()):
            return None
        return Entry(path.relative_to(self._root).as_posix(), status.st_size, _version(status))

    def _write(self, key: str, chunks: Iterator[bytes], *, exclusive: bool) -> None:
        path = self.path(key)
        remedies = _OUTPUT_FULL if self._field == "spec.output.uri" else ()
        with self._errors("write", key), disk_errors(path, *remedies):
            temporary = path.with_name(f"{OWN_PREFIX}{uuid.uuid4().hex}.tmp")
            try:
                with _create(temporary) as file:
                    for chunk in chunks:
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                if exclusive:
                    self._publish_exclusively(temporary, path)
                else:
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _publish_exclusively(self, temporary: Path, path: Path) -> None:
        """link(2) fails if the name is taken and shows the file only when it is whole, which O_EXCL alone does not."""
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise ObjectExists(self.uri(path.relative_to(self._root).as_posix())) from error
        except OSError:
            self._create_exclusively(temporary, path)  # a file system without hard links

    def _create_exclusively(self, temporary: Path, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            raise ObjectExists(self.uri(path.relative_to(self._root).as_posix())) from error
        try:
            with os.fdopen(descriptor, "wb") as file, temporary.open("rb") as source:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _remove_empty_parents(self, path: Path) -> None:
        """Folders exist only because files do, as in S3."""
        for parent in path.parents:
            if parent == self._root or not parent.is_relative_to(self._root):
                return
            try:
                parent.rmdir()
            except OSError:
                return

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            message = f"{self._field}: not allowed to {action} {self.uri(key)}"
            raise TuneryError(FailureReason.STORAGE_ACCESS_DENIED, message) from error
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissing(self.uri(key)) from error
        except OSError as error:
            message = f"{self._field}: cannot {action} {self.uri(key)}: {error.strerror}"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message) from error


def _create(path: Path) -> BinaryIO:
    """Create a file and its folders, again where another run has just removed an empty folder."""
    for attempt in range(_CREATE_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError):
            if attempt == _CREATE_ATTEMPTS - 1:
                raise
    raise RuntimeError("unreachable: the last attempt returns or raises")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _is_special(path: Path) -> bool:
    """Tell whether something is there that is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
