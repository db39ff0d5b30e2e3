"""An adapter as a spec names it: published by Tunery, whose manifest vouches for it, or made elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from tunery_api.inputs import AdapterReference
from tunery_api.manifest import CONFIG_FILE, MANIFEST_NAME, WEIGHTS_FILE, FileRecord, Lineage, MergeInputRecord
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import ResolvedAdapter
from tunery_api.status import AdapterOrigin
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import check_disk, open_hub
from tunery_common.inputs.headers import Tensor
from tunery_common.inputs.location import Location
from tunery_common.inputs.misfit import without_scale
from tunery_common.storage import LocalStore, ObjectMissing, StorePath
from tunery_common.storage.base import check_key
from tunery_common.storage.published_folder import (
    PublishedManifest,
    download_published,
    find_manifest,
    read_manifest,
    verify,
)
from tunery_common.storage.transfer import hash_file, listing_digest
from tunery_common.storage.uris import split_uri
from tunery_trainer.inputs.plain_folder import parse_config, read_config, read_header
from tunery_trainer.inputs.workspace import Workspace

_CHANGED: Final = retry("Restore the earlier adapter, or accept the new one: a retry uses the one that is there then")
_ANOTHER: Final = recreate("Name another adapter")
_PUBLISH: Final = (
    retry("Publish it again with the job that made it"),
    retry("Remove manifest.json to use it as an adapter made elsewhere"),
    _ANOTHER,
)
_SCALE: Final = (
    retry("Save it with PEFT's save_pretrained and the alpha that it was trained with, and upload that"),
    _ANOTHER,
)
Files = dict[str, FileRecord]


class Wanted(NamedTuple):
    """What a spec says of an adapter."""

    purpose: str
    field: str
    """`spec.adapters[0]`."""
    reference: AdapterReference
    resolved: ResolvedAdapter

    @property
    def label(self) -> str:
        """Names it in messages: `spec.adapters[0] (uri)`."""
        return f"{self.field} ({self.resolved.uri})"


class _Place(NamedTuple):
    """Where an adapter's files are read."""

    at: StorePath
    commit: str | None = None
    """hf:// only."""
    copy: Path | None = None
    """hf:// only: the folder that they were brought to."""


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter of which manifest and configuration were read, and of one made elsewhere the header."""

    wanted: Wanted
    place: _Place
    content: bytes
    """Of adapter_config.json."""
    config: dict[str, Any]
    published: PublishedManifest | None
    """None: it was made elsewhere."""
    tensors: Mapping[str, Tensor] | None = None
    """Of one made elsewhere, by the header of its weights."""

    @property
    def label(self) -> str:
        """Names it in messages."""
        return self.wanted.label

    @property
    def unverified(self) -> bool:
        """Whether nobody vouches for it."""
        return self.published is None

    @property
    def lineage(self) -> Lineage:
        """What its manifest says; nothing, where it has none."""
        return self.published.manifest.lineage if self.published else Lineage()

    def bring(self, folder: Path) -> MergeInputRecord:
        """Bring its files into `folder`, every digest compared; return how lineage names it.

        Raises TuneryError, which names the field: AdapterCorrupt, WontFit, and the storage reasons.
        """
        if self.published is None:
            return self._checked(lambda: self._bring_plain(folder))
        expected = self.published.sha256
        return self._checked(lambda: _downloaded(self.place.at, folder, expected))

    def read(self, folder: Path) -> MergeInputRecord:
        """Read every byte of it, and keep only its configuration, in `folder`; returns and raises as `bring`."""
        if self.published is None:
            return self._checked(lambda: self._read_plain(folder))
        expected = self.published.sha256
        return self._checked(lambda: self._verified(folder, expected))

    def _checked(self, take: Callable[[], Files]) -> MergeInputRecord:
        try:
            files = take()
        except TuneryError as error:
            raise error.about(self.wanted.field) from error
        record = self._record(files)
        _compare(self.wanted, record.digest or "")
        return record

    def _record(self, files: Files) -> MergeInputRecord:
        uri, commit = self.wanted.resolved.uri, self.place.commit
        if self.published is not None:
            rejected = self.lineage.rejected
            return MergeInputRecord(uri=uri, manifest_sha256=self.published.sha256, revision=commit, rejected=rejected)
        digest = listing_digest((name, files[name].sha256) for name in sorted(files))
        return MergeInputRecord(uri=uri, origin=AdapterOrigin.UNVERIFIED, sha256=digest, files=files, revision=commit)

    def _verified(self, folder: Path, expected: str) -> Files:
        """Compare every byte with the manifest of that digest."""
        found = verify(self.place.at, expected)
        record = found.manifest.files.get(CONFIG_FILE)
        if record is None or hashlib.sha256(self.content).hexdigest() != record.sha256:
            message = f"{self.place.at.uri}: {CONFIG_FILE} does not match the digest in its manifest"
            raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
        (folder / CONFIG_FILE).write_bytes(self.content)
        return {}

    def _read_plain(self, folder: Path) -> Files:
        (folder / CONFIG_FILE).write_bytes(self.content)
        place, sha, size = self.place.at, hashlib.sha256(), 0
        entry = place.store.head(place.key(WEIGHTS_FILE))
        if entry is None:
            raise ObjectMissing(place.below(WEIGHTS_FILE).uri)
        for chunk in place.store.stream(entry):
            sha.update(chunk)
            size += len(chunk)
        return self._files(FileRecord(sha256=sha.hexdigest(), size=size))

    def _bring_plain(self, folder: Path) -> Files:
        (folder / CONFIG_FILE).write_bytes(self.content)
        place, path = self.place.at, folder / WEIGHTS_FILE
        if self.place.copy is None:
            digest = place.store.download(place.key(WEIGHTS_FILE), path)
        else:
            path.unlink(missing_ok=True)
            os.link(self.place.copy / WEIGHTS_FILE, path)
            digest = hash_file(path)
        return self._files(FileRecord(sha256=digest, size=path.stat().st_size))

    def _files(self, weights: FileRecord) -> Files:
        """The configuration counts as it was read first: that is what was checked."""
        config = FileRecord(sha256=hashlib.sha256(self.content).hexdigest(), size=len(self.content))
        return {CONFIG_FILE: config, WEIGHTS_FILE: weights}


def _downloaded(place: StorePath, folder: Path, expected: str) -> Files:
    download_published(place, folder, expected)
    return {}


def _compare(wanted: Wanted, digest: str) -> None:
    """Raise AdapterCorrupt where it is not what the spec asks for, or not what was checked before."""
    pin, seen, uri = wanted.reference.sha256, wanted.resolved.sha256, wanted.resolved.uri
    if pin is not None and digest != pin:
        message = f"{wanted.field}.sha256: what lies at {uri} has the digest {digest}, and {pin} is asked for"
        pinned = f"{wanted.field.removeprefix('spec.')}.sha256"
        raise TuneryError(
            FailureReason.ADAPTER_CORRUPT,
            message,
            retry("Restore the adapter with the digest that the manifest states"),
            recreate(f"If the new adapter is meant, set {pinned} to its digest", pinned),
        )
    if seen is not None and digest != seen:
        message = f"{wanted.field}: {uri} was changed since it was checked: it has the digest {digest}, and had {seen}"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message, _CHANGED)


def open_named(work: Workspace, wanted: Wanted) -> NamedAdapter:
    """Read manifest and configuration of an adapter, and the header of one made elsewhere.

    Raises TuneryError, which names the field: SecretNotFound, AdapterMissing, AdapterCorrupt, AdapterUnsupported, and
    the reasons of storage and hub.
    """
    try:
        found = _open(work, wanted)
    except TuneryError as error:
        raise error.about(wanted.field) from error
    if found.published is not None:
        _compare(wanted, found.published.sha256)
    return found


def _open(work: Workspace, wanted: Wanted) -> NamedAdapter:
    place = _place_of(work, wanted)
    expected = wanted.resolved.manifest_sha256
    published = read_manifest(place.at, expected) if expected else find_manifest(place.at)
    if published is not None:
        content, config = _config_of(place.at, wanted.field)
        _check_listed(place.at, published)
        _check_scale(place.at, config)
        return NamedAdapter(wanted, place, content, config, published)
    content = read_config(place.at)
    config, tensors = parse_config(place.at, content), read_header(place.at)
    _check_scale(place.at, config)
    if place.copy is None:
        entry = place.at.store.head(place.at.key(WEIGHTS_FILE))
        _check_disk(work, wanted, entry.size if entry else 0)
    return NamedAdapter(wanted, place, content, config, None, tensors)


def _config_of(place: StorePath, field: str) -> tuple[bytes, dict[str, Any]]:
    """Return the configuration of a published adapter, as bytes and as it is read."""
    try:
        content = place.read_bytes(CONFIG_FILE)
        config = json.loads(content)
    except ObjectMissing as error:
        raise TuneryError(FailureReason.ADAPTER_MISSING, f"{field}: {place.uri} has no {CONFIG_FILE}") from error
    except ValueError as error:
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{field}: {CONFIG_FILE} is no JSON") from error
    if not isinstance(config, dict):
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{field}: {CONFIG_FILE} is not a JSON object")
    return content, config


def _check_listed(place: StorePath, published: PublishedManifest) -> None:
    """Raise AdapterMissing where a manifest vouches for no adapter: only what it lists is brought."""
    missing = next((name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in published.manifest.files), None)
    if missing is not None:
        message = f"{place.uri}: {MANIFEST_NAME} does not list {missing}, so it vouches for no adapter"
        raise TuneryError(FailureReason.ADAPTER_MISSING, message, *_PUBLISH)


def _check_scale(place: StorePath, config: Mapping[str, Any]) -> None:
    """Raise AdapterCorrupt where alpha leaves nothing of the adapter, or turns it round."""
    odd = without_scale(config)
    if odd is not None:
        message = f"{place.uri}: {CONFIG_FILE}: {odd}"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message, *_SCALE)


def _place_of(work: Workspace, wanted: Wanted) -> _Place:
    uri = wanted.resolved.uri
    if uri.startswith("hf://"):
        return _from_hub(work, wanted)
    at = work.open(wanted.purpose, uri, f"{wanted.field}.uri")
    if isinstance(at.store, LocalStore):
        # Of a claim no more than the folder is read that the spec names.
        at = StorePath(at.store.folder(at.key()), "")
    return _Place(at)


def _from_hub(work: Workspace, wanted: Wanted) -> _Place:
    """Bring the adapter's files, of one commit, to the disk: its manifest and what that lists, else PEFT's two."""
    uri, field = wanted.resolved.uri, wanted.field
    _, owner, rest = split_uri(uri)
    name, _, below = rest.partition("/")
    if not name:
        message = f"{field}.uri: {uri} names no repository; write hf://owner/name"
        raise TuneryError(FailureReason.INVALID_SPEC, message)
    prefix = f"{check_key(below, f'{field}.uri: {uri}')}/" if below else ""
    hub, repo = open_hub(_location(work, wanted), f"{owner}/{name}", field)
    mark = hashlib.sha256(f"{uri}\0{repo.commit}".encode()).hexdigest()[:32]
    root = work.folder(f"hub-{wanted.purpose}-{mark}")
    place = StorePath(LocalStore(root, f"hf://{owner}/{name}", f"{field}.uri"), below)

    def bring(*names: str) -> None:
        files = [f"{prefix}{each}" for each in names if f"{prefix}{each}" in repo.sizes]
        _check_disk(work, wanted, sum(repo.sizes[each] for each in files))
        hub.download(repo, files, root, lambda count: None)

    bring(MANIFEST_NAME)
    published = find_manifest(place)
    bring(*(published.manifest.files if published else (CONFIG_FILE, WEIGHTS_FILE)))
    return _Place(place, repo.commit, root / below)


def _location(work: Workspace, wanted: Wanted) -> Location:
    uri, revision = wanted.resolved.uri, wanted.resolved.revision or wanted.reference.revision
    return Location(uri, work.credentials(wanted.purpose, uri), revision=revision, disk=work.run.disk)


def _check_disk(work: Workspace, wanted: Wanted, size: int) -> None:
    """Raise WontFit where the adapter is more than the pod's disk may hold."""
    check_disk(_location(work, wanted), f"{wanted.field}.uri", size)
