"""Where adapters come from: a store with a manifest. Everything here blocks, and is run in threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.manifest import CONFIG_FILE, MANIFEST_NAME, WEIGHTS_FILE, Manifest
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit, retry
from tunery_api.runspec import MountedSecret
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.inputs.headers import ADAPTER_HEADER, Tensor, header_of
from tunery_common.storage import ObjectMissing, StorePath, open_store
from tunery_common.storage.asker import busy_here
from tunery_common.storage.credentials import S3_KEYS, ambient, from_secret
from tunery_common.storage.published_folder import (
    LARGEST_MANIFEST,
    download_files,
    parse_manifest,
    read_manifest,
)
from tunery_common.storage.s3_client import SharedClient
from tunery_server.adapters.cache import FILES, AdapterCache, Content, OverLimit, wanted_bytes
from tunery_server.adapters.fit_config import LARGEST_CONFIG, SAVE_AGAIN, AdapterConfig, parse_config, unsupported
from tunery_server.adapters.fits import Fit, ServedBase, check_parts
from tunery_server.adapters.turns import Heard

_SIGN_BYTES: Final = 64 << 10
"""So many bytes of the weights are a sign that all will come."""
_REPLACED: Final = (
    edit("Correct manifestSha256 of the adapter", "adapters"),
    retry("Publish the adapter again with the job that made it"),
)
Opener = Callable[[DesiredAdapter], StorePath]


@dataclass(frozen=True)
class Look:
    """What lies at an adapter's place, by the word of its store."""

    mark: tuple[str, ...]
    """Changes whenever one of its files does."""
    sha256: str
    """Digest of its manifest."""


def opener(secret: MountedSecret | None, namespace: str = "") -> Opener:
    """Return what opens an adapter's place; the Secret is read each time, since it may be exchanged."""
    clients = SharedClient()

    def open_place(item: DesiredAdapter) -> StorePath:
        field = "uri" if item.source == "uri" else item.source
        if secret is None:
            credentials = ambient()
        else:
            needs = S3_KEYS if item.uri.startswith("s3://") else ()
            credentials = from_secret(Path(secret.path), secret.name, needs, secret.field, namespace)
        return open_store(item.uri, credentials, field, clients=clients.made_for)

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
        raise _unpublished(place)
    if manifest.size > LARGEST_MANIFEST:
        message = f"{place.below(MANIFEST_NAME).uri} has {manifest.size:,} bytes, which no manifest has"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    files = [place.store.head(place.key(name)) for name in FILES]
    return (manifest.version, *(entry.version if entry else "" for entry in files))


def _unpublished(place: StorePath) -> TuneryError:
    message = f"{place.uri} is not a published result: it has no {MANIFEST_NAME}"
    return TuneryError(FailureReason.ADAPTER_MISSING, message)


@dataclass(frozen=True)
class Known:
    """A version that fits by its manifest, its config and its header; its weights were not read."""

    sha256: str
    """Of its manifest."""
    fit: Fit
    size: int


def verify(place: StorePath, sha256: str, base: ServedBase) -> Known:
    """Look at the version with the manifest `sha256` as far as that is cheap: four requests of some kilobytes.

    Raises what `fetch` and `check_fit` raise, but for what only the weights tell.
    """
    manifest, _ = _manifest(place, sha256)
    _check_files(place, manifest)
    _check_size(place, manifest, WEIGHTS_FILE)
    record, key = manifest.files[WEIGHTS_FILE], place.key(WEIGHTS_FILE)

    def header() -> dict[str, Tensor]:
        return header_of(lambda at, length: place.store.read_range(key, at, length), record.size, ADAPTER_HEADER)

    fit = check_parts(_config(place, manifest), header, manifest.lineage, base)
    return Known(sha256, fit, wanted_bytes(manifest))


def _manifest(place: StorePath, sha256: str) -> tuple[Manifest, bytes]:
    """Return the manifest with that digest, and its bytes, read once; raises AdapterMissing and AdapterCorrupt."""
    uri = place.below(MANIFEST_NAME).uri
    try:
        data = place.store.read_range(place.key(MANIFEST_NAME), 0, LARGEST_MANIFEST + 1)
    except ObjectMissing as error:
        raise _unpublished(place) from error
    return parse_manifest(data, uri, sha256, *_REPLACED).manifest, data


def _config(place: StorePath, manifest: Manifest) -> AdapterConfig:
    """Return what is published as the adapter's config, its digest compared."""
    key, record = place.key(CONFIG_FILE), manifest.files[CONFIG_FILE]
    try:
        data = place.store.read_range(key, 0, LARGEST_CONFIG + 1)
    except ObjectMissing as error:
        message = f"{place.store.uri(key)} is missing, but its manifest lists it"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message) from error
    if len(data) != record.size and len(data) <= LARGEST_CONFIG:
        raise _other_size(place, CONFIG_FILE, len(data), record.size)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        message = f"{place.store.uri(key)} does not match the digest in its manifest"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    return parse_config(data)


@dataclass(frozen=True)
class Into:
    """Where a version is brought, and who hears of it."""

    cache: AdapterCache
    heard: Heard
    moved: Callable[[int], None]
    """Told of all bytes that come; ends what is too late."""
    again: Callable[[tuple[str, ...]], None]
    """Told what lies there before it is read once more: what is read then is that, or newer."""


def fetch(place: StorePath, sha256: str, into: Into) -> Content:
    """Bring the version with the manifest `sha256` into the cache, every digest compared.

    Raises TuneryError: AdapterMissing, AdapterCorrupt naming the file, DiskFull, and the reasons of the storage; and
    GivenUp.
    """
    try:
        return _fetch(place, sha256, into)
    except TuneryError as error:
        if isinstance(error, OverLimit):
            raise
        if error.reason is FailureReason.DISK_FULL:
            into.cache.discard_unused()
        elif error.reason is not FailureReason.ADAPTER_CORRUPT:
            raise
    # What does not match its digest is brought once more: a proxy, or a copy under way, may have been to blame.
    into.again(marks(place))
    return _fetch(place, sha256, into)


def _fetch(place: StorePath, sha256: str, into: Into) -> Content:
    manifest, data = _manifest(place, sha256)
    _check_files(place, manifest)
    for name in FILES:
        _check_size(place, manifest, name)  # before the disk is asked for what a manifest only claims
    if not into.cache.has_room(wanted_bytes(manifest)):
        # Others have to leave for it: not before its weights are known to come, by more than a manifest's answer.
        place.store.read_range(place.key(WEIGHTS_FILE), 0, _SIGN_BYTES)
    into.heard.begin()  # quiet is who is so from here on
    with busy_here():
        draft = into.cache.draft(sha256, manifest, into.heard)
    try:
        download_files(place, draft, {name: manifest.files[name] for name in FILES}, into.moved)
        with busy_here():
            return into.cache.put(sha256, draft, data)
    finally:
        into.cache.give_up(draft)


def _check_size(place: StorePath, manifest: Manifest, name: str) -> None:
    """Raise ADAPTER_CORRUPT where a file is missing, or has another size than its manifest says."""
    record, key = manifest.files[name], place.key(name)
    entry = place.store.head(key)
    if entry is None:
        message = f"{place.store.uri(key)} is missing, but its manifest lists it"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    if entry.size != record.size:
        raise _other_size(place, name, entry.size, record.size)


def _other_size(place: StorePath, name: str, size: int, said: int) -> TuneryError:
    message = f"{place.store.uri(place.key(name))} has {size:,} bytes, its manifest says {said:,}"
    return TuneryError(FailureReason.ADAPTER_CORRUPT, message)


def _check_files(place: StorePath, manifest: Manifest) -> None:
    """Raise AdapterUnsupported where what is published is no adapter, or one that is a pickle."""
    if CONFIG_FILE not in manifest.files:
        message = f"{place.uri} holds no adapter: its manifest lists no {CONFIG_FILE}"
        raise TuneryError(
            FailureReason.ADAPTER_UNSUPPORTED, message, edit("Name the location of an adapter", "adapters")
        )
    if WEIGHTS_FILE not in manifest.files:
        message = f"{place.uri} has no {WEIGHTS_FILE}; no other format of weights is read"
        raise unsupported(message, SAVE_AGAIN)
