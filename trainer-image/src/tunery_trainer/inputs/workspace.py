"""Where a run works: its folders on the disk, what opens each URI, and the places of its output and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import CACHE_FOLDER
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import OnBytesOfTotal, fetch_dataset, fetch_model
from tunery_common.inputs.location import DataFiles, FetchedModel, Location
from tunery_common.inputs.shared_cache import SharedCache
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import HUB_KEYS, S3_KEYS, Credentials, ambient, from_secret

_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    Purpose.WANDB: ("WANDB_API_KEY",),
    Purpose.MLFLOW: (),
}
"""Keys that a Secret must hold whatever the URI."""


@dataclass(frozen=True)
class Workspace:
    """Made once by a task, and handed to whatever reads from outside or writes to the disk.

    A Secret is read anew whenever something is opened: it may have been rotated while a GPU trained.
    """

    run: RunSpec

    @property
    def lora_job(self) -> LoRAJobSpec:
        """The spec of the LoRAJob; raises TuneryError if the run is of another kind."""
        if self.run.lora_job is None:
            raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no LoRAJob")
        return self.run.lora_job

    def folder(self, name: str) -> Path:
        """Return a folder below the work directory, made if need be."""
        folder = Path(self.run.work_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def result(self) -> Path:
        """The folder of what is published, of a training run or of a merge."""
        return self.folder("result")

    def credentials(self, purpose: str, uri: str = "") -> Credentials:
        """Return what opens `uri`: the Secret that is mounted for `purpose`, else the process's own identity.

        Raises TuneryError(SecretNotFound), naming the field, the Secret and the missing keys.
        """
        secret = self.run.secrets.get(purpose)
        if secret is None:
            return ambient()
        needed = _NEEDS.get(purpose, ())
        keys = S3_KEYS if uri.startswith("s3://") else HUB_KEYS if uri.startswith("hf://") else needed
        return from_secret(Path(secret.path), secret.name, keys, secret.field)

    def location(self, purpose: Purpose, uri: str, revision: str | None = None) -> Location:
        """Return where `uri` lies and what opens it, mounted or not; nothing is contacted yet."""
        mount = self.run.volumes.get(purpose)
        return Location(
            uri,
            self.credentials(purpose, uri),
            mount=Path(mount) if mount else None,
            revision=revision,
            allow_file=self.run.local,
            disk=self.run.disk,
        )

    def open(self, purpose: str, uri: str, field: str) -> StorePath:
        """Return the place that `uri` names; `field` named it, for messages. Nothing is contacted yet."""
        return open_store(uri, self.credentials(purpose, uri), field)

    @property
    def cache(self) -> SharedCache | None:
        """The namespace's cache, where the job has one."""
        cache = self.run.cache
        return SharedCache(Path(cache.path, CACHE_FOLDER), cache.max_bytes) if cache else None

    @property
    def output(self) -> StorePath:
        """The place of the result, of a training run or of a merge."""
        return self.open(Purpose.OUTPUT, self.run.output_uri, "spec.output.uri")

    @property
    def checkpoints(self) -> StorePath | None:
        """Where checkpoints are kept; None where the platform named no place."""
        uri = self.run.checkpoint_uri
        field = "--work-dir" if self.run.local else "spec.output.uri"
        return self.open(Purpose.OUTPUT, uri, field) if uri is not None else None

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
