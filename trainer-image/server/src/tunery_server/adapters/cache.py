"""The adapters on the disk: one folder for each manifest digest, whole and verified or not there at all.

A folder gets its name by a rename after the last digest matched. Its manifest lies outside of it, and says by its own
digest what the folder must hold; so nothing is trusted after a restart that was not hashed again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, edit, retry
from tunery_api.runspec import DiskLimit
from tunery_common.errors import DISK_FULL, TuneryError, raise_disk
from tunery_common.storage.asker import GivenUp
from tunery_common.storage.transfer import hash_file, sync_folder
from tunery_server.adapters.notes import write_whole
from tunery_server.adapters.turns import Heard

FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
"""All that a folder holds."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MANIFESTS: Final = ".manifests"
_DRAFTS: Final = ".drafts"
_MODE: Final = 0o644

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """A verified version of an adapter on the disk."""

    sha256: str
    """Of its manifest."""
    folder: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of the files that are kept."""
        return wanted_bytes(self.manifest)


def wanted_bytes(manifest: Manifest) -> int:
    """Return the size of the two files that are brought."""
    return sum(manifest.files[name].size for name in FILES if name in manifest.files)


class OverLimit(TuneryError):
    """What is on the disk leaves no room within its limit."""

    def __init__(self, message: str, remedies: Iterable[Remedy], size: int, missing: int) -> None:
        """`size` bytes are needed, of which `missing` are there only once more versions are used by nobody."""
        super().__init__(FailureReason.DISK_FULL, message, *remedies)
        self.size = size
        self.missing = missing


class DiskTooSmall(TuneryError):
    """The disk is full of what never leaves it."""


class LargerThanDisk(DiskTooSmall):
    """Not even an empty disk would hold it."""


class Usage(Protocol):
    """What versions are needed for; asked from threads."""

    def held(self, sha256: str) -> bool:
        """Tell whether the engine may read the folder: it is not touched."""
        ...

    def wanted(self) -> Collection[str]:
        """Return those that somebody needs, or will soon: they are not removed to make room."""
        ...


class AdapterCache:
    """The folders below `root`. Used from several threads."""

    def __init__(self, root: Path, model_dir: Path, disk: DiskLimit | None, usage: Usage) -> None:
        if not root.is_absolute():
            raise ValueError(f"{root} is relative: the engine would take such a path for a name on a hub")
        self._root = root
        self._model_dir = model_dir
        self._disk = disk
        self._usage = usage
        self._trusted: dict[str, Content] = {}
        self._reserved: dict[Path, int] = {}
        """Bytes of those that are on their way."""
        self._heard: dict[Path, Heard] = {}
        """What is heard of their stores: room that is kept for one that was given up is free."""
        self._sizes: dict[Path, int] = {}
        """Bytes of folders that do not change: the model's, and those of versions."""
        self._lock = threading.RLock()

    @property
    def disk(self) -> DiskLimit | None:
        """What limits the disk."""
        return self._disk

    def for_all(self, disk: DiskLimit) -> int:
        """Return the bytes that all adapters together may take, beside the model."""
        return max(0, disk.bytes - self._size(self._model_dir))

    def prepare(self) -> None:
        """Make the folders, and remove what was on its way when an earlier process ended."""
        self._root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._root / _DRAFTS, ignore_errors=True)
        (self._root / _DRAFTS).mkdir()
        (self._root / _MANIFESTS).mkdir(exist_ok=True)

    def folder(self, sha256: str) -> Path:
        """Return where the version `sha256` lies, if it does."""
        return self._root / sha256

    def on_disk(self) -> list[str]:
        """Return the digests that have a folder, trusted or not."""
        return [path.name for path in self._root.iterdir() if _SHA256.fullmatch(path.name)]

    def find(self, sha256: str) -> Content | None:
        """Return the version if it is there whole; every byte is read the first time, and a bad one is removed.

        A bad folder that the engine holds stays, and is not trusted.
        """
        known = self.known(sha256)
        if known is not None or not self.folder(sha256).exists():
            return known
        manifest = self._manifest(sha256)
        if manifest is None or not self._matches(sha256, manifest):
            _log.warning("%s is not what its manifest says: it is brought anew", self.folder(sha256))
            self._remove(sha256)
            return None
        return self._trust(sha256, manifest)

    def glance(self, sha256: str) -> Content | None:
        """Return the version if it is there, by its manifest alone: its files are read before they are used."""
        known = self.known(sha256)
        if known is not None or not self.folder(sha256).exists():
            return known
        manifest = self._manifest(sha256)
        return None if manifest is None else Content(sha256, self.folder(sha256), manifest)

    def known(self, sha256: str) -> Content | None:
        """Return the version if it was read before, by this process."""
        with self._lock:
            return self._trusted.get(sha256)

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes are free without anything leaving."""
        with self._lock:
            return self._disk is None or size <= self._free(self._disk)

    def could_hold(self, size: int) -> bool:
        """Tell whether so many bytes are free, or would be after what `draft` has leave."""
        with self._lock:
            return self._disk is None or size <= self._could_be_free(self._disk)

    def draft(self, sha256: str, manifest: Manifest, heard: Heard) -> Path:
        """Return an empty folder to bring the files into, once there is room for them.

        What was kept for stores that have gone quiet is taken for it, then older versions that nobody uses leave, the
        least recently used first; nothing where all of it would not be enough. Raises TuneryError(DiskFull).
        """
        folder = self._root / _DRAFTS / f"{sha256}.{uuid.uuid4().hex[:8]}"
        with self._lock:
            self._make_room(wanted_bytes(manifest))
            self._reserved[folder], self._heard[folder] = wanted_bytes(manifest), heard
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            self.give_up(folder)
            raise self._explained(error) from error
        return folder

    def on_its_way(self, sha256: str) -> bool:
        """Tell whether room is kept free for the version: it is being brought, and was not given up."""
        with self._lock:
            return any(folder.name.startswith(f"{sha256}.") for folder in self._kept_for())

    def put(self, sha256: str, draft: Path, manifest_bytes: bytes) -> Content:
        """Give a draft, every digest of which has matched, its name; returns it as it lies there now.

        Raises GivenUp where its room was given to another meanwhile.
        """
        known = self.known(sha256)
        if known is not None:
            return known
        manifest = Manifest.model_validate_json(manifest_bytes)
        try:
            with self._lock:
                if draft not in self._kept_for():
                    raise GivenUp
                for name in FILES:
                    (draft / name).chmod(_MODE)
                draft.chmod(0o755)
                if self.folder(sha256).exists():
                    self._remove(sha256)
                write_whole(self._root / _MANIFESTS / f"{sha256}.json", manifest_bytes)
                os.rename(draft, self.folder(sha256))
                self._sizes.pop(self.folder(sha256), None)
                self._forget(draft)  # it is counted as a folder from here on, and not twice
            sync_folder(self._root)
        except OSError as error:
            raise self._explained(error) from error
        return self._trust(sha256, manifest)

    def give_up(self, draft: Path) -> None:
        """Remove a draft, if it is still one, and give back what was kept free for it."""
        with self._lock:
            self._forget(draft)
        shutil.rmtree(draft, ignore_errors=True)

    def used(self, sha256: str) -> None:
        """Note that the version was used now."""
        try:
            os.utime(self._root / _MANIFESTS / f"{sha256}.json")
        except OSError:
            return

    def discard_unused(self) -> None:
        """Remove every version that nobody uses: the disk is full whatever the limit says."""
        with self._lock:
            for sha256 in self._oldest_first():
                self._remove(sha256)

    def _trust(self, sha256: str, manifest: Manifest) -> Content:
        content = Content(sha256, self.folder(sha256), manifest)
        with self._lock:
            self._trusted[sha256] = content
        self.used(sha256)
        return content

    def _manifest(self, sha256: str) -> Manifest | None:
        path = self._root / _MANIFESTS / f"{sha256}.json"
        try:
            if hash_file(path) != sha256:
                return None
            return Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def _matches(self, sha256: str, manifest: Manifest) -> bool:
        folder = self.folder(sha256)
        try:
            names = {path.name for path in folder.iterdir()}
            return names == set(FILES) and all(
                not (folder / name).is_symlink() and hash_file(folder / name) == manifest.files[name].sha256
                for name in FILES
            )
        except (OSError, KeyError):
            return False

    def _kept_for(self) -> dict[Path, int]:
        """Return the bytes that are kept free for each that is on its way still."""
        return {draft: size for draft, size in self._reserved.items() if not self._heard[draft].over.is_set()}

    def _forget(self, draft: Path) -> None:
        self._reserved.pop(draft, None)
        self._heard.pop(draft, None)

    def _free(self, limit: DiskLimit) -> int:
        taken = self._size(self._model_dir) + sum(self._kept_for().values())
        return limit.bytes - taken - sum(self._size(self.folder(each)) for each in self.on_disk())

    def _quiet(self) -> list[Path]:
        """Return the drafts whose room others may take."""
        return [draft for draft in self._kept_for() if self._heard[draft].quiet()]

    def _could_be_free(self, limit: DiskLimit) -> int:
        quiet = sum(self._reserved[draft] for draft in self._quiet())
        return self._free(limit) + quiet + sum(self._size(self.folder(each)) for each in self._oldest_first())

    def _make_room(self, size: int) -> None:
        limit = self._disk
        for draft in self._reserved.keys() - self._kept_for().keys():
            self.give_up(draft)  # the thread that still holds it ends at its next byte
        if limit is None or size <= self._free(limit):
            return
        if size > (could := self._could_be_free(limit)):
            raise self._over_limit(limit, size, could)
        for draft in self._quiet():
            self._heard[draft].give_up()
            self.give_up(draft)
            if size <= self._free(limit):
                return
        for each in self._oldest_first():
            self._remove(each)
            if size <= self._free(limit):
                return
        raise self._over_limit(limit, size, self._free(limit))  # some were taken into use meanwhile

    def _over_limit(self, limit: DiskLimit, size: int, free: int) -> OverLimit:
        remedies = [raise_disk(limit), edit("Serve fewer adapters, or fewer with keepLoaded", "adapters")]
        why = "all adapters that are there are in use" if self.on_disk() else "no adapter is there that could leave"
        if kept := self._kept_for():
            why = f"{sum(kept.values()):,} are kept for {len(kept)} that are on their way"
            remedies = [retry("Wait until those are loaded, and ask again"), raise_disk(limit)]
        message = (
            f"{size:,} bytes are needed on the disk, of {limit.bytes:,} ({limit.field}) {max(0, free):,} are "
            f"free, and {why}"
        )
        return OverLimit(message, remedies, size, size - free)

    def _size(self, folder: Path) -> int:
        if folder not in self._sizes:
            self._sizes[folder] = _bytes_below(folder)
        return self._sizes[folder]

    def _oldest_first(self) -> list[str]:
        """Return the versions that may leave, the least recently used first."""
        wanted = self._usage.wanted()
        free = [each for each in self.on_disk() if not self._usage.held(each) and each not in wanted]
        return sorted(free, key=lambda sha256: _mtime(self._root / _MANIFESTS / f"{sha256}.json"))

    def _remove(self, sha256: str) -> bool:
        """Remove a folder unless the engine holds it; return whether it is gone.

        It loses its name first: what is half removed has another.
        """
        with self._lock:
            if self._usage.held(sha256):
                return False
            self._trusted.pop(sha256, None)
            self._sizes.pop(self.folder(sha256), None)
            grave = self._root / _DRAFTS / f"{sha256}.{uuid.uuid4().hex[:8]}.old"
            try:
                os.rename(self.folder(sha256), grave)
            except OSError:
                return not self.folder(sha256).exists()
            (self._root / _MANIFESTS / f"{sha256}.json").unlink(missing_ok=True)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def _explained(self, error: OSError) -> TuneryError:
        if error.errno in DISK_FULL:
            return TuneryError(FailureReason.DISK_FULL, f"no space left on the disk of {self._root}")
        return TuneryError(FailureReason.INTERNAL_ERROR, f"{self._root} cannot be written: {error.strerror}")


def _bytes_below(folder: Path) -> int:
    """Return the bytes of the files in a folder, each once; those behind links lie elsewhere."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(Path(parent, name))
            except OSError:
                continue
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
