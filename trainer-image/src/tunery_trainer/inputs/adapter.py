"""The adapter that continueFrom names: brought to the disk, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.inputs import AdapterReference
from tunery_api.manifest import MergeInputRecord
from tunery_api.runspec import Purpose
from tunery_api.status import InputAdapterStatus
from tunery_common.inputs.headers import Tensor
from tunery_trainer.inputs.named_adapter import Wanted, open_named
from tunery_trainer.inputs.workspace import Workspace

_FIELD: Final = "spec.continueFrom"


@dataclass(frozen=True)
class StartingAdapter:
    """An adapter that is trained on."""

    record: MergeInputRecord
    """How lineage names it."""
    folder: Path
    tensors: Mapping[str, Tensor] | None = None
    """Of one made elsewhere, by name."""

    @property
    def unverified(self) -> bool:
        """Whether it was made elsewhere: nobody vouches for the base that it was trained on."""
        return self.record.origin is not None

    def to_status(self) -> InputAdapterStatus:
        """Return it as status.resolved.continuedFrom."""
        record = self.record
        return InputAdapterStatus(uri=record.uri, sha256=record.digest, origin=record.origin, revision=record.revision)


def get_starting_adapter(work: Workspace, *, weights: bool) -> StartingAdapter | None:
    """Return the adapter that training starts from, or None where the job starts a new one.

    Without `weights` every byte is read, and compared with its manifest where it has one, and only the configuration is
    kept. Raises TuneryError: AdapterMissing, AdapterCorrupt, AdapterUnsupported, SecretNotFound, and the reasons of
    storage and hub; each message names the field.
    """
    if not work.run.adapters:
        return None
    reference = work.lora_job.continue_from or AdapterReference()
    found = open_named(work, Wanted(Purpose.CONTINUE_FROM, _FIELD, reference, work.run.adapters[0]))
    folder = work.folder("continue-from")
    record = found.bring(folder) if weights else found.read(folder)
    return StartingAdapter(record, folder, found.tensors)
