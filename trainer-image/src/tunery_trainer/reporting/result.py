"""What a container says of a published result, made from its manifest alone: a report Job says it again."""

from __future__ import annotations

from tunery_api.adaptermerge import OPEN_RANK_ERROR
from tunery_api.manifest import Lineage
from tunery_api.measured import (
    MAX_EVALUATIONS,
    DatasetStatus,
    EvaluationStatus,
    MemoryStatus,
    MetricsStatus,
    number_text,
)
from tunery_api.names import DATA_REPORT_TEXT
from tunery_api.runspec import RunResult
from tunery_api.status import AdapterStatus, CheckpointStatus, MergeInputStatus
from tunery_common.storage.publisher import Published


def result_of(published: Published, checkpoint: CheckpointStatus | None = None) -> RunResult:
    """Return the RunResult of a published adapter or merged model; `checkpoint` is the newest one that was kept."""
    lineage = published.manifest.lineage
    metrics, rank_error = lineage.metrics, lineage.metrics.get("rankError")
    merged = bool(lineage.inputs)
    return RunResult(
        adapter=AdapterStatus(
            uri=published.uri,
            manifest_sha256=published.manifest_sha256,
            size_bytes=published.size_bytes,
            served_name=lineage.served_name,
            rank=lineage.rank,
        ),
        steps=lineage.steps,
        metrics=None if merged and "evalLoss" not in metrics else _metrics(metrics),
        evaluations=_evaluations(lineage),
        dataset=_dataset(published),
        memory=MemoryStatus(peak_bytes=lineage.peak_bytes) if lineage.peak_bytes else None,
        resolved=lineage.resolved,
        findings=lineage.findings,
        checks=lineage.checks,
        checkpoint=checkpoint,
        stopped_after_step=lineage.stopped.after_step if lineage.stopped else None,
        inputs=[
            MergeInputStatus(
                uri=item.uri,
                sha256=item.digest,
                origin=item.origin,
                revision=item.revision,
                rank=item.rank,
                weight=item.weight,
                eval_loss=number_text(item.eval_loss) if item.eval_loss is not None else None,
            )
            for item in lineage.inputs
        ]
        or None,
        verification=lineage.verification,
        rank=lineage.rank if merged else None,
        rank_error=f"{rank_error:.3g}" if rank_error is not None else None,
        rank_too_low=_rank_too_low(lineage),
    )


def _evaluations(lineage: Lineage) -> list[EvaluationStatus] | None:
    newest = lineage.evaluations[-MAX_EVALUATIONS:]
    return [EvaluationStatus(step=each.step, loss=number_text(each.loss)) for each in newest] or None


def _dataset(published: Published) -> DatasetStatus | None:
    """Return what was found in the data, with the place of the report that lies beside the result."""
    lineage = published.manifest.lineage
    found = lineage.found or (DatasetStatus(sha256=lineage.dataset.digest) if lineage.dataset else None)
    if found is None or DATA_REPORT_TEXT not in published.manifest.files:
        return found
    return found.model_copy(update={"report": f"{published.uri.rstrip('/')}/{DATA_REPORT_TEXT}"})


def _rank_too_low(lineage: Lineage) -> str | None:
    """Say what an open rank costs, where it could not grow until that was little; an asked one is as asked."""
    error = lineage.metrics.get("rankError", 0.0)
    if "rank" in lineage.hyperparameters or error <= OPEN_RANK_ERROR:
        return None
    return (
        f"rank {lineage.rank}, the largest that is chosen by itself, leaves a relative error of {error:.2g} "
        f"(spec.rank left open aims at {OPEN_RANK_ERROR}); in a new merge set spec.rank above that, or use KnOTSTIES: "
        "its results have a low rank"
    )


def _metrics(metrics: dict[str, float]) -> MetricsStatus:
    text = {name: number_text(value) for name, value in metrics.items()}
    return MetricsStatus(
        loss=text.get("loss"),
        eval_loss=text.get("evalLoss"),
        base_eval_loss=text.get("baseEvalLoss"),
        eval_reward_accuracy=text.get("evalRewardAccuracy"),
        eval_reward_margin=text.get("evalRewardMargin"),
        base_eval_reward_accuracy=text.get("baseEvalRewardAccuracy"),
        exact_match=text.get("exactMatch"),
        base_exact_match=text.get("baseExactMatch"),
        rouge_l=text.get("rougeL"),
        base_rouge_l=text.get("baseRougeL"),
        improvement=text.get("improvement"),
        improvement_error=text.get("improvementError"),
    )
