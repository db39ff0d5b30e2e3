"""Bring a base model into the cache, on CPU, so that training begins with it on the disk."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import (
    MODELS,
    ModelIdentity,
    OnBytesOfTotal,
    begin_digest,
    claim_model_files,
    fetch_model,
    identify_model,
)
from tunery_common.inputs.location import Location
from tunery_common.inputs.shared_cache import CacheUnusable, SharedCache, as_unusable
from tunery_common.storage.transfer import hash_file

_HASHERS: Final = 4

_log = logging.getLogger(__name__)


def cache_model(place: Location, progress: OnBytesOfTotal) -> None:
    """Have the base model in `place.cache`, and a claim's digests; a cache that cannot take it is told in the log.

    Raises what fetch_model raises, but for a full disk, and StorageUnavailable where a file is not what the hub says.
    """
    if place.cache is None:
        return
    try:
        wanted = identify_model(place)
        if wanted is None:
            place.cache.check_writable()
            begin_digest(place, *claim_model_files(place)).wait()
        else:
            _fill(place, place.cache, wanted, progress)
    except CacheUnusable as error:
        _log.warning("the base model is not cached: %s; the training pod will bring it itself", error)


def _fill(place: Location, cache: SharedCache, wanted: ModelIdentity, progress: OnBytesOfTotal) -> None:
    with cache.filling(MODELS, wanted.key) as draft, as_unusable():
        if draft is None:
            return
        cache.make_room(wanted.size - _present(draft), MODELS, wanted.key)
        plain = dataclasses.replace(place, cache=None, disk=None)
        try:
            found = fetch_model(plain, draft, progress=progress)
        except TuneryError as error:
            if error.reason is not FailureReason.DISK_FULL:
                raise
            shutil.rmtree(draft, ignore_errors=True)
            raise CacheUnusable(error.message) from error
        digests = found.files.known if found.files else _hashed(found.folder, wanted.names)
        _compare(wanted, digests, found.folder)
        _without_bookkeeping(found.folder, wanted.names)
        cache.put(MODELS, wanted.key, found.folder, digests)


def _present(draft: Path) -> int:
    """Return the bytes that an earlier try has left."""
    return sum(path.stat().st_blocks * 512 for path in draft.rglob("*") if path.is_file())


def _hashed(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    with ThreadPoolExecutor(_HASHERS) as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(folder / name), names), strict=True))


def _compare(wanted: ModelIdentity, digests: dict[str, str], folder: Path) -> None:
    """Raise StorageUnavailable, and begin anew next time, where a file is not what the source says."""
    for name, digest in wanted.sha256.items():
        if digests.get(name) != digest:
            (folder / name).unlink(missing_ok=True)
            message = f"spec.model.uri: {name} came with another SHA-256 than the hub says"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)


def _without_bookkeeping(folder: Path, names: tuple[str, ...]) -> None:
    """Leave the model's files only: what a download remembers is of no use to who reads."""
    kept = {folder / name for name in names}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path not in kept:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
