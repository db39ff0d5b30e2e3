"""The story of a merge, from top to bottom: read configs, refuse, fetch, merge, verify, publish, read back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunery_api.adaptermerge import ELECTING, AdapterMergeSpec, MergeMethod, MergeTarget
from tunery_api.manifest import Lineage, SourceRecord
from tunery_api.methods import ComputeType
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import Phase, VerificationStatus
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.workspace import output_target, refuse_own_input, work_folder
from tunery_trainer.process.environment import go_offline
from tunery_trainer.reporting.model_card import model_card
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.status_parts import library_versions
from tunery_trainer.storage.publish import Published, Publisher, Target, probe, published_before

if TYPE_CHECKING:
    from tunery_trainer.merging.adapter_files import Adapter
    from tunery_trainer.merging.base_model import Checkpoint
    from tunery_trainer.merging.combine import Combined
    from tunery_trainer.merging.deltas import Options
    from tunery_trainer.merging.inputs import Source
    from tunery_trainer.merging.into_base import IntoBase
    from tunery_trainer.merging.measure import Losses, Yardstick
    from tunery_trainer.merging.verify import Verification

SMALL_MODEL: Final = 2 << 30
"""Bytes of weights up to which the merged model is loaded and its logits are compared."""
LOADS: Final = 3
"""A model loaded in float32 takes so many times the bytes of 16-bit weights, with room to work."""
CARD: Final = "README.md"
RESULT: Final = "result"
"""Folder below the work directory."""


@dataclass(frozen=True)
class Session:
    """What a merge works with once its inputs were found to fit together."""

    run: RunSpec
    spec: AdapterMergeSpec
    sources: Sequence[Source]
    adapters: Sequence[Adapter]
    options: Options
    publisher: Publisher
    reporter: ProgressReporter
    yardstick: Yardstick | None = None
    """What spec.evaluation measures with."""

    @property
    def one_quantization(self) -> bool:
        """True where all adapters were trained on a base quantised alike, or on none that was."""
        return all(source.settings == self.sources[0].settings for source in self.sources)


@dataclass(frozen=True)
class Outcome:
    """What came out, beside the files."""

    folder: Path
    rank: int
    served_name: str
    model: SourceRecord | None
    metrics: dict[str, float] = field(default_factory=dict)
    verification: Verification | None = None
    losses: Losses | None = None


def run_merge(run: RunSpec) -> RunResult:
    """Merge and publish what `run` asks for.

    A rerun starts anew, and succeeds at once if this very run published already. Raises TrainerError.
    """
    reporter = ProgressReporter()
    try:
        result = _merge(run, reporter)
        reporter.phase(Phase.SUCCEEDED)
    finally:
        reporter.close()
    return result


def _merge(run: RunSpec, reporter: ProgressReporter) -> RunResult:
    spec = run.adapter_merge
    if spec is None:
        raise TrainerError(FailureReason.INTERNAL_ERROR, "run.json holds no AdapterMerge")
    target = output_target(run)
    return result_of(published_before(target) or _merge_and_publish(run, spec, target, reporter))


def _merge_and_publish(run: RunSpec, spec: AdapterMergeSpec, target: Target, reporter: ProgressReporter) -> Published:
    refuse_own_input(run)
    probe(target)
    reporter.phase(Phase.STARTING)
    session = _gather(run, spec, target, reporter)
    reporter.phase(Phase.MERGING)
    outcome = _into_adapter(session) if spec.into is MergeTarget.ADAPTER else _into_model(session)
    lineage = _lineage(session, outcome)
    card = model_card(run.identity, lineage, run.output_uri, full_model=spec.into is MergeTarget.MODEL)
    (outcome.folder / CARD).write_text(card, "utf-8")
    reporter.phase(Phase.UPLOADING)
    for path in sorted(outcome.folder.iterdir()):
        session.publisher.add(path, path.name)
    return session.publisher.finish(lineage)


def _gather(run: RunSpec, spec: AdapterMergeSpec, target: Target, reporter: ProgressReporter) -> Session:
    """Refuse what cannot be merged, from configs and manifests alone; then fetch the adapters, and claim the place."""
    from tunery_trainer.merging.compatibility import check, check_tensors  # torch comes with them: 1.3 s
    from tunery_trainer.merging.deltas import Options
    from tunery_trainer.merging.inputs import fetch_adapters, read_sources

    sources = read_sources(run, spec)
    check([source.facts for source in sources], spec.method, spec.rank, spec.into)
    adapters = fetch_adapters(run, sources)
    check_tensors(adapters)
    options = Options(Fraction(spec.effective_density()), spec.majority_sign, spec.rank, spec.seed)
    shutil.rmtree(work_folder(run, RESULT))
    yardstick = _yardstick(run, spec, sources)
    publisher = Publisher(target)
    publisher.start()
    return Session(run, spec, sources, adapters, options, publisher, reporter, yardstick)


def _yardstick(run: RunSpec, spec: AdapterMergeSpec, sources: Sequence[Source]) -> Yardstick | None:
    """Read the evaluation's rows before anything is merged: a fault in them costs no more than finding it."""
    if spec.evaluation is None:
        return None
    from tunery_trainer.merging.inputs import base_model, quantization_of
    from tunery_trainer.merging.measure import prepare_yardstick

    alike = all(source.settings == sources[0].settings for source in sources)
    held = quantization_of(sources) if alike else None
    return prepare_yardstick(run, spec.evaluation, base_model(spec, sources), held)


def _measure(session: Session, result: Adapter) -> Losses | None:
    """Measure the result beside its inputs; raises TrainerError(NotImproved)."""
    if session.yardstick is None or session.spec.evaluation is None:
        return None
    from tunery_trainer.merging.measure import check_improvement, measure

    session.reporter.phase(Phase.EVALUATING)
    losses = measure(session.yardstick, session.adapters, result)
    try:
        check_improvement(session.spec.evaluation, losses)
    except TrainerError:
        session.publisher.give_back()
        raise
    session.reporter.phase(Phase.MERGING)
    return losses


def _into_adapter(session: Session) -> Outcome:
    """Combine the adapters, and bring along the tokenizer that all of them were trained with."""
    from tunery_trainer.merging.adapter_files import open_adapter
    from tunery_trainer.merging.combine import combine
    from tunery_trainer.merging.files import LocalFiles
    from tunery_trainer.merging.quantized import torch_type
    from tunery_trainer.merging.verify import verify_adapter

    folder, spec = work_folder(session.run, RESULT), session.spec
    dtype = torch_type(spec.dtype or ComputeType.FLOAT32)
    combined = combine(session.adapters, spec.method, session.options, folder, dtype)
    _copy_common_tokenizer(session, folder)
    check = None
    if spec.verify:
        check = verify_adapter(folder, session.adapters, spec.method, session.options, combined)
    losses = _measure(session, open_adapter(LocalFiles(folder)))
    lineage = session.sources[0].manifest.lineage
    name = str(session.adapters[0].config.get("base_model_name_or_path") or lineage.served_name or "")
    return Outcome(folder, combined.rank, name, lineage.model, _rank_errors(combined), check, losses)


def _into_model(session: Session) -> Outcome:
    """Merge the (combined) adapter into the base; a model that is not small passes through shard by shard."""
    from tunery_trainer.merging.inputs import base_model, open_base, quantization_of
    from tunery_trainer.merging.into_base import IntoBase
    from tunery_trainer.merging.quantized import torch_type

    spec, model = session.spec, base_model(session.spec, session.sources)
    adapter, metrics = _one_adapter(session)
    losses = _measure(session, adapter)
    checkpoint, local = open_base(session.run, model, small=lambda size: spec.verify and _is_small(session.run, size))
    go_offline()
    how = IntoBase(torch_type(spec.dtype) if spec.dtype else None, quantization_of(session.sources))
    check: Verification | None
    if spec.verify and local is not None and _is_small(session.run, checkpoint.weight_bytes):
        check = _merge_and_compare_logits(session, checkpoint, adapter, how, local)
    else:
        check = _merge_through(session, checkpoint, adapter, how)
    source = SourceRecord(uri=model.uri, revision=model.revision)
    folder, name = work_folder(session.run, RESULT), model.effective_served_name()
    return Outcome(folder, adapter.max_rank, name, source, metrics, check, losses)


def _merge_and_compare_logits(
    session: Session, checkpoint: Checkpoint, adapter: Adapter, how: IntoBase, base: Path
) -> Verification:
    """Write the whole model to the disk, load it, and compare what it says with base + adapter."""
    from tunery_trainer.merging.into_base import merge_into_base
    from tunery_trainer.merging.verify import verify_logits

    folder = work_folder(session.run, RESULT)
    merge_into_base(checkpoint, adapter, folder, how)
    return verify_logits(base, adapter, folder, how.quantization)


def _merge_through(session: Session, checkpoint: Checkpoint, adapter: Adapter, how: IntoBase) -> Verification | None:
    """Write a shard, compare it with its tensors computed anew, upload it, remove it, and so on."""
    from tunery_trainer.merging.into_base import merge_into_base
    from tunery_trainer.merging.verify import Verification

    folder = work_folder(session.run, RESULT)

    def publish_and_remove(name: str) -> None:
        session.publisher.add(folder / name, name)
        (folder / name).unlink()

    through = replace(how, verify=session.spec.verify, done=publish_and_remove)
    error = merge_into_base(checkpoint, adapter, folder, through)
    return Verification(error, "written tensors against base + delta computed anew") if through.verify else None


def _one_adapter(session: Session) -> tuple[Adapter, dict[str, float]]:
    """Return the adapter that goes into the base: the only one as it is, else the combination, in float32."""
    import torch

    from tunery_trainer.merging.adapter_files import open_adapter
    from tunery_trainer.merging.combine import combine
    from tunery_trainer.merging.files import LocalFiles

    spec, first = session.spec, session.adapters[0]
    as_it_is = spec.method is MergeMethod.LINEAR and spec.rank is None and first.weight == 1
    if as_it_is and len(session.adapters) == 1:
        return first, {}
    folder = work_folder(session.run, "combined")
    combined = combine(session.adapters, spec.method, session.options, folder, torch.float32)
    _copy_common_tokenizer(session, folder)
    return open_adapter(LocalFiles(folder)), _rank_errors(combined)


def _is_small(run: RunSpec, weight_bytes: int) -> bool:
    """Tell whether the base and the merged model can each be loaded in float32 for a moment."""
    return weight_bytes <= min(SMALL_MODEL, (run.memory_bytes or 0) // LOADS)


def _rank_errors(combined: Combined) -> dict[str, float]:
    return {"rankError": combined.max_error, "meanRankError": combined.mean_error}


def _copy_common_tokenizer(session: Session, folder: Path) -> None:
    """Bring along the tokenizer files that all adapters have alike; one that differs belongs to none of them."""
    from tunery_trainer.merging.base_model import is_tokenizer_file
    from tunery_trainer.merging.into_base import copy_file

    listings = [source.manifest.files for source in session.sources]
    for name, record in listings[0].items():
        if is_tokenizer_file(name) and all(name in files and files[name].sha256 == record.sha256 for files in listings):
            copy_file(session.adapters[0].files, name, folder / name)


def _lineage(session: Session, outcome: Outcome) -> Lineage:
    """Say what went in, digest by digest, and how."""
    spec, check = session.spec, outcome.verification
    settings = {
        "method": spec.method.value,
        "into": spec.into.value,
        "density": None if spec.method is MergeMethod.LINEAR else spec.effective_density(),
        "majoritySign": spec.majority_sign.value if spec.method in ELECTING else None,
        "rank": spec.rank,
        "dtype": spec.dtype.value if spec.dtype else None,
    }
    quantization = session.sources[0].settings if spec.into is MergeTarget.ADAPTER and session.one_quantization else {}
    losses, yardstick = outcome.losses, session.yardstick
    measured = losses.inputs if losses else [None] * len(session.sources)
    triples = zip(session.sources, session.adapters, measured, strict=True)
    metrics = {"evalLoss": losses.result, "baseEvalLoss": losses.base} if losses else {}
    return Lineage(
        model=outcome.model,
        served_name=outcome.served_name,
        loader=session.sources[0].manifest.lineage.loader,
        method=spec.method.value,
        rank=outcome.rank or None,  # IA3 has none
        hyperparameters={name: value for name, value in {**settings, **quantization}.items() if value is not None},
        seed=spec.seed,
        image=session.run.image,
        versions=library_versions(),
        device="cpu",
        metrics=metrics | outcome.metrics,
        inputs=[source.record(adapter.max_rank, loss) for source, adapter, loss in triples],
        dataset=yardstick.source if yardstick else None,
        found=yardstick.found if yardstick else None,
        verification=VerificationStatus(max_error=f"{check.max_error:.3g}", method=check.method) if check else None,
    )
