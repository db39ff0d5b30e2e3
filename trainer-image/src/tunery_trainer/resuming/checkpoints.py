"""Checkpoints in the store: complete ones only, uploaded in the background, pruned, resumed from.

`<prefix>/step-000200/` holds the files, and `complete.json` with their digests, written last. A folder without it is
half-written and ignored. Among the files that transformers writes are pickles (`optimizer.pt`, `scheduler.pt`,
`rng_state.pth`): they are loaded with `weights_only=True`, which builds tensors and plain values and runs no code; from
the job's own prefix, or from the one that spec.resumeFrom names.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from tunery_api.manifest import FileRecord
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectMissing, StorePath
from tunery_common.storage.base import check_key
from tunery_common.storage.cleanup import remove_stale_uploads

MARKER_NAME: Final = "complete.json"
CLOSE_SECONDS: Final = 600.0
"""How long the last checkpoint of a run may take to upload."""
_STEP: Final = re.compile(r"step-(\d{6,})")
_NOT_RESUMED_FROM: Final = frozenset({"training_args.bin"})
"""A pickle that nothing resumes from."""

_log = logging.getLogger(__name__)


class Marker(BaseModel):
    """The content of complete.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in a store."""

    step: int
    place: StorePath
    marker: Marker


@dataclass(frozen=True)
class Restored:
    """A checkpoint on the local disk, every digest checked."""

    step: int
    folder: Path


def step_place(place: StorePath, step: int) -> StorePath:
    """Return the folder of a step's checkpoint, such as `<place>/step-000200`."""
    return place.below(f"step-{step:06}")


def step_of(folder: str) -> int | None:
    """Return the step of a folder's name such as step-000200; None where it is another name."""
    match = _STEP.fullmatch(folder)
    return int(match[1]) if match else None


def complete_checkpoints(place: StorePath) -> list[Checkpoint]:
    """Return the complete checkpoints below `place`, the newest first; one with an unreadable marker is left out."""
    found = []
    for step, names in _steps(place).items():
        if MARKER_NAME not in names:
            continue
        folder = step_place(place, step)
        marker = _read_marker(folder)
        if marker is not None:
            found.append(Checkpoint(step, folder, marker))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def latest_complete(place: StorePath) -> Checkpoint | None:
    """Return the newest complete checkpoint below `place`, or None."""
    return next(iter(complete_checkpoints(place)), None)


def download(checkpoint: Checkpoint, folder: Path, without: frozenset[str] = frozenset()) -> None:
    """Copy a checkpoint into `folder`, but for the files `without`.

    Raises ADAPTER_CORRUPT if a file is missing or does not match its digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, store = checkpoint.place, checkpoint.place.store
    for name, record in checkpoint.marker.files.items():
        if name in without:
            continue
        key = place.key(check_key(name, place.uri))
        try:
            digest = store.download(key, folder / name)
        except ObjectMissing as error:
            raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{store.uri(key)} is missing") from error
        if digest != record.sha256:
            raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{store.uri(key)} does not match its digest")


def restore(
    place: StorePath, folder: Path, only: int | None = None, without: frozenset[str] = frozenset()
) -> Restored | None:
    """Download the newest complete checkpoint that is intact to `folder/checkpoint-<step>`, or return None.

    `only` is the one step that may be taken, if it matters; `without` names files that are not asked for. A damaged one
    is passed over with a warning, for the one before it. Storage that does not answer is an error: training from the
    start would throw paid work away.
    """
    for checkpoint in complete_checkpoints(place):
        if only not in (None, checkpoint.step):
            continue
        target = folder / f"checkpoint-{checkpoint.step}"
        shutil.rmtree(target, ignore_errors=True)
        try:
            download(checkpoint, target, without)
        except TuneryError as error:
            if error.reason is not FailureReason.ADAPTER_CORRUPT:
                raise
            shutil.rmtree(target, ignore_errors=True)
            _log.warning("the checkpoint of step %d was passed over: %s", checkpoint.step, error.message)
            continue
        return Restored(checkpoint.step, target)
    return None


def remove_checkpoints(place: StorePath) -> None:
    """Remove every checkpoint below `place`, and what cut-off uploads left there.

    All markers go before the first file: whenever this is cut off, nothing that is left could be resumed from. Raises
    the storage reasons at the first object that cannot be removed.
    """
    folders = {step_place(place, step): names for step, names in _steps(place).items()}
    for folder, names in folders.items():
        if MARKER_NAME in names:
            place.store.delete(folder.key(MARKER_NAME))
    for folder, names in folders.items():
        for name in names:
            if name != MARKER_NAME:
                place.store.delete(folder.key(name))
    remove_stale_uploads(place, older_than_seconds=0)


def probe_checkpoints(place: StorePath) -> None:
    """Preflight's check that checkpoints can be stored: list, write, read back and delete a small object.

    Raises the storage reasons, naming the place of the checkpoints and the right that is missing.
    """
    store, key, data = place.store, place.key(f".tunery-probe-{uuid.uuid4().hex[:12]}"), uuid.uuid4().bytes
    try:
        store.list(place.prefix)  # first: some servers make a bucket that is written to
        store.put_bytes(key, data)
        try:
            if store.read_bytes(key) != data:
                message = f"{store.uri(key)} does not hold what was just written to it"
                raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)
        finally:
            store.delete(key)
    except TuneryError as error:
        raise error.about("checkpoints cannot be stored") from error


class Heard(Protocol):
    """Who hears of each upload; called from the thread of the uploads."""

    def checkpoint(self, uri: str, step: int) -> None:
        """Take that a checkpoint became complete."""
        ...

    def checkpoint_failed(self, message: str) -> None:
        """Take why one did not."""
        ...


class CheckpointUploader:
    """Uploads checkpoints in one background thread; training never waits for it, and the newest one wins.

    `submit` takes a snapshot by hard links (by copying where that cannot be), so that the trainer may delete its
    folder at once. An upload that fails is logged, told and kept in `error`; the next one is tried all the same.
    """

    def __init__(
        self,
        place: StorePath,
        scratch: Path,
        keep: int = 2,
        heard: Heard | None = None,
    ) -> None:
        self.place = place
        self._store = place.store
        self._scratch = scratch
        self._keep = max(1, keep)
        self._heard = heard
        self._condition = threading.Condition()
        self._pending: tuple[int, Path] | None = None
        self._busy = False
        self._closing = False
        self._abandoned = False
        self.last_stored: int | None = None
        """Step of the newest checkpoint that this uploader completed."""
        self.error: TuneryError | None = None
        """Why the newest upload failed; None if it did not."""
        shutil.rmtree(scratch, ignore_errors=True)  # snapshots of an attempt that was killed
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, folder: Path, step: int) -> None:
        """Hand over the checkpoint in `folder`; one that still waits and is older is dropped."""
        snapshot = self._scratch / f"step-{step:06}-{time.monotonic_ns()}"
        _snapshot(folder, snapshot)
        with self._condition:
            dropped, self._pending = self._pending, (step, snapshot)
            self._condition.notify_all()
        if dropped is not None:
            shutil.rmtree(dropped[1], ignore_errors=True)

    def close(self, timeout_seconds: float) -> bool:
        """Upload the newest checkpoint if it waits still; return whether all of that was done in time and well.

        One that takes longer is given up: it never becomes complete, and nobody waits for it again.
        """
        if self._abandoned:
            return False
        deadline = time.monotonic() + timeout_seconds
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            while (self._busy or self._pending is not None) and not self._abandoned:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._abandoned = True
                    return False
                self._condition.wait(left)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self.error is None and not self._abandoned

    def _run(self) -> None:
        remove_stale_uploads(self.place)
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pending is not None or self._closing)
                if self._pending is None:
                    return
                (step, snapshot), self._pending, self._busy = self._pending, None, True
            self._store_guarded(step, snapshot)
            shutil.rmtree(snapshot, ignore_errors=True)
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _store_guarded(self, step: int, snapshot: Path) -> None:
        """Training goes on whatever becomes of a checkpoint."""
        try:
            self._store_one(step, snapshot)
            self.error = None
        except TuneryError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 (the thread must live on to store the next checkpoint)
            self.error = TuneryError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        if self.error is not None:
            _log.warning("the checkpoint of step %d was not stored: %s", step, self.error.message)
            if self._heard is not None:
                self._heard.checkpoint_failed(f"the checkpoint of step {step} was not stored: {self.error.message}")

    def _store_one(self, step: int, snapshot: Path) -> None:
        folder = step_place(self.place, step)
        marker_key = folder.key(MARKER_NAME)
        self._store.delete(marker_key)  # a checkpoint of an earlier attempt is incomplete while it is replaced
        names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
        try:
            files = {name: self._upload(snapshot / name, folder.key(name)) for name in names}
            self._check_wanted()
            self._store.put_bytes(marker_key, Marker(step=step, files=files).model_dump_json(indent=2).encode())
            self._check_wanted()
        except TuneryError:
            if self._abandoned:
                self._take_back([marker_key, *map(folder.key, names)])
            raise
        self.last_stored = step
        if self._heard is not None:
            self._heard.checkpoint(folder.uri, step)
        try:
            self._prune(step)
        except TuneryError as error:
            _log.warning("older checkpoints than that of step %d were not removed: %s", step, error.message)

    def _upload(self, path: Path, key: str) -> FileRecord:
        self._check_wanted()
        return FileRecord(sha256=self._store.upload_file(path, key), size=path.stat().st_size)

    def _check_wanted(self) -> None:
        """Raise TuneryError where nobody waits for this upload any more."""
        if self._abandoned:
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "it took too long")

    def _take_back(self, keys: list[str]) -> None:
        """Remove what was uploaded of a checkpoint that was given up: the run may have removed its others meanwhile."""
        for key in keys:
            self._store.delete(key)

    def _prune(self, newest: int) -> None:
        """Keep `keep` complete checkpoints up to the newest; older ones, and half-written ones before it, go."""
        steps = _steps(self.place)
        complete = sorted((s for s, names in steps.items() if MARKER_NAME in names and s <= newest), reverse=True)
        kept = set(complete[: self._keep])
        for step, names in steps.items():
            if step in kept or step > newest:
                continue
            folder = step_place(self.place, step)
            # The marker goes first: what is left, if this is cut off, is half-written and ignored.
            for name in sorted(names, key=lambda name: name != MARKER_NAME):
                self._store.delete(folder.key(name))


def _snapshot(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_file() or path.name in _NOT_RESUMED_FROM:
            continue
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)  # another disk, or one without hard links


def _steps(place: StorePath) -> dict[int, list[str]]:
    """Return the names of the files of each step's folder."""
    found: dict[int, list[str]] = {}
    for entry in place.store.list(place.prefix):
        folder, _, name = place.relative(entry).partition("/")
        step = step_of(folder)
        if step is not None and name:
            found.setdefault(step, []).append(name)
    return found


def _read_marker(folder: StorePath) -> Marker | None:
    try:
        return Marker.model_validate_json(folder.read_bytes(MARKER_NAME))
    except (ObjectMissing, ValidationError):
        _log.warning("%s is ignored: its %s cannot be read", folder.uri, MARKER_NAME)
        return None
