"""The published adapter that continueFrom names: brought to the disk, each file checked against its manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import CONFIG_FILE, MergeInputRecord
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose, RunSpec
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.workspace import credentials_for, work_folder
from tunery_trainer.settings.types import Resolved
from tunery_trainer.storage import ObjectMissing, Store, join_key, open_store
from tunery_trainer.storage.published import PublishedManifest, download_published, verify

_FIELD: Final = "spec.continueFrom"


@dataclass(frozen=True)
class PreviousAdapter:
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


def get_previous(run: RunSpec, *, weights: bool) -> PreviousAdapter | None:
    """Return the adapter that training starts from, or None where the job starts a new one.

    Without `weights` every byte is compared with its manifest, and only the configuration is kept. Raises TrainerError:
    AdapterMissing, AdapterCorrupt, SecretNotFound, and the reasons of the storage; each message names the field.
    """
    if not run.adapters:
        return None
    adapter = run.adapters[0]
    credentials = credentials_for(run, Purpose.CONTINUE_FROM, adapter.uri)
    store, prefix = open_store(adapter.uri, credentials, f"{_FIELD}.uri")
    folder = work_folder(run, "continue-from")
    try:
        if weights:
            found = download_published(store, prefix, folder, adapter.manifest_sha256)
        else:
            found = verify(store, prefix, adapter.manifest_sha256)
            _write_config(store, prefix, found, folder)
    except TrainerError as error:
        raise error.about(_FIELD) from error
    return PreviousAdapter(adapter.uri, found.sha256, folder, found.manifest.lineage.rejected)


def continued(resolved: Resolved, spec: LoRAJobSpec, base: Path, previous: PreviousAdapter) -> Resolved:
    """Return `resolved` with what the manifest leaves open taken from `previous`; `base` is the model's folder.

    Raises TrainerError(InvalidSpec) naming what the manifest and the adapter disagree about.
    """
    from tunery_trainer.adapter.continue_from import inherit
    from tunery_trainer.model.load import meta_model

    return inherit(resolved, meta_model(base), previous.folder, spec.model.effective_served_name())


def _write_config(store: Store, prefix: str, found: PublishedManifest, folder: Path) -> None:
    """Copy adapter_config.json, if its digest is that of the manifest."""
    record = found.manifest.files.get(CONFIG_FILE)
    try:
        content = store.read_bytes(join_key(prefix, CONFIG_FILE))
    except ObjectMissing as error:
        raise TrainerError(FailureReason.ADAPTER_MISSING, f"{store.uri(prefix)} has no {CONFIG_FILE}") from error
    if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
        message = f"{store.uri(prefix)}: {CONFIG_FILE} does not match the digest in its manifest"
        raise TrainerError(FailureReason.ADAPTER_CORRUPT, message)
    (folder / CONFIG_FILE).write_bytes(content)
