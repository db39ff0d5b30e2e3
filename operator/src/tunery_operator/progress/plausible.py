"""What a pod reports, made fit for a status: whatever the API server would refuse would spoil every later write."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final

from tunery_api.findings import FindingStatus
from tunery_api.runspec import AnswersReport, TrainerStatus
from tunery_api.scrub import scrub

MAX_WHOLE: Final = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly."""
MAX_SECONDS: Final = 10 * 365 * 86_400
_LONGEST_WORDS: Final = 400
"""Bytes of what a pod says it does."""
_LONGEST_DEVICE: Final = 256
"""Bytes of what it names as its device, as the status takes it."""
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def sane(report: TrainerStatus, now: datetime) -> TrainerStatus:
    """Return the report with whole numbers in range, numbers in text left out that are none, and a real time.

    A time that is none, or lies ahead of ours, becomes `now`.
    """
    checkpoint, findings = report.checkpoint, report.findings
    if checkpoint is not None:
        checkpoint = checkpoint.model_copy(update={"step": min(checkpoint.step, MAX_WHOLE)})
    return report.model_copy(
        update={
            "estimated_remaining_seconds": _at_most(report.estimated_remaining_seconds, MAX_SECONDS),
            "step": _at_most(report.step, MAX_WHOLE),
            "total_steps": _at_most(report.total_steps, MAX_WHOLE),
            "epoch": _number(report.epoch),
            "doing": None if report.doing is None else scrub(report.doing, _LONGEST_WORDS),
            "device": None if report.device is None else scrub(report.device, _LONGEST_DEVICE),
            "checkpoint_error": None
            if report.checkpoint_error is None
            else scrub(report.checkpoint_error, _LONGEST_WORDS),
            "curve": None if report.curve is None else scrub(report.curve),
            "tokens_per_second": _number(report.tokens_per_second),
            "metrics": [metric for metric in report.metrics if _number(metric.value) is not None],
            "last_updated_time": _time(report.last_updated_time, now),
            "checkpoint": checkpoint,
            "answers": None if report.answers is None else _counted(report.answers),
            "findings": None if findings is None else [_dated(each) for each in findings],
            "evaluations": [
                each.model_copy(update={"step": min(each.step, MAX_WHOLE)})
                for each in report.evaluations or ()
                if _number(each.loss) is not None
            ]
            or None,
        }
    )


def _counted(answers: AnswersReport) -> AnswersReport:
    """Return the counts of a batch in range: the lines that have their end are not more than there are."""
    lines = min(answers.lines, MAX_WHOLE)
    answered = min(answers.answered, lines)
    by = [each.model_copy(update={"lines": min(each.lines, MAX_WHOLE)}) for each in answers.answered_by]
    return answers.model_copy(
        update={
            "lines": lines,
            "answered": answered,
            "errors": min(answers.errors, lines - answered),
            "prompt_tokens": min(answers.prompt_tokens, MAX_WHOLE),
            "completion_tokens": min(answers.completion_tokens, MAX_WHOLE),
            "answered_by": by,
        }
    )


def _dated(finding: FindingStatus) -> FindingStatus:
    return finding.model_copy(update={"step": min(finding.step, MAX_WHOLE)})


def _at_most(value: int | None, most: int) -> int | None:
    return None if value is None else min(value, most)


def _number(text: str | None) -> str | None:
    """Return a text that is a number of a size that makes sense, else None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return text if math.isfinite(value) and abs(value) <= MAX_WHOLE else None


def _time(text: str | None, now: datetime) -> str:
    if text is not None and _RFC3339.fullmatch(text):
        try:
            if datetime.fromisoformat(text.upper()) <= now:
                return text
        except ValueError:
            pass
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
