"""Where the inputs of a merge lie, and what their manifests and configs say before any weight is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import CONFIG_FILE, Manifest, MergeInputRecord, QuantizationRecord
from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.names import adapter_purpose
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_model
from tunery_common.storage import ObjectMissing, StorePath
from tunery_common.storage.published_folder import download_published, read_manifest
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.base_model import Checkpoint, open_checkpoint
from tunery_trainer.merging.compatibility import Facts
from tunery_trainer.merging.files import LocalFiles, StoreFiles
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.model.quantization import dtype_of


@dataclass(frozen=True, slots=True)
class MergeSource:
    """One published adapter, of which only manifest and config were read."""

    place: StorePath
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
        quantization = str(self.quantization) if self.quantization else None
        return Facts(self.label, self.config, float(self.weight), revision, quantization)

    @property
    def quantization(self) -> QuantizationRecord | None:
        """How the base was quantised; None where it was not."""
        return self.manifest.lineage.quantization

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


@dataclass(frozen=True)
class MergeBase:
    """The base model that adapters are merged into."""

    checkpoint: Checkpoint
    folder: Path | None = None
    """Where it is on the disk; None: it is read where it lies."""


def read_sources(work: Workspace, spec: AdapterMergeSpec) -> list[MergeSource]:
    """Read manifest and config of every adapter.

    Raises TuneryError: SecretNotFound, AdapterMissing, AdapterCorrupt (each names the field), storage reasons.
    """
    return [_read_source(work, index, weight) for index, weight in enumerate(spec.effective_weights())]


def _read_source(work: Workspace, index: int, weight: str) -> MergeSource:
    adapter, field = work.run.adapters[index], f"spec.adapters[{index}]"
    place = work.open(adapter_purpose(index), adapter.uri, f"{field}.uri")
    try:
        found = read_manifest(place, adapter.manifest_sha256)
        config = json.loads(place.read_bytes(CONFIG_FILE))
    except ObjectMissing as error:
        raise TuneryError(FailureReason.ADAPTER_MISSING, f"{field}: {adapter.uri} has no {CONFIG_FILE}") from error
    except ValueError as error:
        raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{field}: {CONFIG_FILE} is no JSON") from error
    except TuneryError as error:
        raise error.about(field) from error
    return MergeSource(place, adapter.uri, field, weight, found.manifest, found.sha256, config)


def fetch_adapters(work: Workspace, sources: Sequence[MergeSource]) -> list[Adapter]:
    """Download the adapters, every digest checked on the way, and read their headers."""
    opened = []
    for index, source in enumerate(sources):
        folder = work.folder(f"adapters/{index}")
        try:
            download_published(source.place, folder, source.manifest_sha256)
        except TuneryError as error:
            raise error.about(source.field) from error
        opened.append(open_adapter(LocalFiles(folder, source.label), float(source.weight)))
    return opened


def quantization_of(sources: Sequence[MergeSource]) -> Quantization | None:
    """Return how the base was quantised when the adapters were trained; all agree, as was checked.

    Raises TuneryError(InvalidSpec) where that is a word of a later version.
    """
    record = sources[0].quantization
    if record is None:
        return None
    try:
        kind, loaded_as = QuantizationType(record.type), ComputeType(record.loaded_as or ComputeType.BFLOAT16)
    except ValueError as error:
        message = f"{sources[0].label} was trained on a base quantised as {record}, which this version does not know"
        hint = "Use an operator and trainer of the version that published it."
        raise TuneryError(FailureReason.INVALID_SPEC, message, hint) from error
    return Quantization(kind, record.double_quant is not False, dtype_of(loaded_as))


def base_model(spec: AdapterMergeSpec, sources: Sequence[MergeSource]) -> ModelSpec:
    """Return spec.model, else the base that the adapters' lineage names.

    Raises TuneryError(InvalidSpec) where neither tells.
    """
    if spec.model is not None:
        return spec.model
    named = sources[0].manifest.lineage.model
    if named is None:
        raise TuneryError(FailureReason.INVALID_SPEC, f"spec.model: is required, {sources[0].label} names no base")
    served = sources[0].manifest.lineage.served_name
    return ModelSpec(uri=named.uri, revision=named.revision, served_name=served)


def open_base(work: Workspace, model: ModelSpec, small: Callable[[int], bool]) -> MergeBase:
    """Return the base model.

    In S3 it is read where it lies, unless `small` says of the bytes of its weights that a copy is welcome.
    Raises what fetch_model and open_checkpoint raise.
    """
    label, damaged = "spec.model.uri", FailureReason.MODEL_NOT_FOUND
    if model.uri.startswith("s3://"):
        checkpoint = open_checkpoint(StoreFiles(work.open(Purpose.MODEL, model.uri, label), label, damaged))
        if not small(checkpoint.weight_bytes):
            return MergeBase(checkpoint)
    location = work.location(Purpose.MODEL, model.uri, model.revision)
    folder = fetch_model(location, work.folder("model"), digest=False).folder
    return MergeBase(open_checkpoint(LocalFiles(folder, label, damaged)), folder)
