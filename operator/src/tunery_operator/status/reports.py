"""Parse the reports and termination messages of pods, also those of an older or a newer trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.lenient import parse_lenient
from tunery_api.measured import number_text
from tunery_api.names import METRICS
from tunery_api.reasons import ExitCode
from tunery_api.runspec import DOWNLOADING, PreflightReport, RunResult, TrainerStatus
from tunery_api.status import ConditionType, Phase
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import format_duration
from tunery_operator.status.snapshot import Snapshot

_METRICS: Final = {
    **METRICS,
    "train_loss": "loss",
    "rewards/accuracies": "rewardAccuracy",
    "rewards/margins": "rewardMargin",
    "eval_rewards/accuracies": "evalRewardAccuracy",
    "eval_rewards/margins": "evalRewardMargin",
}
"""The names of metrics in Tunery's trainer, transformers and TRL, and in the status."""
_COUNTERS: Final = {"current_step": "step", "total_steps": "totalSteps"}
_BEFORE_ALL_BEGIN: Final = (None, Phase.STARTING, Phase.DOWNLOADING)
"""The phases that a pod reports until all pods have begun."""
_FINDINGS: Final = ("failure", "dataset", "memory", "resolved")


def progress_fields(report: TrainerStatus) -> dict[str, Any]:
    """Return `status.progress` for a report, also for one of a plain transformers image."""
    named = {metric.name: metric.value for metric in report.metrics}
    fields: dict[str, Any] = {
        "percent": report.progress_percentage,
        "percentText": None if report.progress_percentage is None else f"{report.progress_percentage}%",
        "step": report.step,
        "totalSteps": report.total_steps,
        "epoch": report.epoch or named.get("current_epoch"),
        "etaSeconds": report.estimated_remaining_seconds,
        "eta": _eta(report),
        "tokensPerSecond": report.tokens_per_second,
        "lastUpdateTime": report.last_updated_time,
    }
    if is_downloading(report) and report.percent is not None:
        fields["percentText"] = f"{report.percent}%"
    for theirs, ours in _COUNTERS.items():
        if fields[ours] is None:
            fields[ours] = _whole_number(named.get(theirs))
    return {name: value for name, value in fields.items() if value is not None}


def is_downloading(report: TrainerStatus) -> bool:
    """Return whether the pod downloads the base model, the adapter or data."""
    return report.doing == DOWNLOADING and report.phase in _BEFORE_ALL_BEGIN


def only_starts(report: TrainerStatus) -> bool:
    """Return whether the pod only starts; a plain transformers image reports no phase, but steps."""
    works = report.step is not None or report.progress_percentage is not None or bool(report.metrics)
    return report.phase is Phase.STARTING or (report.phase is None and not works)


def has_begun(snapshot: Snapshot) -> bool:
    """Return whether several pods have begun to train: the first pod reports it."""
    first, report = snapshot.main.last if snapshot.main is not None else None, snapshot.progress
    if first is None or report is None or snapshot.reporter != first.uid:
        return False
    return report.phase not in _BEFORE_ALL_BEGIN


def publishes_alone(snapshot: Snapshot, attempt: Attempt | None) -> bool:
    """Return whether training has ended and the first of several pods publishes, which needs no other pod.

    The pod reports it, or reported it before the operator's restart.
    """
    pod = attempt.last if attempt is not None else None
    if attempt is None or attempt.job.nodes == 1 or attempt.job.suspend:
        return False
    if pod is None or not pod.running or pod.deleting or pod.unanswered:
        return False
    if snapshot.progress is not None and snapshot.reporter == pod.uid:
        return snapshot.progress.phase in (Phase.UPLOADING, Phase.SUCCEEDED)
    uploading = {"type": ConditionType.RUNNING.value, "status": "True", "reason": Phase.UPLOADING.value}.items()
    was_uploading = any(uploading <= item.items() for item in snapshot.status.get("conditions") or ())
    return was_uploading and snapshot.status.get("podName") == pod.name


def first_pod_succeeded(attempt: Attempt | None) -> bool:
    """Return whether the first of several pods has published, however the others have ended."""
    pod = attempt.last if attempt is not None and attempt.job.nodes > 1 else None
    return pod is not None and pod.exit_code == ExitCode.OK


def steps_fields(step: int, total: int) -> dict[str, Any]:
    """Return the fields of `status.progress` for `step` of `total` steps."""
    percent = min(100, step * 100 // total)
    return {"step": step, "percent": percent, "percentText": f"{percent}%"}


def _eta(report: TrainerStatus) -> str | None:
    seconds = report.estimated_remaining_seconds
    return None if seconds is None else format_duration(seconds)


def _whole_number(text: str | None) -> int | None:
    value = number(text)
    return None if value is None or value < 0 else int(value)


def number(text: str | None) -> float | None:
    """Return the number in a text of a pod; None if it is not a finite number."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def metrics_fields(report: TrainerStatus) -> dict[str, str]:
    """Return `status.metrics` for a report: the latest value of each known metric, as a short string."""
    values = {ours: number(m.value) for m in report.metrics if (ours := _METRICS.get(m.name))}
    return {name: number_text(value) for name, value in values.items() if value is not None}


def changed_enough(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two progress fields differ in more than their time."""
    return {**old, "lastUpdateTime": None} != {**new, "lastUpdateTime": None}


def parse_report(message: str) -> PreflightReport | None:
    """Return the report in a preflight container's termination message, or None for any other text."""
    report = parse_lenient(PreflightReport, message)
    if report is None or all(getattr(report, name) is None for name in _FINDINGS):
        return None
    return report


def parse_result(message: str) -> RunResult | None:
    """Return the result in a train or merge container's termination message, or None for any other text."""
    return parse_lenient(RunResult, message)


def reported_failure(message: str) -> Failure | None:
    """Return the failure that a container reports, or None."""
    answer = parse_result(message)
    return answer.failure if answer is not None else None


def interrupted_activity(message: str) -> str:
    """Return what a container did when a signal ended it; empty if it did not report that."""
    answer = parse_result(message)
    return (answer.doing if answer is not None else None) or ""
