"""Hints where there is no cluster: none asks for what only a cluster has, whatever the reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tunery_api.reasons import ADVICE, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.process.failures import explain_here

from kit.projects import PROJECTS

IN_THE_TRAINER = [project.source for project in PROJECTS if project.package in ("tunery_common", "tunery_trainer")]
FILES = sorted(path for source in IN_THE_TRAINER for path in source.rglob("*.py") if path.name != "hints_here.py")
CODE = {path: path.read_text() for path in FILES}
RAISED = [reason for reason in FailureReason if any(f"FailureReason.{reason.name}" in code for code in CODE.values())]
"""What the trainer raises itself; the others are the operator's."""
OF_A_CLUSTER = re.compile(
    r"new (job|merge|name)|apply|retry|Secret|namespace|\bnode|\bpod\b|container|kubectl|spec\.scheduling|"
    r"resources\.(memory|ephemeralStorage)|endpoint is",
    re.IGNORECASE,
)


def pieces() -> Iterator[str]:
    """Yield every piece of text of the trainer that may be of a hint and speaks of a job to be made or retried."""
    for code in CODE.values():
        for node in ast.walk(ast.parse(code)):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.search(r"new (job|merge)s?\b|, and retry\b|new name", text):
                yield text


def test_most_reasons_are_raised_here() -> None:
    assert len(RAISED) > 15


@pytest.mark.parametrize("reason", RAISED)
def test_a_usual_hint_asks_for_nothing_that_only_a_cluster_has(reason: FailureReason) -> None:
    failure = explain_here(TuneryError(reason, "it failed"))
    assert failure.hint
    assert not OF_A_CLUSTER.search(failure.hint), failure.hint
    followed = explain_here(TuneryError(reason, "it failed", f"{ADVICE[reason].hint} The data report: file:///x"))
    assert followed.hint == f"{failure.hint} The data report: file:///x"


def test_no_other_hint_asks_for_another_job() -> None:
    told = [explain_here(TuneryError(FailureReason.INVALID_SPEC, "it failed", piece)).hint for piece in set(pieces())]
    assert told
    assert [hint for hint in told if re.search(r"new (job|merge|name)|retry|kubectl", hint)] == []


def test_an_own_hint_stays_what_it_is_but_for_its_words() -> None:
    error = TuneryError(FailureReason.DATASET_INVALID, "too few", "Add rows, and retry; or name others in a new job.")
    assert explain_here(error).hint == "Add rows, and run it again; or name others in the manifest."


def test_what_a_message_quotes_is_left_alone() -> None:
    error = TuneryError(FailureReason.DATASET_INVALID, "line 3: label 'a new job, and retry' is not true or false")
    assert explain_here(error).message == error.message
