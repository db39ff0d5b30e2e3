"""A merge from its inputs to its files: fetch, combine, into an adapter or into the base, verify, measure."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tunery_api.adaptermerge import AdapterMergeSpec, MergeMethod, MergeTarget
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import Lineage, SourceRecord
from tunery_api.methods import ComputeType
from tunery_api.runspec import RunSpec
from tunery_api.status import Phase
from tunery_common.storage.publisher import Publisher
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.base_model import is_tokenizer_file
from tunery_trainer.merging.combine import Combined, combine
from tunery_trainer.merging.compatibility import check, check_tensors
from tunery_trainer.merging.deltas import Options
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.inputs import (
    MergeBase,
    MergeInput,
    MergeSource,
    base_model,
    check_foreign,
    fetch_adapters,
    open_base,
    quantization_of,
    read_sources,
    vouched,
)
from tunery_trainer.merging.into_base import IntoBase, copy_file, merge_into_base
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.merging.verify import Verification, verify_adapter, verify_logits
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.process.environment import go_offline
from tunery_trainer.reporting.downloads import Downloads
from tunery_trainer.reporting.progress import ProgressReporter

if TYPE_CHECKING:
    from tunery_trainer.merging.measure import Losses, Yardstick

SMALL_MODEL: Final = 2 << 30
"""Bytes of weights up to which the merged model is loaded and its logits are compared."""
LOADS: Final = 3
"""A model loaded in float32 takes so many times the bytes of 16-bit weights, with room to work."""


@dataclass(frozen=True)
class MergeInputs:
    """What a merge works with once its inputs were found to fit together."""

    work: Workspace
    spec: AdapterMergeSpec
    sources: Sequence[MergeSource]
    inputs: Sequence[MergeInput]
    """What was brought of them, in the same order."""
    options: Options
    publisher: Publisher
    reporter: ProgressReporter
    held: Quantization | None
    """How the base was quantised in training, where they go into one."""
    yardstick: Yardstick | None = None
    """What spec.evaluation measures with."""

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters, on the disk."""
        return [each.adapter for each in self.inputs]

    @property
    def lineage(self) -> Lineage:
        """What the first manifest says that vouches for one of them; nothing where all were made elsewhere."""
        known = vouched(self.sources)
        return known.lineage if known else Lineage()

    @property
    def one_quantization(self) -> bool:
        """True where all adapters were trained on a base quantised alike, or on none that was.

        What those made elsewhere were trained on nobody knows.
        """
        return _quantized_alike(self.sources)


@dataclass(frozen=True)
class Merged:
    """What came out, beside the files."""

    folder: Path
    rank: int
    served_name: str
    model: SourceRecord | None
    metrics: dict[str, float] = field(default_factory=dict)
    verification: Verification | None = None
    losses: Losses | None = None


def gather(work: Workspace, spec: AdapterMergeSpec, publisher: Publisher, reporter: ProgressReporter) -> MergeInputs:
    """Refuse what cannot be merged, from configs and manifests alone; then fetch the adapters, and claim the place."""
    sources = read_sources(work, spec)
    check([source.facts for source in sources], spec.method, spec.rank, spec.into)
    held = quantization_of(sources) if spec.into is MergeTarget.MODEL else None
    downloads = Downloads(reporter)
    reporter.downloading(None)  # adapters are small
    inputs = fetch_adapters(work, spec, sources)
    adapters = [each.adapter for each in inputs]
    check_foreign(work, spec, sources, adapters, downloads.of("model"))
    check_tensors(adapters)
    options = Options(Fraction(str(spec.effective_density())), spec.majority_sign, spec.rank, spec.seed)
    shutil.rmtree(work.result)
    yardstick = _yardstick(work, spec, sources, downloads)
    reporter.downloaded()
    publisher.start()
    return MergeInputs(work, spec, sources, inputs, options, publisher, reporter, held, yardstick)


def _quantized_alike(sources: Sequence[MergeSource]) -> bool:
    known = [source.quantization for source in sources if not source.unverified]
    return all(quantization == known[0] for quantization in known)


def _yardstick(
    work: Workspace, spec: AdapterMergeSpec, sources: Sequence[MergeSource], downloads: Downloads
) -> Yardstick | None:
    """Read the evaluation's rows before anything is merged: a fault in them costs no more than finding it."""
    if spec.evaluation is None:
        return None
    from tunery_trainer.merging.measure import prepare_yardstick

    held = quantization_of(sources) if _quantized_alike(sources) else None
    return prepare_yardstick(work, spec.evaluation, base_model(spec, sources), held, downloads)


def merge(job: MergeInputs) -> Merged:
    """Merge as spec.into asks; raises TuneryError."""
    return _into_adapter(job) if job.spec.into is MergeTarget.ADAPTER else _into_model(job)


def _measure(job: MergeInputs, result: Adapter) -> Losses | None:
    """Measure the result beside its inputs; raises TuneryError(NotImproved)."""
    if job.yardstick is None or job.spec.evaluation is None:
        return None
    from tunery_trainer.merging.measure import check_improvement, measure

    job.reporter.phase(Phase.EVALUATING)
    losses = measure(job.yardstick, job.adapters, result)
    check_improvement(job.spec.evaluation, losses)
    job.reporter.phase(Phase.MERGING)
    return losses


def _into_adapter(job: MergeInputs) -> Merged:
    """Combine the adapters, and bring along the tokenizer that all of them were trained with."""
    folder, spec = job.work.result, job.spec
    dtype = dtype_of(spec.dtype or ComputeType.FLOAT32)
    combined = combine(job.adapters, spec.method, job.options, folder, dtype)
    _copy_common_tokenizer(job, folder)
    checked = None
    if spec.verify:
        checked = verify_adapter(folder, job.adapters, spec.method, job.options, combined)
    losses = _measure(job, open_adapter(LocalFiles(folder)))
    lineage, model = job.lineage, job.lineage.model
    if model is None and spec.model is not None:
        model = SourceRecord(uri=spec.model.uri, revision=spec.model.revision)
    name = str(job.adapters[0].config.get("base_model_name_or_path") or lineage.served_name or "")
    return Merged(folder, combined.rank, name, model, _rank_errors(combined), checked, losses)


def _into_model(job: MergeInputs) -> Merged:
    """Merge the (combined) adapter into the base; a model that is not small passes through shard by shard."""
    spec, work, model = job.spec, job.work, base_model(job.spec, job.sources)
    into = _one_adapter(job)
    losses = _measure(job, into.adapter)
    base = _base(job, model)
    go_offline()
    how = IntoBase(dtype_of(spec.dtype) if spec.dtype else None, job.held)
    checked: Verification | None
    if spec.verify and base.folder is not None and _is_small(work.run, base.checkpoint.weight_bytes):
        checked = _merge_and_compare_logits(job, base, into.adapter, how)
    else:
        checked = _merge_through(job, base, into.adapter, how)
    source = SourceRecord(uri=model.uri, revision=model.revision)
    folder, name = work.result, model.effective_served_name()
    return Merged(folder, into.adapter.max_rank, name, source, into.metrics, checked, losses)


def _base(job: MergeInputs, model: ModelSpec) -> MergeBase:
    """Return the base; while it comes to the disk, that is what the run does. A yardstick has brought it before."""
    progress = Downloads(job.reporter).of("model") if job.yardstick is None else None
    base = open_base(job.work, model, lambda size: job.spec.verify and _is_small(job.work.run, size), progress)
    job.reporter.downloaded()
    return base


def _merge_and_compare_logits(job: MergeInputs, base: MergeBase, adapter: Adapter, how: IntoBase) -> Verification:
    """Write the whole model to the disk, load it, and compare what it says with base + adapter."""
    folder = job.work.result
    merge_into_base(base.checkpoint, adapter, folder, how)
    if base.folder is None:
        raise ValueError("a base that is read where it lies cannot be loaded")
    return verify_logits(base.folder, adapter, folder, how.quantization)


def _merge_through(job: MergeInputs, base: MergeBase, adapter: Adapter, how: IntoBase) -> Verification | None:
    """Write a shard, compare it with its tensors computed anew, upload it, remove it, and so on."""
    folder = job.work.result

    def publish_and_remove(name: str) -> None:
        job.publisher.add(folder / name, name)
        (folder / name).unlink()

    through = replace(how, verify=job.spec.verify, done=publish_and_remove)
    error = merge_into_base(base.checkpoint, adapter, folder, through)
    return Verification(error, "written tensors against base + delta computed anew") if through.verify else None


@dataclass(frozen=True)
class _OneAdapter:
    """What goes into the base, and what was lost in combining it."""

    adapter: Adapter
    metrics: dict[str, float] = field(default_factory=dict)


def _one_adapter(job: MergeInputs) -> _OneAdapter:
    """Return the adapter that goes into the base: the only one as it is, else the combination, in float32."""
    spec, first = job.spec, job.adapters[0]
    as_it_is = spec.method is MergeMethod.LINEAR and spec.rank is None and first.weight == 1
    if as_it_is and len(job.adapters) == 1:
        return _OneAdapter(first)
    folder = job.work.folder("combined")
    combined = combine(job.adapters, spec.method, job.options, folder, torch.float32)
    _copy_common_tokenizer(job, folder)
    return _OneAdapter(open_adapter(LocalFiles(folder)), _rank_errors(combined))


def _is_small(run: RunSpec, weight_bytes: int) -> bool:
    """Tell whether the base and the merged model can each be loaded in float32 for a moment."""
    return weight_bytes <= min(SMALL_MODEL, (run.memory_bytes or 0) // LOADS)


def _rank_errors(combined: Combined) -> dict[str, float]:
    return {"rankError": combined.max_error, "meanRankError": combined.mean_error}


def _copy_common_tokenizer(job: MergeInputs, folder: Path) -> None:
    """Bring along the tokenizer files that all adapters have alike; one that differs belongs to none of them.

    Those made elsewhere have none that were read.
    """
    known = [(source.files, adapter) for source, adapter in zip(job.sources, job.adapters, strict=True) if source.files]
    for name, record in known[0][0].items() if known else ():
        if is_tokenizer_file(name) and all(name in files and files[name].sha256 == record.sha256 for files, _ in known):
            copy_file(known[0][1].files, name, folder / name)
