"""`tunery compare` against an API server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from kit.operator.objects import Namespace, lorajob

Run = Callable[..., Any]


@pytest.fixture
def three(team: Namespace, put_status: Run) -> None:
    """Two jobs that are the same within error, and one of other rows."""
    for number, loss, digest in ((1, 1.52, "ab"), (2, 1.5, "ab"), (3, 1.2, "cd")):
        body = lorajob(f"support-{number}", training={"epochs": number})
        body["metadata"]["labels"] = {"team": "support"}
        team.apply(body)
        metrics = {"evalLoss": str(loss), "baseEvalLoss": "2.0", "improvement": str(1 - loss / 2)}
        put_status(
            f"support-{number}",
            phase="Succeeded",
            metrics=metrics | {"improvementError": "0.01"},
            dataset={"sha256": digest * 32, "rows": 400, "format": "Messages"},
            gpuSeconds=5400 * number,
        )


TABLE = """\
NAME        RESULT                                HELD-OUT LOSS   CHANGE              GPU HOURS
support-2   lowest held-out loss                  1.5 ± 0.02      −25.0 % (± 1.0 %)   3.00
support-1   same within error                     1.52 ± 0.02     −24.0 % (± 1.0 %)   1.50
support-3   not comparable: other held-out rows   1.2 ± 0.02      −40.0 % (± 1.0 %)   4.50

SETTING           support-2      support-1      support-3
dataset.sha256    abababababab   abababababab   cdcdcdcdcdcd
training.epochs   2              1              3
"""


@pytest.mark.usefixtures("three")
def test_jobs_by_name_and_by_label(tunery: Run) -> None:
    assert tunery("compare", "support-1", "lj/support-2", "support-3").out == TABLE
    assert tunery("compare", "-l", "team=support").out == TABLE
    found = json.loads(tunery("-o", "json", "compare", "support-1", "support-2").out)
    assert found["settings"] == {"training.epochs": {"support-2": "2", "support-1": "1"}}
    assert found["jobs"][1] == {
        "name": "support-1", "phase": "Succeeded", "result": "same within error", "evalLoss": 1.52,
        "baseEvalLoss": 2.0, "error": 0.02, "gpuHours": 1.5,
    }  # fmt: skip


@pytest.mark.usefixtures("three")
def test_a_narrow_terminal_has_a_line_for_each_value(tunery: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "36")
    text = re.sub(r"\x1b\[[0-9;]*m", "", tunery("compare", "support-1", "support-2").out)
    assert max(map(len, text.splitlines())) <= 36
    assert "support-1\n  RESULT: same within error\n  HELD-OUT LOSS: 1.52 ± 0.02\n" in text
    assert text.endswith("training.epochs\n  support-2: 2\n  support-1: 1\n")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "name the jobs, or select them by labels"),
        (("support-1", "-l", "a=b"), 2, "name the jobs, or select them by labels"),
        (("support-1", "support-1"), 2, "lorajob/support-1 alone can't be compared"),
        (("support-1", "suport-2"), 1, "did you mean support-2?"),
        (("-l", "a=b"), 1, "has the labels a=b"),
    ],
)
def test_what_cannot_be_compared(tunery: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = tunery("compare", *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
