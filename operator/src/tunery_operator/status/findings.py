"""Write the findings of a run, its checks, and the condition Healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tunery_api.findings import (
    CHECK_NOT_REACHED,
    CHECK_PENDING,
    TRAINING_CHECKS,
    CheckStatus,
    FindingStatus,
    most_severe,
)
from tunery_api.redact import redact
from tunery_api.status import ConditionType
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.events import HEALTHY

_MESSAGE: Final = "message"
_FINE: Final = "the run has no Warning or Problem; status.checks has the checks of the settings"
"""About the run; the quality of its result is known later."""


def record_findings(
    builder: StatusBuilder, findings: Sequence[FindingStatus] | None, checks: Sequence[CheckStatus] | None
) -> None:
    """Write the current findings and the checks; None: the report has none.

    A termination message may omit their messages, which were reported before.
    """
    if not builder.snapshot.definition.has_status_field("findings"):
        return
    if findings is not None:
        values = [finding.to_json_dict() for finding in findings]
        builder.put(findings=_with_sentences(values, builder.fields.get("findings"), ("type", "step")) or None)
        _set_healthy(builder)
    if checks:
        values = [check.to_json_dict() for check in checks]
        builder.put(checks=_with_sentences(values, builder.fields.get("checks"), ("name", "result")))


def explain_rejection(builder: StatusBuilder) -> None:
    """Add to Healthy that the result was rejected, although the run has no problem."""
    if builder.fields.get("rejectedAdapter") and builder.conditions.is_true(ConditionType.HEALTHY):
        text = f"{_FINE}; the result was rejected all the same, as status.failure says"
        builder.conditions.set(ConditionType.HEALTHY, True, HEALTHY, text)


def planned(checks: Sequence[CheckStatus]) -> list[CheckStatus]:
    """Return the checks of preflight with the messages that its termination message omits."""
    waits = {_MESSAGE: CHECK_PENDING}
    return [
        each.model_copy(update=waits) if each.name in TRAINING_CHECKS and not each.message else each for each in checks
    ]


def close_checks(builder: StatusBuilder) -> None:
    """Replace the message of each check that awaits training, as no training follows."""
    checks = builder.fields.get("checks")
    if checks:
        builder.put(
            checks=[{**each, _MESSAGE: CHECK_NOT_REACHED} if _awaits_training(each) else each for each in checks]
        )


def _awaits_training(check: Mapping[str, Any]) -> bool:
    return check.get(_MESSAGE) == CHECK_PENDING


def _with_sentences(
    new: list[dict[str, Any]], old: Sequence[Mapping[str, Any]] | None, key: tuple[str, str]
) -> list[dict[str, Any]]:
    """Return `new`; an entry without a message gets the message of the same entry in `old`."""
    known = {tuple(each.get(name) for name in key): each.get(_MESSAGE) for each in old or ()}
    for each in new:
        sentence = each.get(_MESSAGE) or known.get(tuple(each.get(name) for name in key))
        if sentence:
            each[_MESSAGE] = redact(sentence)
    return new


def _set_healthy(builder: StatusBuilder) -> None:
    """Set Healthy: False with the most severe finding as its reason, if one is a warning or a problem."""
    findings = builder.fields.get("findings") or []
    severity = most_severe([each["severity"] for each in findings])
    found = next((each for each in findings if each["severity"] == severity), None)
    if found is None:
        builder.conditions.set(ConditionType.HEALTHY, True, HEALTHY, _FINE)
        return
    todo = ": ".join(part for part in (found.get("field"), found.get("suggest")) if part)
    text = found.get(_MESSAGE) or todo or found["type"]
    builder.conditions.set(ConditionType.HEALTHY, False, found["type"], text)
