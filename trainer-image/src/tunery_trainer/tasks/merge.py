"""The story of a merge, from top to bottom: read configs, refuse, fetch, merge, verify, publish, read back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from tunery_api.adaptermerge import ELECTING, AdapterMergeSpec, MergeMethod, MergeTarget
from tunery_api.fields import decimal_text
from tunery_api.manifest import Lineage
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import Phase, VerificationStatus
from tunery_common.errors import TuneryError
from tunery_common.storage.probe import probe
from tunery_common.storage.publisher import Published, Publisher, Target, published_before
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.device import actual_device, device_words
from tunery_trainer.reporting.model_card import CARD_FILE, model_card
from tunery_trainer.reporting.progress import ProgressReporter, say
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.status_parts import QUANTIZATION_SETTINGS, library_versions
from tunery_trainer.tasks.frame import output_target, refuse_own_input, with_progress

if TYPE_CHECKING:
    from tunery_trainer.merging.run import Merged, MergeInputs

_WITHOUT_SEED: Final = frozenset({MergeMethod.LINEAR, MergeMethod.KNOTS_TIES})
"""The methods that use no random numbers: no drops as DARE, and no randomized decomposition of a dense delta."""


def run_merge(run: RunSpec) -> RunResult:
    """Merge and publish what `run` asks for.

    A rerun starts anew, and succeeds at once if this very run published already. Raises TuneryError.
    """
    return with_progress(partial(_merge, Workspace(run)))


def _merge(work: Workspace, reporter: ProgressReporter) -> RunResult:
    spec = work.run.adapter_merge
    if spec is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no AdapterMerge")
    target = output_target(work)
    return result_of(published_before(target) or _merge_and_publish(work, spec, target, reporter))


def _merge_and_publish(
    work: Workspace, spec: AdapterMergeSpec, target: Target, reporter: ProgressReporter
) -> Published:
    refuse_own_input(work.run)
    probe(target)
    with Publisher(target) as publisher:
        return _publish_merge(work, spec, publisher, reporter)


def _publish_merge(
    work: Workspace, spec: AdapterMergeSpec, publisher: Publisher, reporter: ProgressReporter
) -> Published:
    reporter.phase(Phase.STARTING)
    device = actual_device(work.run, spec.resources.gpus)  # before a download: a GPU that was asked for has to work
    if spec.evaluation is not None:
        say(f"Device     {device_words(device.kind)}, for the evaluation")
        reporter.device(device_words(device.kind))
    from tunery_trainer.merging.run import gather, merge  # torch comes with them: 1.3 s

    job = gather(work, spec, publisher, reporter)
    reporter.phase(Phase.MERGING)
    merged = merge(job)
    lineage = _lineage(job, merged)
    card = model_card(work.run.identity, lineage, work.run.output_uri, full_model=spec.into is MergeTarget.MODEL)
    (merged.folder / CARD_FILE).write_text(card, "utf-8")
    reporter.phase(Phase.UPLOADING)
    for path in sorted(merged.folder.iterdir()):
        publisher.add(path, path.name)
    return publisher.finish(lineage)


def _lineage(job: MergeInputs, merged: Merged) -> Lineage:
    """Say what went in, digest by digest, and how."""
    spec, check = job.spec, merged.verification
    settings: dict[str, JsonValue] = {
        "method": spec.method.value,
        "into": spec.into.value,
        "density": None if spec.method is MergeMethod.LINEAR else spec.effective_density(),
        "majoritySign": spec.majority_sign.value if spec.method in ELECTING else None,
        "rank": spec.rank,
        "dtype": spec.dtype.value if spec.dtype else None,
    }
    held = job.lineage.quantization if spec.into is MergeTarget.ADAPTER and job.one_quantization else None
    said = job.lineage.hyperparameters if held else {}
    settings |= {name: said.get(name) for name in QUANTIZATION_SETTINGS}
    losses, yardstick = merged.losses, job.yardstick
    measured = losses.inputs if losses else [None] * len(job.sources)
    triples = zip(job.sources, job.inputs, measured, strict=True)
    metrics = {"evalLoss": losses.result, "baseEvalLoss": losses.base} if losses else {}
    return Lineage(
        model=merged.model,
        served_name=merged.served_name,
        loader=job.lineage.loader,
        method=spec.method.value,
        rank=merged.rank or None,  # IA3 has none
        hyperparameters={name: value for name, value in settings.items() if value is not None},
        quantization=held,
        seed=None if spec.method in _WITHOUT_SEED else spec.seed,
        image=job.work.run.image,
        versions=library_versions(),
        device="cpu",
        metrics=metrics | merged.metrics,
        inputs=[
            each.record.model_copy(
                update={"rank": each.adapter.max_rank, "weight": decimal_text(source.weight), "eval_loss": loss}
            )
            for source, each, loss in triples
        ],
        dataset=yardstick.source if yardstick else None,
        found=yardstick.found if yardstick else None,
        verification=VerificationStatus(max_error=f"{check.max_error:.3g}", method=check.method) if check else None,
    )
