"""Where the inputs of a merge lie, and what their manifests and configs say before any weight is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import CONFIG_FILE, Manifest, MergeInputRecord
from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.names import adapter_purpose
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose, RunSpec
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.fetch import Place, fetch_model
from tunery_trainer.inputs.workspace import credentials_for, work_folder
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.base_model import Checkpoint, open_checkpoint
from tunery_trainer.merging.compatibility import Facts
from tunery_trainer.merging.files import LocalFiles, StoreFiles
from tunery_trainer.merging.quantized import Quantization, torch_type
from tunery_trainer.storage import ObjectMissing, Store, join_key, open_store
from tunery_trainer.storage.credentials import S3_KEYS, Credentials, ambient, from_secret
from tunery_trainer.storage.published import download_published, read_manifest

QUANTIZATION: Final[tuple[str, ...]] = ("quantization.type", "quantization.doubleQuant", "training.precision")
"""The settings in a manifest's lineage that say how the base was quantised, and the type it was loaded in."""


@dataclass(frozen=True, slots=True)
class Source:
    """One published adapter, of which only manifest and config were read."""

    store: Store
    prefix: str
    uri: str
    field: str
    """`spec.adapters[0]`."""
    weight: str
    manifest: Manifest
    manifest_sha256: str
    config: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.field} ({self.uri})"

    @property
    def facts(self) -> Facts:
        """What compatibility is judged by."""
        lineage = self.manifest.lineage
        revision = (lineage.model.revision if lineage.model else None) or self.config.get("revision")
        quantization = ", ".join(self.settings.values()) or None
        return Facts(self.label, self.config, float(self.weight), revision, quantization)

    @property
    def settings(self) -> dict[str, str]:
        """How the base was quantised; empty where it was not."""
        values = self.manifest.lineage.hyperparameters
        found = {name: str(values[name]) for name in QUANTIZATION if name in values}
        return found if QUANTIZATION[0] in found else {}

    def record(self, rank: int, loss: float | None) -> MergeInputRecord:
        """Return what the result's manifest says of this input; `loss` is what it was measured at."""
        return MergeInputRecord(
            uri=self.uri,
            manifest_sha256=self.manifest_sha256,
            rank=rank,
            weight=self.weight,
            eval_loss=loss,
            rejected=self.manifest.lineage.rejected,
        )


def read_sources(run: RunSpec, spec: AdapterMergeSpec) -> list[Source]:
    """Read manifest and config of every adapter.

    Raises TrainerError: SecretNotFound, AdapterMissing, AdapterCorrupt (each names the field), storage reasons.
    """
    return [_read_source(run, index, weight) for index, weight in enumerate(spec.effective_weights())]


def _read_source(run: RunSpec, index: int, weight: str) -> Source:
    adapter, field = run.adapters[index], f"spec.adapters[{index}]"
    store, prefix = open_store(adapter.uri, _credentials(run, index, adapter.uri), f"{field}.uri")
    try:
        found = read_manifest(store, prefix, adapter.manifest_sha256)
        config = json.loads(store.read_bytes(join_key(prefix, CONFIG_FILE)))
    except ObjectMissing as error:
        raise TrainerError(FailureReason.ADAPTER_MISSING, f"{field}: {adapter.uri} has no {CONFIG_FILE}") from error
    except ValueError as error:
        raise TrainerError(FailureReason.ADAPTER_CORRUPT, f"{field}: {CONFIG_FILE} is no JSON") from error
    except TrainerError as error:
        raise error.about(field) from error
    return Source(store, prefix, adapter.uri, field, weight, found.manifest, found.sha256, config)


def fetch_adapters(run: RunSpec, sources: Sequence[Source]) -> list[Adapter]:
    """Download the adapters, every digest checked on the way, and read their headers."""
    opened = []
    for index, source in enumerate(sources):
        folder = work_folder(run, f"adapters/{index}")
        try:
            download_published(source.store, source.prefix, folder, source.manifest_sha256)
        except TrainerError as error:
            raise error.about(source.field) from error
        opened.append(open_adapter(LocalFiles(folder, source.label), float(source.weight)))
    return opened


def quantization_of(sources: Sequence[Source]) -> Quantization | None:
    """Return how the base was quantised when the adapters were trained; all agree, as was checked."""
    settings = sources[0].settings
    if not settings:
        return None
    kind, double, precision = (settings.get(name, "") for name in QUANTIZATION)
    dtype = torch_type(ComputeType(precision or ComputeType.BFLOAT16))
    return Quantization(QuantizationType(kind), double.lower() != "false", dtype)


def base_model(spec: AdapterMergeSpec, sources: Sequence[Source]) -> ModelSpec:
    """Return spec.model, else the base that the adapters' lineage names.

    Raises TrainerError(InvalidSpec) where neither tells.
    """
    if spec.model is not None:
        return spec.model
    named = sources[0].manifest.lineage.model
    if named is None:
        raise TrainerError(FailureReason.INVALID_SPEC, f"spec.model: is required, {sources[0].label} names no base")
    served = sources[0].manifest.lineage.served_name
    return ModelSpec(uri=named.uri, revision=named.revision, served_name=served)


def open_base(run: RunSpec, model: ModelSpec, small: Callable[[int], bool]) -> tuple[Checkpoint, Path | None]:
    """Return the base model, and its folder where it is on the disk.

    In S3 it is read where it lies, unless `small` says of the bytes of its weights that a copy is welcome.
    Raises what fetch_model and open_checkpoint raise.
    """
    label, damaged = "spec.model.uri", FailureReason.MODEL_NOT_FOUND
    credentials = credentials_for(run, Purpose.MODEL, model.uri)
    if model.uri.startswith("s3://"):
        store, prefix = open_store(model.uri, credentials, label)
        checkpoint = open_checkpoint(StoreFiles(store, prefix, label, damaged))
        if not small(checkpoint.weight_bytes):
            return checkpoint, None
    mount = run.volumes.get(Purpose.MODEL)
    place = Place(model.uri, credentials, Path(mount) if mount else None, model.revision, run.local, disk=run.disk)
    folder = fetch_model(place, work_folder(run, "model"), digest=False).folder
    return open_checkpoint(LocalFiles(folder, label, damaged)), folder


def _credentials(run: RunSpec, index: int, uri: str) -> Credentials:
    secret = run.secrets.get(adapter_purpose(index))
    if secret is None:
        return ambient()
    return from_secret(Path(secret.path), secret.name, S3_KEYS if uri.startswith("s3://") else (), secret.field)
