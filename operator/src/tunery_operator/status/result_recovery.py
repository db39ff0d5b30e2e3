"""Whether the words of a pod that is gone must be had again, and what was said."""

from __future__ import annotations

from tunery_api.runspec import RunResult
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.pod import PodView
from tunery_operator.status.messages import parse_result
from tunery_operator.status.snapshot import Snapshot


def succeeded_pod(attempt: Attempt) -> PodView | None:
    """Return the pod that completed a Job, of pods that work together the first, or None where it is gone."""
    return next((pod for pod in reversed(attempt.pods) if pod.phase == "Succeeded" and not pod.index), None)


def result_of(attempt: Attempt) -> RunResult | None:
    """Return what the pod of a complete Job says, or None where the pod or its words are gone."""
    pod = succeeded_pod(attempt)
    return parse_result(pod.termination_message) if pod is not None else None


def published(snapshot: Snapshot, attempt: Attempt | None) -> RunResult | None:
    """Return the result of a Job that published what its kind publishes, or None."""
    result = result_of(attempt) if attempt is not None else None
    return result if result is not None and getattr(result, snapshot.running.result) is not None else None


def needs_report(snapshot: Snapshot) -> bool:
    """Tell whether a complete Job's result is known from nowhere, so that a report Job must ask the bucket for it.

    True while the report Job runs, too; one that is complete and whose own words are gone is to be made anew.
    """
    main, report = snapshot.main, snapshot.report
    if main is None or not main.job.complete or published(snapshot, main) is not None:
        return False
    return report is None or (report.job.failed_reason is None and result_of(report) is None)
