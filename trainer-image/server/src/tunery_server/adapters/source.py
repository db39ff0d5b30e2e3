"""Where adapters come from: a store with a manifest. Everything here blocks, and is run in threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.manifest import CONFIG_FILE, MANIFEST_NAME, WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.runspec import MountedSecret
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import S3_KEYS, ambient, from_secret
from tunery_common.storage.published_folder import PublishedManifest, download_published, read_manifest
from tunery_server.adapters.cache import FILES, AdapterCache, Content

_LARGEST_MANIFEST: Final = 16_000_000
_TRIES: Final = 2
"""What does not match its digest is brought once more: a proxy, or a copy under way, may have been to blame."""
Opener = Callable[[DesiredAdapter], StorePath]


@dataclass(frozen=True)
class Look:
    """What lies at an adapter's place, by the word of its store."""

    mark: tuple[str, ...]
    """Changes whenever one of its files does."""
    sha256: str
    """Digest of its manifest."""


def opener(secret: MountedSecret | None) -> Opener:
    """Return what opens an adapter's place; the Secret is read each time, since it may be exchanged."""

    def open_place(item: DesiredAdapter) -> StorePath:
        field = "uri" if item.source == "uri" else item.source
        if secret is None:
            credentials = ambient()
        else:
            needs = S3_KEYS if item.uri.startswith("s3://") else ()
            credentials = from_secret(Path(secret.path), secret.name, needs, secret.field)
        return open_store(item.uri, credentials, field)

    return open_place


def look(place: StorePath, before: Look | None) -> Look:
    """Return what is published at `place`; nothing is read but what its store says, where that is as `before`.

    Raises TuneryError: AdapterMissing, AdapterCorrupt, and the reasons of the storage.
    """
    mark = marks(place)
    if before is not None and before.mark == mark:
        return before
    return Look(mark, read_manifest(place).sha256)


def marks(place: StorePath) -> tuple[str, ...]:
    """Return the versions of the manifest and of both files; raises AdapterMissing, and the storage's reasons."""
    manifest = place.store.head(place.key(MANIFEST_NAME))
    if manifest is None:
        message = f"{place.uri} is not a published result: it has no {MANIFEST_NAME}"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message)
    if manifest.size > _LARGEST_MANIFEST:
        message = f"{place.below(MANIFEST_NAME).uri} has {manifest.size:,} bytes, which no manifest has"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    files = [place.store.head(place.key(name)) for name in FILES]
    return (manifest.version, *(entry.version if entry else "" for entry in files))


def fetch(place: StorePath, sha256: str, cache: AdapterCache, moved: Callable[[int], None]) -> Content:
    """Bring the version with the manifest `sha256` into the cache, every digest compared.

    Raises TuneryError: AdapterMissing, AdapterCorrupt naming the file, DiskFull, and the reasons of the storage.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return _fetch(place, sha256, cache, moved)
        except TuneryError as error:
            if error.reason is FailureReason.DISK_FULL and attempt < _TRIES:
                cache.discard_unused()
            elif error.reason is not FailureReason.ADAPTER_CORRUPT or attempt == _TRIES:
                raise
    raise RuntimeError("unreachable: the last attempt returns or raises")


def _fetch(place: StorePath, sha256: str, cache: AdapterCache, moved: Callable[[int], None]) -> Content:
    marks(place)  # a manifest of any size would be read below
    found = read_manifest(place, sha256)
    _check_files(place, found)
    draft = cache.draft(sha256, found.manifest)
    try:
        download_published(place, draft, sha256, moved, FILES)
        manifest = place.read_bytes(MANIFEST_NAME)
        if hashlib.sha256(manifest).hexdigest() != sha256:
            message = f"{place.below(MANIFEST_NAME).uri} was replaced while it was read"
            raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
        return cache.put(sha256, draft, manifest)
    finally:
        cache.give_up(draft)


def _check_files(place: StorePath, found: PublishedManifest) -> None:
    """Raise AdapterUnsupported where what is published is no adapter, or one that is a pickle."""
    if CONFIG_FILE not in found.manifest.files:
        message = f"{place.uri} holds no adapter: its manifest lists no {CONFIG_FILE}"
        raise TuneryError(FailureReason.ADAPTER_UNSUPPORTED, message, "Name the place of an adapter.")
    if WEIGHTS_FILE not in found.manifest.files:
        message = f"{place.uri} has no {WEIGHTS_FILE}; no other format of weights is read"
        hint = "Save it again with PEFT's save_pretrained, which writes safetensors, and publish that."
        raise TuneryError(FailureReason.ADAPTER_UNSUPPORTED, message, hint)
