"""What a job goes on from, as far as it lies on this machine: for a look at the job before it is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import CONFIG_FILE, MANIFEST_NAME, MergeInputRecord
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.status import AdapterOrigin
from tunery_common.errors import TuneryError
from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient
from tunery_trainer.inputs.adapter import StartingAdapter
from tunery_trainer.resuming.resume import checkpoint_place, peek_at
from tunery_trainer.resuming.taken_settings import NOTHING, Taken, with_open_taken

_FILE: Final = "file://"
_COUNTS: Final = {
    "continueFrom": "the method, rank, alpha and target modules of that adapter",
    "resumeFrom": "the settings of that checkpoint's run",
}


@dataclass(frozen=True)
class Start:
    """A job, with what it goes on from."""

    spec: LoRAJobSpec
    """With what it leaves open as the checkpoint of resumeFrom has it."""
    taken: Taken = NOTHING
    adapter: StartingAdapter | None = None
    """Of continueFrom; not compared with its manifest."""
    left_out: str | None = None
    """What the job goes on from and could not be read, in a sentence."""


def start_here(spec: LoRAJobSpec, given: Path | None) -> Start:
    """Return what `spec` goes on from: read in the folder `given`, else at a file:// URI, else left out.

    Raises TuneryError: InvalidSpec where `given` is for nothing, AdapterMissing or CheckpointMissing where nothing
    such is there.
    """
    source = spec.continue_from or spec.resume_from
    if source is None:
        if given is not None:
            raise TuneryError(
                FailureReason.INVALID_SPEC,
                f"--from {given}: the manifest has neither continueFrom nor resumeFrom",
                retry("Omit --from, or set continueFrom or resumeFrom in the manifest"),
            )
        return Start(spec)
    field = "continueFrom" if spec.continue_from else "resumeFrom"
    uri = given.resolve().as_uri() if given else source.uri
    if uri is None or not uri.startswith(_FILE):
        named = uri or f"LoRAJob {source.lora_job_ref.name if source.lora_job_ref else ''}"
        text = f"{field}: {named} is not read here. What counts is {_COUNTS[field]}; below stand the manifest's and"
        return Start(spec, left_out=f"{text} defaults. Name a copy of it: --from FOLDER")
    if spec.continue_from:
        return Start(spec, adapter=_adapter(uri))
    store = checkpoint_place(uri, lambda place: open_store(place, ambient(), f"spec.{field}.uri"))
    whole, taken = with_open_taken(spec, peek_at(store).memo.origin)
    return Start(whole, taken)


def _adapter(uri: str) -> StartingAdapter:
    folder = Path(unquote(uri.removeprefix(_FILE)))
    if not (folder / CONFIG_FILE).is_file():
        raise TuneryError(
            FailureReason.ADAPTER_MISSING,
            f"spec.continueFrom: {folder} has no {CONFIG_FILE}",
            retry(f"Name the folder of a published adapter, or a copy of its {CONFIG_FILE}: --from FOLDER"),
        )
    ours = (folder / MANIFEST_NAME).is_file()
    return StartingAdapter(MergeInputRecord(uri=uri, origin=None if ours else AdapterOrigin.UNVERIFIED), folder)
