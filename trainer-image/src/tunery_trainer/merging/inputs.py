"""Where the inputs of a merge lie, and what their manifests and configs say before any weight is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tunery_api.adaptermerge import AdapterMergeSpec, MergeTarget
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import FileRecord, Lineage, MergeInputRecord, QuantizationRecord
from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.names import adapter_purpose
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import OnBytesOfTotal, fetch_model
from tunery_common.inputs.hub import RangesRefused, hub_files
from tunery_common.inputs.misfit import OTHER_BASE
from tunery_trainer.inputs.named_adapter import NamedAdapter, Wanted, open_named
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.base_model import Checkpoint, open_checkpoint
from tunery_trainer.merging.compatibility import Facts
from tunery_trainer.merging.edit_plan import check_whole, plan_edits
from tunery_trainer.merging.files import LocalFiles, RangeFiles, StoreFiles
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.model.quantization import dtype_of

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")


@dataclass(frozen=True, slots=True)
class MergeSource:
    """One adapter, of which only manifest and config were read, and of one made elsewhere the header."""

    named: NamedAdapter
    weight: float

    @property
    def label(self) -> str:
        return self.named.label

    @property
    def unverified(self) -> bool:
        """Whether it was made elsewhere."""
        return self.named.unverified

    @property
    def lineage(self) -> Lineage:
        """What its manifest says; nothing of one made elsewhere."""
        return self.named.lineage

    @property
    def files(self) -> dict[str, FileRecord]:
        """What its manifest lists."""
        return self.named.published.manifest.files if self.named.published else {}

    @property
    def facts(self) -> Facts:
        """What compatibility is judged by."""
        lineage, config = self.lineage, self.named.config
        revision = (lineage.model.revision if lineage.model else None) or config.get("revision")
        quantization = str(self.quantization) if self.quantization else None
        return Facts(self.label, config, self.weight, revision, quantization, self.unverified)

    @property
    def quantization(self) -> QuantizationRecord | None:
        """How the base was quantised; None where it was not, or nobody knows."""
        return self.lineage.quantization


@dataclass(frozen=True, slots=True)
class MergeInput:
    """One adapter on the disk."""

    adapter: Adapter
    record: MergeInputRecord
    """What was read, digest by digest."""


@dataclass(frozen=True)
class MergeBase:
    """The base model that adapters are merged into."""

    checkpoint: Checkpoint
    folder: Path | None = None
    """Where it is on the disk; None: it is read where it lies."""


def read_sources(work: Workspace, spec: AdapterMergeSpec) -> list[MergeSource]:
    """Read manifest and config of every adapter, and the header of those made elsewhere.

    Raises TuneryError: SecretNotFound, AdapterMissing, AdapterCorrupt, AdapterUnsupported (each names the field), the
    reasons of storage and hub.
    """
    return [
        MergeSource(open_named(work, Wanted(adapter_purpose(index), f"spec.adapters[{index}]", item, resolved)), weight)
        for index, (item, resolved, weight) in enumerate(
            zip(spec.adapters, work.run.adapters, spec.effective_weights(), strict=True)
        )
    ]


def vouched(sources: Sequence[MergeSource]) -> MergeSource | None:
    """Return the first adapter that a manifest vouches for; None where all were made elsewhere."""
    return next((source for source in sources if not source.unverified), None)


def fetch_adapters(work: Workspace, spec: AdapterMergeSpec, sources: Sequence[MergeSource]) -> list[MergeInput]:
    """Download the adapters, every digest checked on the way, and read their headers."""
    name = _base_name(spec, sources)
    if name is None:
        name = _agreed_name(sources)
    opened = []
    for index, source in enumerate(sources):
        folder = work.folder(f"adapters/{index}")
        record = source.named.bring(folder)
        adapter = open_adapter(LocalFiles(folder, source.label), source.weight, unverified=source.unverified)
        if source.unverified:
            # The result is for the base as it is called here, and not as somebody else's disk had it.
            adapter = replace(adapter, config={**adapter.config, "base_model_name_or_path": name, "revision": None})
        opened.append(MergeInput(adapter, record))
    return opened


def _base_name(spec: AdapterMergeSpec, sources: Sequence[MergeSource]) -> str | None:
    """Return what the base is called here; None where nobody says that but adapters made elsewhere."""
    known = vouched(sources)
    said = known.named.config.get("base_model_name_or_path") or known.lineage.served_name if known else None
    return str(said) if said else spec.model.effective_served_name() if spec.model else None


def _agreed_name(sources: Sequence[MergeSource]) -> str | None:
    """Return what adapters made elsewhere call their base, where all say the same and it is a name.

    It proves nothing, and goes into the commands of a model card: what is no plain name is left out.
    """
    names = {str(source.named.config.get("base_model_name_or_path") or "") for source in sources}
    name = names.pop() if len(names) == 1 else ""
    return name if _PLAIN_NAME.fullmatch(name) else None


def check_foreign(
    work: Workspace,
    spec: AdapterMergeSpec,
    sources: Sequence[MergeSource],
    adapters: Sequence[Adapter],
    progress: OnBytesOfTotal,
) -> None:
    """Compare the tensors of adapters made elsewhere with their configurations and the base, by headers alone.

    The base is spec.model, else that of an adapter which a manifest vouches for; without one they are compared with
    their configurations only. `progress` gets the base's bytes where
    a hub sends it as a whole only.

    Raises TuneryError: AdapterCorrupt and BaseMismatch naming the adapter and the tensor, and what opening the base
    raises.
    """
    foreign = [adapter for source, adapter in zip(sources, adapters, strict=True) if source.unverified]
    if not foreign:
        return
    from tunery_trainer.merging.told import check_on_base, check_told

    for adapter in foreign:
        check_told(adapter)
    known = spec.model is not None or _with_base(sources) is not None
    if not (known or spec.into is MergeTarget.MODEL):
        return
    checkpoint = _headers(work, base_model(spec, sources), progress)
    for adapter in foreign:
        try:
            plan_edits(checkpoint, adapter)
            check_whole(checkpoint, adapter)
        except TuneryError as error:
            if error.reason is not FailureReason.INVALID_SPEC:
                raise
            raise TuneryError(FailureReason.BASE_MISMATCH, error.message, OTHER_BASE) from error
        check_on_base(checkpoint, adapter)


def _headers(work: Workspace, model: ModelSpec, progress: OnBytesOfTotal) -> Checkpoint:
    """Return the base model, whose tensors nobody will read: no more than config, index and headers are fetched."""
    label, damaged = "spec.model.uri", FailureReason.MODEL_NOT_FOUND
    if model.uri.startswith("s3://"):
        return open_checkpoint(StoreFiles(work.open(Purpose.MODEL, model.uri, label), label, damaged))
    location = work.location(Purpose.MODEL, model.uri, model.revision)
    if model.uri.startswith("hf://"):
        try:
            return open_checkpoint(RangeFiles(hub_files(location), label, damaged))
        except RangesRefused:
            pass  # a hub that sends whole files only
    folder = fetch_model(location, work.folder("model"), digest=False, progress=progress).folder
    return open_checkpoint(LocalFiles(folder, label, damaged))


def quantization_of(sources: Sequence[MergeSource]) -> Quantization | None:
    """Return how the base was quantised when the adapters were trained; all agree, as was checked.

    Raises TuneryError(InvalidSpec) where that is a word of a later version.
    """
    known = vouched(sources)
    record = known.quantization if known else None
    if known is None or record is None:
        return None
    try:
        kind, loaded_as = QuantizationType(record.type), ComputeType(record.loaded_as or ComputeType.BFLOAT16)
    except ValueError as error:
        message = f"{known.label} was trained on a base quantised as {record}, which this version does not know"
        fix = retry("Use the version of Tunery that published it")
        raise TuneryError(FailureReason.INVALID_SPEC, message, fix) from error
    return Quantization(kind, record.double_quant is not False, dtype_of(loaded_as))


def _with_base(sources: Sequence[MergeSource]) -> Lineage | None:
    """Return the first lineage that names a base; None where none does."""
    return next((source.lineage for source in sources if source.lineage.model), None)


def base_model(spec: AdapterMergeSpec, sources: Sequence[MergeSource]) -> ModelSpec:
    """Return spec.model, else the base that the adapters' lineage names.

    Raises TuneryError(InvalidSpec) where neither tells.
    """
    if spec.model is not None:
        return spec.model
    lineage = _with_base(sources)
    if lineage is None or lineage.model is None:
        raise TuneryError(FailureReason.INVALID_SPEC, f"spec.model: is required, {sources[0].label} names no base")
    return ModelSpec(uri=lineage.model.uri, revision=lineage.model.revision, served_name=lineage.served_name)


def open_base(
    work: Workspace, model: ModelSpec, small: Callable[[int], bool], progress: OnBytesOfTotal | None
) -> MergeBase:
    """Return the base model.

    In S3 it is read where it lies, unless `small` says of the bytes of its weights that a copy is welcome. `progress`
    gets the bytes of one that is copied.
    Raises what fetch_model and open_checkpoint raise.
    """
    label, damaged = "spec.model.uri", FailureReason.MODEL_NOT_FOUND
    if model.uri.startswith("s3://"):
        checkpoint = open_checkpoint(StoreFiles(work.open(Purpose.MODEL, model.uri, label), label, damaged))
        if not small(checkpoint.weight_bytes):
            return MergeBase(checkpoint)
    location = work.location(Purpose.MODEL, model.uri, model.revision)
    folder = fetch_model(location, work.folder("model"), digest=False, progress=progress).folder
    return MergeBase(open_checkpoint(LocalFiles(folder, label, damaged)), folder)
