"""Publish a result: claim the place, upload, manifest.json last, read everything back.

A reader never sees a manifest beside files of another run: one run at a time holds the claim of a prefix, every file
is written with `If-None-Match: *`, the manifest last, and an old manifest goes just before the first file is replaced.
The claim has the digest of each file before it is written: what a killed run has left is known by its content, and any
other file belongs to others.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from tunery_api.manifest import MANIFEST_NAME, FileRecord, Lineage, Manifest, SweepRecord
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import RunIdentity
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectExists, OnBytes, Store, StorePath
from tunery_common.storage.base import OWN_PREFIX, PutResult
from tunery_common.storage.claims import CLAIM_NAME, Claim, claim_bytes, read_claim, release_claim, remove_claim
from tunery_common.storage.cleanup import remove_stale_uploads
from tunery_common.storage.published_folder import PublishedManifest, read_manifest, verify, verify_file
from tunery_common.storage.transfer import hash_file

_LIST_LIMIT: Final = 1000
"""Objects that are listed to find files of others, beside those of a claim."""
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

_ALONE: Final = retry("Stop what else writes to output.uri")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The place of a result, and the run that wants it."""

    place: StorePath
    run: RunIdentity
    overwrite: bool = False
    beyond: float = 0
    """What this very run published as it was stopped after fewer steps than these is not its result: it gives way."""
    sweep: SweepRecord | None = None
    """What this very run, the end of a sweep, published of another trial, or of fewer of them, gives way, too."""

    @property
    def uri(self) -> str:
        return self.place.uri

    @property
    def store(self) -> Store:
        return self.place.store

    def key(self, name: str) -> str:
        return self.place.key(name)


@dataclass(frozen=True)
class Published:
    """A result whose manifest was read back and whose every digest matched."""

    uri: str
    manifest_sha256: str
    size_bytes: int
    manifest: Manifest
    atomic: bool = True
    """False where the server has no conditional writes, so that two runs could in theory both have won."""


def published_by(target: Target) -> Published:
    """Return what the very run of `target` has published there, after every byte was read and matched its digest.

    Raises ADAPTER_MISSING if nothing is there, or another run's result; ADAPTER_CORRUPT if it is not whole; and the
    reasons of the storage.
    """
    found = read_manifest(target.place)
    if found.manifest.run.uid != target.run.uid:
        run = found.manifest.run
        message = f"{target.uri} holds the result of another run: {run.kind} {run.namespace}/{run.name}, uid {run.uid}"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message)
    found = verify(target.place, found.sha256)
    return Published(target.uri, found.sha256, found.manifest.size_bytes, found.manifest)


def published_before(target: Target) -> Published | None:
    """Return what an earlier attempt of this very run has published; None if there is nothing, or it is not whole.

    None, too, where that is of a stop, and the run has come further, and where a sweep has gone on since. A claim that
    such an attempt could not give back is removed.
    """
    try:
        found = published_by(target)
    except TuneryError as error:
        if error.reason is FailureReason.ADAPTER_CORRUPT:
            _log.warning("the result of an earlier attempt is not whole, it is made again: %s", error.message)
        elif error.reason is not FailureReason.ADAPTER_MISSING:
            raise
        return None
    lineage = found.manifest.lineage
    if lineage.stopped and lineage.stopped.after_step < target.beyond:
        return None
    if target.sweep and lineage.sweep != target.sweep:
        return None
    remove_claim(target.place, target.run)
    return found


def publish(folder: Path, target: Target, lineage: Lineage, progress: OnBytes | None = None) -> Published:
    """Upload every file of `folder` below the target's prefix, the manifest last, and read all of it back.

    A rerun by the same run after a crash is a success. Pickles are left out. Raises OUTPUT_EXISTS if another run's
    result is there (or being written) and `overwrite` is not set, and the storage reasons.
    """
    with Publisher(target) as publisher:
        done = publisher.start()
        if done is not None:
            return done
        for path in publishable(folder):
            publisher.add(path, path.relative_to(folder).as_posix(), progress)
        return publisher.finish(lineage)


def publishable(folder: Path) -> list[Path]:
    """Return the files of `folder` that are published: all but pickles (code could hide in them), sorted."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == CLAIM_NAME:
            continue
        if path.suffix in _PICKLES:
            _log.info("not published, since a pickle can hold code: %s", path.name)
            continue
        found.append(path)
    return found


class Publisher:
    """`publish` in steps, for results that are made file by file: `start`, `add` for each file, `finish`.

    As a context manager it releases the claim where something is raised.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._store = target.store
        self._attempt = uuid.uuid4().hex
        self._files: dict[str, FileRecord] = {}
        self._old: PublishedManifest | None = None
        """What is there."""
        self._stale: dict[str, FileRecord] = {}
        """Of a run that died, and of the manifest once it is deleted: `finish` removes what is not written again."""
        self._replaces = False
        """Whether an old manifest is still to go."""
        self._atomic = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed:
            release_claim(self._target.place, self._attempt)

    def start(self) -> Published | None:
        """Claim the place. Returns the result if this very run published it already; then nothing is left to do."""
        remove_stale_uploads(self._target.place)
        existing = find_published(self._target)
        if existing is not None and existing.manifest.run.uid == self._target.run.uid:
            done = published_before(self._target)
            if done is not None:
                return done
        check_free(self._target, existing)
        # With overwrite, also a manifest that cannot be read.
        self._replaces = existing is not None or self._target.overwrite
        self._old = existing
        self._claim()
        return None

    def add(self, path: Path, name: str, progress: OnBytes | None = None) -> FileRecord:
        """Upload one file as `name`, relative to the prefix, and return its record."""
        if name in (MANIFEST_NAME, CLAIM_NAME):
            raise TuneryError(FailureReason.INTERNAL_ERROR, f"{name} cannot be the name of a published file")
        record = FileRecord(sha256=hash_file(path), size=path.stat().st_size)
        self._delete_old_manifest()
        self._make_room(name)
        self._put_claim({name: record})
        key = self._target.key(name)
        try:
            self._store.upload_file(path, key, progress, if_none_match=True)
        except ObjectExists as error:
            self._check_written_meanwhile(name, record, error)
        self._files[name] = record
        return record

    def finish(self, lineage: Lineage) -> Published:
        """Write the manifest, read it and every file back, and only then say that the result is published."""
        self._delete_old_manifest()
        for name in sorted(set(self._stale) - set(self._files)):
            self._make_room(name)
        self._check_place()
        self._put_claim()
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=self._target.run,
            files=dict(sorted(self._files.items())),
            lineage=lineage,
        )
        data = manifest.to_json()
        self._put_manifest(data)
        published = self._read_back(manifest, data)
        remove_claim(self._target.place, self._target.run)
        return published

    def _delete_old_manifest(self) -> None:
        """Remove the manifest of what is replaced, as late as may be: a run that ends before takes nothing away."""
        if self._replaces:
            self._check_claim()
            self._stale = {**(self._old.manifest.files if self._old is not None else {}), **self._stale}
            self._put_claim()
            found = find_published(self._target)
            if found is not None and (self._old is None or found.sha256 != self._old.sha256):
                raise _changed(f"{self._target.uri}/{MANIFEST_NAME} was written by another run")
            self._store.delete(self._target.key(MANIFEST_NAME))
            self._replaces = False

    def _claim(self) -> None:
        try:
            self._atomic = self._put_claim(if_none_match=True).atomic
        except ObjectExists as error:
            before = check_claimable(self._target, error)
            self._stale = dict(before.files) if before is not None else {}
            self._put_claim()
        check_free(self._target, find_published(self._target))

    def _put_claim(self, adding: dict[str, FileRecord] | None = None, *, if_none_match: bool = False) -> PutResult:
        files = {**self._stale, **self._files, **(adding or {})}
        claim = claim_bytes(self._target.run, self._attempt, files)
        return self._store.put_bytes(self._target.key(CLAIM_NAME), claim, if_none_match=if_none_match)

    def _check_claim(self) -> None:
        """Another run may have taken the claim, and may have published since: then this one writes no more."""
        claim = read_claim(self._target.place)
        if claim is None:
            raise _changed(f"{self._target.uri}/{CLAIM_NAME} is gone")
        if claim.uid != self._target.run.uid:
            raise _being_written(self._target, claim)
        if claim.attempt != self._attempt:
            raise _changed(f"{self._target.uri}/{CLAIM_NAME} is of another attempt of this run")

    def _check_place(self) -> None:
        """As `_check_claim`, once the old manifest is deleted: a manifest there is another run's."""
        self._check_claim()
        if self._store.head(self._target.key(MANIFEST_NAME)) is not None:
            raise _changed(f"{self._target.uri}/{MANIFEST_NAME} was written by another run")

    def _make_room(self, name: str) -> None:
        """Delete the file of that name, if there is one; raise OUTPUT_EXISTS if it belongs to others."""
        key = self._target.key(name)
        exists = self._store.head(key) is not None
        own = not exists or self._target.overwrite or self._is_own(name)
        self._check_place()  # right before: files of a run that has published meanwhile are not deleted
        if not own:
            raise _foreign(self._target, [name])
        if exists:
            self._store.delete(key)
        self._stale.pop(name, None)
        self._files.pop(name, None)

    def _is_own(self, name: str) -> bool:
        """Tell whether the file of that name is what this run, or one that died, has written there."""
        record = self._files.get(name) or self._stale.get(name)
        return record is not None and self._holds(name, record)

    def _holds(self, name: str, record: FileRecord) -> bool:
        try:
            verify_file(self._store, self._target.key(name), record)
        except TuneryError as error:
            if error.reason is FailureReason.ADAPTER_CORRUPT:
                return False
            raise
        return True

    def _check_written_meanwhile(self, name: str, record: FileRecord, error: ObjectExists) -> None:
        """Raise unless the file that is there is the one that was sent: an answer may have been lost."""
        if self._holds(name, record):
            return
        claim = read_claim(self._target.place)
        if self._target.overwrite or claim is None or claim.attempt != self._attempt:
            raise _changed(f"{self._target.uri}/{name} was written by another") from error
        self._put_claim()  # it does not name that file any more
        raise _foreign(self._target, [name]) from error

    def _put_manifest(self, data: bytes) -> None:
        """Write the manifest where none is, also to overwrite: what comes in late after this one replaces it not."""
        if self._put_new_manifest(data):
            return
        existing = find_published(self._target)
        if existing is not None and existing.manifest.run.uid != self._target.run.uid:
            raise _changed(f"{self._target.uri}/{MANIFEST_NAME} was written by another run")
        # What an earlier attempt of this very run had sent may come in late, long after its process was killed.
        self._check_claim()
        self._store.delete(self._target.key(MANIFEST_NAME))
        if not self._put_new_manifest(data):
            raise _changed(f"{self._target.uri}/{MANIFEST_NAME} is not this run's")

    def _put_new_manifest(self, data: bytes) -> bool:
        """Tell whether the manifest lies there now: an answer may have been lost, and the write finds itself then."""
        key = self._target.key(MANIFEST_NAME)
        try:
            put = self._store.put_bytes(key, data, if_none_match=True)
        except ObjectExists:
            return self._store.read_bytes(key) == data
        self._atomic = self._atomic and put.atomic
        return True

    def _read_back(self, manifest: Manifest, data: bytes) -> Published:
        found = read_manifest(self._target.place)
        if found.sha256 != hashlib.sha256(data).hexdigest():
            if found.manifest.run.uid != self._target.run.uid:
                raise _taken(self._target, found.manifest)
            raise _changed(f"{self._target.uri}/{MANIFEST_NAME} is of an earlier attempt of this very run")
        for name, record in manifest.files.items():
            try:
                verify_file(self._store, self._target.key(name), record)
            except TuneryError as error:
                if error.reason is FailureReason.ADAPTER_CORRUPT:
                    raise _changed(error.message) from error
                raise
        return Published(self._target.uri, found.sha256, manifest.size_bytes, manifest, self._atomic)


def find_published(target: Target) -> PublishedManifest | None:
    """Return the manifest at the place, or None. One that cannot be read counts as another's, unless overwritten."""
    try:
        return read_manifest(target.place)
    except TuneryError as error:
        if error.reason is FailureReason.ADAPTER_MISSING:
            return None
        if error.reason is FailureReason.ADAPTER_CORRUPT and target.overwrite:
            return None
        if error.reason is FailureReason.ADAPTER_CORRUPT:
            message = f"{target.uri} holds a {MANIFEST_NAME} that is not Tunery's"
            raise TuneryError(FailureReason.OUTPUT_EXISTS, message) from error
        raise


def check_free(target: Target, existing: PublishedManifest | None) -> None:
    """Raise OUTPUT_EXISTS, unless overwritten, for another run's result or files that no claim has by name and size."""
    if target.overwrite:
        return
    if existing is not None:
        if existing.manifest.run.uid != target.run.uid:
            raise _taken(target, existing.manifest)
        return
    claim = read_claim(target.place)
    own = {name: record.size for name, record in claim.files.items()} if claim is not None else {}
    entries = target.store.list(target.place.prefix, _LIST_LIMIT + len(own), nested=False)
    sizes = {target.place.relative(entry): entry.size for entry in entries}
    if found := [name for name, size in sizes.items() if own.get(name) != size and not name.startswith(OWN_PREFIX)]:
        raise _foreign(target, found)


def _foreign(target: Target, names: Sequence[str]) -> TuneryError:
    message = f"spec.output.uri: {target.uri} holds files that Tunery did not publish: {', '.join(names[:3])}"
    return TuneryError(FailureReason.OUTPUT_EXISTS, message + (", …" if len(names) > 3 else ""))


def check_claimable(target: Target, cause: Exception | None = None) -> Claim | None:
    """Return the claim that is there; raise OUTPUT_EXISTS if it neither yields nor is to be overwritten."""
    claim = read_claim(target.place)
    if claim is not None and not claim.yields_to(target.run) and not target.overwrite:
        raise _being_written(target, claim) from cause
    return claim


def _taken(target: Target, manifest: Manifest) -> TuneryError:
    run = manifest.run
    message = f"spec.output.uri: {target.uri} already holds the result of {run.kind} {run.namespace}/{run.name}"
    return TuneryError(FailureReason.OUTPUT_EXISTS, f"{message} (uid {run.uid}, {manifest.created})")


def _changed(what: str) -> TuneryError:
    """Return the failure that what was just written is not what lies there: worth another attempt."""
    message = f"{what}, though it was written a moment ago: it was changed meanwhile, or a write before it came in late"
    return TuneryError(FailureReason.STORAGE_UNAVAILABLE, message, _ALONE)


def _being_written(target: Target, claim: Claim) -> TuneryError:
    ends = datetime.fromtimestamp(claim.expires, UTC).isoformat(timespec="seconds")
    message = (
        f"spec.output.uri: another run ({claim}) is publishing to {target.uri}; if it died, its claim {CLAIM_NAME} "
        f"there ends at {ends}, and removing all files there frees the place now"
    )
    return TuneryError(FailureReason.OUTPUT_EXISTS, message)
