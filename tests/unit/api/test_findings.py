"""Every finding says how grave it is, which field it is about, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_api.findings import FINDINGS, FindingType, Severity, most_severe
from tunery_api.reasons import FailureReason


def test_every_finding_has_an_entry() -> None:
    assert list(FINDINGS) == list(FindingType)


@pytest.mark.parametrize("kind", FindingType)
def test_a_finding_says_what_was_seen_and_what_to_do(kind: FindingType) -> None:
    known = FINDINGS[kind]
    assert known.meaning[0].islower()
    assert known.action[0].islower() or known.action[0] == "`"
    assert not known.meaning.endswith(".")


def test_the_fields_that_findings_name_are_those_of_a_lorajob() -> None:
    fields = json.loads((Path(__file__).parent / "fixtures" / "v1alpha1" / "defaults.json").read_text())
    named = {known.field for known in FINDINGS.values() if known.field}
    assert {name for name in named if f"LoRAJob.spec.{name}" not in fields} == set()


def test_no_finding_is_called_as_a_failure_is() -> None:
    """Both are reasons of conditions and of events."""
    assert not {kind.value for kind in FindingType} & {reason.value for reason in FailureReason}


@pytest.mark.parametrize(
    ("told", "grave"),
    [
        ([], None),
        (["Info", "Dreadful"], None),
        (["Info", "Warning"], Severity.WARNING),
        (["Warning", "Problem", "Info"], Severity.PROBLEM),
    ],
)
def test_the_worst_of_severities_is_told_and_unknown_words_are_no_alarm(told: list[str], grave: str | None) -> None:
    assert most_severe(told) == grave
