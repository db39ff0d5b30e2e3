"""Where a run works: its folders on the disk, what opens each URI, and the places of its output and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import CACHE_FOLDER
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import OnBytesOfTotal, fetch_dataset, fetch_model
from tunery_common.inputs.location import DataFiles, FetchedModel, Location
from tunery_common.inputs.mounts import Mounts
from tunery_common.inputs.shared_cache import SharedCache
from tunery_common.storage import StorePath


@dataclass(frozen=True)
class Workspace(Mounts):
    """What is mounted, and what only the trainer has beside it."""

    @property
    def lora_job(self) -> LoRAJobSpec:
        """The spec of the LoRAJob; raises TuneryError if the run is of another kind."""
        if self.run.lora_job is None:
            raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no LoRAJob")
        return self.run.lora_job

    @property
    def result(self) -> Path:
        """The folder of what is published, of a training run or of a merge."""
        return self.folder("result")

    @property
    def cache(self) -> SharedCache | None:
        """The namespace's cache, where the job has one."""
        cache = self.run.cache
        return SharedCache(Path(cache.path, CACHE_FOLDER), cache.max_bytes) if cache else None

    @property
    def reports(self) -> StorePath | None:
        """Where the data report lies while nothing is published; None where nobody named a place."""
        uri = self.run.report_uri
        return self.open(Purpose.OUTPUT, uri, "spec.output.uri") if uri is not None else None


def check_secrets(work: Workspace) -> None:
    """Read every Secret that the job names; raises TuneryError(SecretNotFound)."""
    run, spec = work.run, work.lora_job
    uris = {Purpose.MODEL: spec.model.uri, Purpose.DATASET: spec.dataset.uri, Purpose.OUTPUT: run.output_uri}
    if run.adapters:
        uris[Purpose.CONTINUE_FROM] = run.adapters[0].uri
    if run.resume_uri:
        uris[Purpose.RESUME_FROM] = run.resume_uri
    for purpose in Purpose:
        if purpose in run.secrets:
            work.credentials(purpose, uris.get(purpose, ""))


def model_location(work: Workspace) -> Location:
    """Return where the base model lies, and the cache that may hold it."""
    spec = work.lora_job.model
    location = work.location(Purpose.MODEL, spec.uri, work.run.model_revision or spec.revision)
    return replace(location, cache=work.cache)


def get_model(work: Workspace, *, weights: bool, progress: OnBytesOfTotal | None = None) -> FetchedModel:
    """Return the base model's folder, with its weights or without; see fetch.fetch_model."""
    return fetch_model(model_location(work), work.folder("model"), weights=weights, progress=progress)


def get_data(work: Workspace, progress: OnBytesOfTotal | None = None) -> DataFiles:
    """Return the training files, and those of an evaluation set of its own; see fetch.fetch_dataset."""
    spec, folder = work.lora_job.dataset, work.folder("dataset")
    train = fetch_dataset(work.location(Purpose.DATASET, spec.uri), folder, progress)
    own = spec.evaluation.uri if spec.evaluation else None
    if own is None:
        return DataFiles(train)
    # Opened by the data set's Secret, but mounted by itself.
    mount = work.run.volumes.get(Purpose.EVALUATION)
    location = replace(
        work.location(Purpose.DATASET, own),
        mount=Path(mount) if mount else None,
        field="spec.dataset.evaluation.uri",
    )
    return DataFiles(train, fetch_dataset(location, folder, progress))
