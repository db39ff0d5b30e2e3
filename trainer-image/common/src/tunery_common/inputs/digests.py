"""The digest of a folder's files: what was read before is not read again, and nobody waits for it before its time."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import IN_THE_WAY, TuneryError
from tunery_common.storage.transfer import hash_file, listing_digest

BOOK: Final = ".tunery-digests.json"

_log = logging.getLogger(__name__)


class DigestBook:
    """What was found out about files: SHA-256 by name, size, time of change and inode; a changed file is unknown."""

    def __init__(self, folder: Path, place: Path) -> None:
        """`folder` holds the files that names are relative to, `place` is the file that the book is kept in."""
        self._folder = folder
        self._place = place
        self._found = _read(place)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file in hex; reads it only where it is not known."""
        known = self._found.get(name)
        before = _mark(self._folder / name)
        if known is not None and known[:-1] == before:
            return known[-1]
        digest = hash_file(self._folder / name)
        if _mark(self._folder / name) == before:  # else it was written meanwhile
            self._found[name] = [*before, digest]
        return digest

    def save(self) -> None:
        """Write the book down, for the next run; a place that cannot be written is left as it is."""
        draft = self._place.with_name(f"{self._place.name}.{os.getpid()}.tmp")
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._found, sort_keys=True), encoding="utf-8")
            os.replace(draft, self._place)
        except OSError as error:
            _log.info("digests are not kept in %s: %s", self._place.parent, error.strerror)


class FolderDigest:
    """SHA-256 over the lines that `sha256sum` prints for a folder's files; read in the background where need be."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        """Take digests by name that are all known."""
        self.known = dict(digests)
        self._found: Future[str] = Future()
        self._found.set_result(listing_digest(sorted(digests.items())))

    @classmethod
    def begin(cls, folder: Path, names: Iterable[str], place: Path | None = None) -> FolderDigest:
        """Begin to read what is not known from earlier runs; `place` is the book, without one beside the files."""
        new = cls({})
        new._found = Future()
        book = DigestBook(folder, place or folder / BOOK)
        # A daemon: a run that fails must not hold its GPU until hundreds of gigabytes are read.
        threading.Thread(target=_take, args=(new._found, book, sorted(names)), daemon=True, name="digests").start()
        return new

    def digest_if_known(self) -> str | None:
        """Return the digest in hex, or None where it is being read."""
        return self.wait() if self.known else None

    def wait(self) -> str:
        """Return the digest in hex.

        Raises TuneryError where a file cannot be read: StorageUnavailable, or ModelNotFound where it is none.
        """
        return self._found.result()


def _take(found: Future[str], book: DigestBook, names: list[str]) -> None:
    try:
        digest = listing_digest([(name, book.digest(name)) for name in names])
        book.save()
        found.set_result(digest)
    except OSError as error:
        message = f"spec.model.uri: cannot read {Path(str(error.filename)).name}: {error.strerror}"
        no_file = error.errno in IN_THE_WAY
        reason = FailureReason.MODEL_NOT_FOUND if no_file else FailureReason.STORAGE_UNAVAILABLE
        found.set_exception(TuneryError(reason, message))
    except BaseException as error:  # noqa: BLE001 (whoever waits must learn of it)
        found.set_exception(error)


def _mark(path: Path) -> list[str]:
    status = path.stat()
    return [str(value) for value in (status.st_size, status.st_mtime_ns, status.st_ino)]


def _read(place: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {name: [str(part) for part in entry] for name, entry in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
