"""The published adapter that continueFrom names: brought to the disk, each file checked against its manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.manifest import CONFIG_FILE, MergeInputRecord
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectMissing, StorePath
from tunery_common.storage.published_folder import PublishedManifest, download_published, verify
from tunery_trainer.inputs.workspace import Workspace

_FIELD: Final = "spec.continueFrom"


@dataclass(frozen=True)
class StartingAdapter:
    """A published adapter that is trained on."""

    uri: str
    manifest_sha256: str
    folder: Path
    rejected: str | None = None
    """Why it was rejected, where it was."""

    @property
    def record(self) -> MergeInputRecord:
        """How lineage names it."""
        return MergeInputRecord(uri=self.uri, manifest_sha256=self.manifest_sha256, rejected=self.rejected)


def get_starting_adapter(work: Workspace, *, weights: bool) -> StartingAdapter | None:
    """Return the adapter that training starts from, or None where the job starts a new one.

    Without `weights` every byte is compared with its manifest, and only the configuration is kept. Raises TuneryError:
    AdapterMissing, AdapterCorrupt, SecretNotFound, and the reasons of the storage; each message names the field.
    """
    if not work.run.adapters:
        return None
    adapter = work.run.adapters[0]
    place = work.open(Purpose.CONTINUE_FROM, adapter.uri, f"{_FIELD}.uri")
    folder = work.folder("continue-from")
    try:
        if weights:
            found = download_published(place, folder, adapter.manifest_sha256)
        else:
            found = verify(place, adapter.manifest_sha256)
            _write_config(place, found, folder)
    except TuneryError as error:
        raise error.about(_FIELD) from error
    return StartingAdapter(adapter.uri, found.sha256, folder, found.manifest.lineage.rejected)


def _write_config(place: StorePath, found: PublishedManifest, folder: Path) -> None:
    """Copy adapter_config.json, if its digest is that of the manifest."""
    record = found.manifest.files.get(CONFIG_FILE)
    try:
        content = place.read_bytes(CONFIG_FILE)
    except ObjectMissing as error:
        raise TuneryError(FailureReason.ADAPTER_MISSING, f"{place.uri} has no {CONFIG_FILE}") from error
    if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
        message = f"{place.uri}: {CONFIG_FILE} does not match the digest in its manifest"
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, message)
    (folder / CONFIG_FILE).write_bytes(content)
