"""What preflight and training both start from: credentials, files on the disk, settings, the place of the output."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method
from tunery_api.names import CACHE_FOLDER
from tunery_api.preference import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose, RunSpec
from tunery_trainer.data.options import DataFormat, DataOptions, Loss, Template
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.fetch import FetchedDataset, FetchedModel, Place, Progress, fetch_dataset, fetch_model
from tunery_trainer.inputs.shared_cache import SharedCache
from tunery_trainer.process.device import device_facts, require_gpu
from tunery_trainer.settings.sizing import sequences_to_pack
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, Resolved
from tunery_trainer.storage import Store, open_store
from tunery_trainer.storage.checkpoints import probe_checkpoints
from tunery_trainer.storage.credentials import HUB_KEYS, S3_KEYS, Credentials, ambient, from_secret
from tunery_trainer.storage.publish import Target, probe

_NEEDS: Final = {
    Purpose.WANDB: ("WANDB_API_KEY",),
    Purpose.MLFLOW: (),
}
"""Keys that a Secret must hold whatever the URI."""


def lora_spec(run: RunSpec) -> LoRAJobSpec:
    """Return the spec of the LoRAJob; raises TrainerError if the run is of another kind."""
    if run.lora_job is None:
        raise TrainerError(FailureReason.INTERNAL_ERROR, "run.json holds no LoRAJob")
    return run.lora_job


def work_folder(run: RunSpec, name: str) -> Path:
    """Return a folder below the work directory, made if need be."""
    folder = Path(run.work_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def credentials_for(run: RunSpec, purpose: Purpose, uri: str = "") -> Credentials:
    """Return what opens `uri`: the Secret that is mounted for `purpose`, else the process's own identity.

    Raises TrainerError(SecretNotFound), naming the field, the Secret and the missing keys.
    """
    secret = run.secrets.get(purpose)
    if secret is None:
        return ambient()
    keys: tuple[str, ...] = _NEEDS.get(purpose, ())
    keys = S3_KEYS if uri.startswith("s3://") else HUB_KEYS if uri.startswith("hf://") else keys
    return from_secret(Path(secret.path), secret.name, keys, secret.field)


def check_secrets(run: RunSpec) -> None:
    """Read every Secret that the job names; raises TrainerError(SecretNotFound)."""
    spec = lora_spec(run)
    uris = {Purpose.MODEL: spec.model.uri, Purpose.DATASET: spec.dataset.uri, Purpose.OUTPUT: run.output_uri}
    if run.adapters:
        uris[Purpose.CONTINUE_FROM] = run.adapters[0].uri
    if run.resume_uri:
        uris[Purpose.RESUME_FROM] = run.resume_uri
    for purpose in Purpose:
        if purpose in run.secrets:
            credentials_for(run, purpose, uris.get(purpose, ""))


def get_model(run: RunSpec, *, weights: bool, progress: Progress | None = None) -> FetchedModel:
    """Return the base model's folder, with its weights or without; see fetch.fetch_model."""
    place = model_place(run)
    return fetch_model(place, work_folder(run, "model"), weights=weights, progress=progress)


def model_place(run: RunSpec) -> Place:
    """Return where the base model lies, and the cache that may hold it."""
    spec = lora_spec(run).model
    place = _place(run, Purpose.MODEL, spec.uri, run.model_revision or spec.revision)
    return dataclasses.replace(place, cache=shared_cache(run))


def shared_cache(run: RunSpec) -> SharedCache | None:
    """Return the namespace's cache, where the job has one."""
    return SharedCache(Path(run.cache.path, CACHE_FOLDER), run.cache.max_bytes) if run.cache else None


def get_data(run: RunSpec, progress: Progress | None = None) -> tuple[FetchedDataset, FetchedDataset | None]:
    """Return the training files, and those of an evaluation set of its own; see fetch.fetch_dataset."""
    spec = lora_spec(run).dataset
    folder = work_folder(run, "dataset")
    train = fetch_dataset(_place(run, Purpose.DATASET, spec.uri), folder, progress)
    own = spec.evaluation.uri if spec.evaluation else None
    if own is None:
        return train, None
    # Opened by the data set's Secret, but mounted by itself.
    mount = run.volumes.get(Purpose.EVALUATION)
    place = dataclasses.replace(
        _place(run, Purpose.DATASET, own),
        mount=Path(mount) if mount else None,
        field="spec.dataset.evaluation.uri",
    )
    return train, fetch_dataset(place, folder, progress)


def data_options(
    spec: LoRAJobSpec, files: tuple[FetchedDataset, FetchedDataset | None], resolved: Resolved | None
) -> DataOptions:
    """Return what the data layer is asked for; without `resolved` it fits a scan for formats only."""
    train, own = files
    evaluation = spec.dataset.evaluation
    defaults = DataOptions()
    return DataOptions(
        task=spec.task,
        path=train.pattern,
        format=DataFormat(spec.dataset.format.value),
        template=Template(spec.dataset.template.value),
        split=spec.dataset.split,
        columns=dict(spec.dataset.columns or {}),
        max_invalid_rows=spec.dataset.max_invalid_rows,
        max_length=resolved.training.max_length if resolved else defaults.max_length,
        packing=resolved.training.packing if resolved else False,
        min_sequences=sequences_to_pack(resolved.training.epochs) if resolved and _may_stay_alone(spec) else 0,
        loss=Loss(spec.training.loss.value),
        seed=spec.training.seed,
        evaluation_root=own.root if own else None,
        evaluation_path=own.pattern if own else "",
        evaluation_split=evaluation.split if evaluation else None,
        evaluation_fraction=float(evaluation.fraction)
        if evaluation and evaluation.fraction is not None
        else defaults.evaluation_fraction,
    )


def _may_stay_alone(spec: LoRAJobSpec) -> bool:
    """Say whether nobody asks for packing, nor for a number of steps that would be the same without it."""
    return spec.training.packing is None and spec.training.max_steps is None


def count_rows(spec: LoRAJobSpec, files: tuple[FetchedDataset, FetchedDataset | None]) -> int:
    """Return the rows of the data set where `method: Auto` depends on them, else 0."""
    from tunery_trainer.data.scan import scan

    depends = spec.method is Method.AUTO and spec.task is TrainingTask.SFT
    return scan(files[0].root, data_options(spec, files, None)).rows if depends else 0


def expected_device(run: RunSpec) -> DeviceFacts:
    """Return what preflight expects training to run on: this machine without a cluster, else what the job asks for."""
    if run.local or not lora_spec(run).resources.gpus:
        return actual_device(run)
    return DeviceFacts(DeviceKind.CUDA, run.gpu_memory_bytes, bfloat16=True)


def actual_device(run: RunSpec) -> DeviceFacts:
    """Return the device of this process: the GPU that the job asked for; without a cluster what there is.

    Raises TrainerError(GPUUnavailable): a pod that holds a GPU never trains on the CPU.
    """
    import torch

    if lora_spec(run).resources.gpus and not run.local:
        require_gpu()
    return device_facts(run.gpu_memory_bytes if torch.cuda.is_available() else run.memory_bytes)


def output_target(run: RunSpec) -> Target:
    """Return the place of the result, of a training run or of a merge; nothing is contacted yet."""
    spec = run.adapter_merge or lora_spec(run)
    store, prefix = open_store(run.output_uri, credentials_for(run, Purpose.OUTPUT, run.output_uri), "spec.output.uri")
    return Target(store, prefix, run.identity, spec.output.overwrite)


def refuse_own_input(run: RunSpec) -> None:
    """Raise INVALID_SPEC where the result would replace an adapter that it is made from: a second try had none left."""
    if any(adapter.uri.rstrip("/") == run.output_uri.rstrip("/") for adapter in run.adapters):
        message = f"spec.output.uri: {run.output_uri} is where an adapter lies that this one is made from"
        raise TrainerError(FailureReason.INVALID_SPEC, message)


def probe_places(run: RunSpec) -> None:
    """Write and remove a small object where the result and where the checkpoints will lie; raises TrainerError."""
    refuse_own_input(run)
    probe(output_target(run))
    place = checkpoint_store(run)
    if place is not None:
        probe_checkpoints(*place)


def checkpoint_store(run: RunSpec) -> tuple[Store, str] | None:
    """Return where checkpoints are kept, and the prefix; None where the platform named no place."""
    if run.checkpoint_uri is None:
        return None
    credentials = credentials_for(run, Purpose.OUTPUT, run.checkpoint_uri)
    return open_store(run.checkpoint_uri, credentials, "spec.output.uri")


def _place(run: RunSpec, purpose: Purpose, uri: str, revision: str | None = None) -> Place:
    mount = run.volumes.get(purpose)
    place = Place(uri, credentials_for(run, purpose, uri), Path(mount) if mount else None, revision, run.local)
    return dataclasses.replace(place, disk=run.disk)
