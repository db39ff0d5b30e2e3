"""Read a published folder, and trust it only as far as its manifest's digests match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tunery_api.manifest import MANIFEST_NAME, FileRecord, Manifest
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, retry
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectMissing, OnBytes, Store, StorePath
from tunery_common.storage.base import check_key

LARGEST_MANIFEST: Final = 16_000_000
"""Bytes."""


@dataclass(frozen=True)
class PublishedManifest:
    """A manifest and the digest of its stored bytes."""

    manifest: Manifest
    sha256: str


def read_manifest(place: StorePath, expected_sha256: str | None = None) -> PublishedManifest:
    """Return the manifest at `place`; no other file is looked at.

    Raises ADAPTER_MISSING if there is none, ADAPTER_CORRUPT if it cannot be read as one or if its digest is not
    `expected_sha256` (what a LoRAJob's status vouches for).
    """
    uri = place.below(MANIFEST_NAME).uri
    try:
        data = place.read_bytes(MANIFEST_NAME)
    except ObjectMissing as error:
        message = f"{place.uri} is not a published result: it has no {MANIFEST_NAME}"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message) from error
    return parse_manifest(data, uri, expected_sha256)


def find_manifest(place: StorePath) -> PublishedManifest | None:
    """Return the manifest at `place`; None where there is none, or a file of that name that is not Tunery's.

    Raises ADAPTER_CORRUPT where it cannot be told whose it is, or is Tunery's and cannot be read.
    """
    key = place.key(MANIFEST_NAME)
    if place.store.head(key) is None:
        return None
    data = place.store.read_range(key, 0, LARGEST_MANIFEST)
    try:
        # A longer one was not read to its end.
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = f"{place.below(MANIFEST_NAME).uri} is no JSON, so that it cannot be told whether it is Tunery's"
        remedies = (
            retry("Publish the adapter again, if Tunery published it"),
            retry(f"Move {MANIFEST_NAME} out of that folder, if another program wrote it"),
        )
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message, *remedies) from error
    return parse_manifest(data, place.below(MANIFEST_NAME).uri) if _is_ours(found) else None


def _is_ours(found: object) -> bool:
    """Tell whether a JSON document is a manifest of Tunery, of whatever version; `format` may be left out."""
    if not isinstance(found, dict):
        return False
    said = found.get("format")
    return str(said).startswith("tunery.dev/") if said is not None else {"run", "files", "lineage"} <= found.keys()


class Replaced(TuneryError):
    """Another manifest lies there than was expected."""


def parse_manifest(data: bytes, uri: str, expected_sha256: str | None = None, *replaced: Remedy) -> PublishedManifest:
    """Return the manifest whose bytes were read at `uri`; raises ADAPTER_CORRUPT as `read_manifest` does.

    `replaced` are the remedies if the digest is another one than expected.
    """
    digest = hashlib.sha256(data).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256:
        message = f"{uri} was replaced: its digest is {digest}, not {expected_sha256}"
        raise Replaced(FailureReason.ADAPTER_CORRUPT, message, *replaced)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{uri}: {where}: {first['msg']}") from error
    for name in manifest.files:
        _check_name(name, uri)
    return PublishedManifest(manifest, digest)


def verify(place: StorePath, expected_sha256: str | None = None) -> PublishedManifest:
    """Read every file at `place` and compare it with the manifest.

    Raises what `read_manifest` raises, and ADAPTER_CORRUPT naming the first file that is missing or differs.
    """
    found = read_manifest(place, expected_sha256)
    for name, record in found.manifest.files.items():
        verify_file(place.store, place.key(name), record)
    return found


def verify_file(store: Store, key: str, record: FileRecord) -> None:
    """Read one file and compare its size and SHA-256; ADAPTER_CORRUPT if they differ."""
    entry = store.head(key)
    if entry is None:
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{store.uri(key)} is missing, but its manifest lists it")
    sha = hashlib.sha256()
    if entry.size == record.size:
        for chunk in store.stream(entry):
            sha.update(chunk)
    _compare(store.uri(key), record, entry.size, sha.hexdigest())


def download_published(
    place: StorePath, folder: Path, expected_sha256: str | None = None, progress: OnBytes | None = None
) -> PublishedManifest:
    """Copy a published folder to `folder`, each file's digest checked on the way; raises what `verify` raises."""
    found = read_manifest(place, expected_sha256)
    download_files(place, folder, found.manifest.files, progress)
    return found


def download_files(
    place: StorePath, folder: Path, records: Mapping[str, FileRecord], progress: OnBytes | None = None
) -> None:
    """Copy files that a manifest lists to `folder`; raises ADAPTER_CORRUPT naming the first that is not as listed."""
    for name, record in records.items():
        key, path = place.key(name), folder / name
        try:
            digest = place.store.download(key, path, progress)
        except ObjectMissing as error:
            message = f"{place.store.uri(key)} is missing, but its manifest lists it"
            raise TuneryError(FailureReason.ADAPTER_CORRUPT, message) from error
        _compare(place.store.uri(key), record, path.stat().st_size, digest)


def _compare(uri: str, record: FileRecord, size: int, digest: str) -> None:
    if size != record.size:
        message = f"{uri} has {size:,} bytes, its manifest says {record.size:,}"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    if digest != record.sha256:
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{uri} does not match the digest in its manifest")


def _check_name(name: str, uri: str) -> None:
    try:
        check_key(name, uri)
    except TuneryError as error:
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, error.message) from error
