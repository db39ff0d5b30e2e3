"""What `make demo-sweep` says while trials run, and what it fails for at its end, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from tools.demo.sweep import QUIET_SECONDS, Told, check_found

GUIDE = {"number": 0, "name": "support-000", "origin": "DomainAdaptation", "state": "Complete", "value": "1.6"}
PROPOSED = {"number": 3, "name": "support-003", "origin": "TPE", "state": "Complete", "value": "1.5"}


def found(value: str, *trials: dict[str, Any]) -> dict[str, Any]:
    return {"best": {"value": value}, "trials": [*trials]}


@pytest.mark.parametrize("measured", [1.4851, 1.5, 1.5149])
def test_what_plain_peft_measures_alike_is_right(measured: float) -> None:
    check_found(found("1.5", GUIDE, PROPOSED), measured)
    check_found(found("1.5", PROPOSED), measured)


@pytest.mark.parametrize(
    ("status", "measured", "told"),
    [
        (
            found("1.5", GUIDE, PROPOSED),
            1.53,
            "plain PEFT measures 1.5300 on the held-out rows, the status says 1.5: 2.0% apart, at most 1% is right",
        ),
        (found("1.5", GUIDE, PROPOSED), 1.47, "2.0% apart"),
        (found("1.7", GUIDE, PROPOSED), 1.7, "the best trial's loss, 1.7, is above that of the guide's best, 1.6"),
    ],
)
def test_what_was_not_found_fails_in_a_sentence(status: dict[str, Any], measured: float, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_found(status, measured)


def test_what_is_under_way_is_told_every_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    jobs: dict[str, dict[str, Any]] = {"support-001": {}, "support-002": {"phase": "Preflight"}}
    tell = Told(jobs.__getitem__, lambda: now[0])
    at_work = [
        {"number": n, "name": f"support-{n:03}", "state": state} for n, state in ((1, "Running"), (2, "Waiting"))
    ]
    ended = {**GUIDE, "parameters": {"lora.rank": "8"}}
    status = {"trials": [ended, *at_work]}
    tell(status)
    for now[0] in (1.0, QUIET_SECONDS - 1.0, QUIET_SECONDS + 0.5, QUIET_SECONDS + 1.5):
        tell(status)
    jobs["support-001"] = {"phase": "Training", "progress": {"step": 12, "totalSteps": 32}}
    now[0] = 2.0 * QUIET_SECONDS + 1.0
    tell(status)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "support-000 (DomainAdaptation): Complete 1.6: rank 8",
        "support-001: Pending",
        "support-002: Preflight",
        "support-001: Training, step 12 of 32",
        "support-002: Preflight",
    ]
