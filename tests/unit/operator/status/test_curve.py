"""The loss curve in the status: its points, and its URI, which a failure names that the pod could not explain."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunery_api.failures import Subject
from tunery_api.measured import CurvePoint
from tunery_api.runspec import TrainerStatus
from tunery_api.status import LoRAJobStatus
from tunery_operator.status.compute import compute_status
from tunery_operator.status.retries import reopened
from tunery_operator.status.sweep import after_removal

from kit.operator.objects import RESULT
from kit.operator.standings import DONE, FAILED
from kit.operator.statuskit import NOW, TRAINING, again, ended, pod, running, snapshot, status_for

CURVE = "s3://b/tunery-reports/ns/x-uid-1/curve.jsonl"
NAMED = f"Loss curve: {CURVE}."
POINTS = [CurvePoint(step=0, eval_loss="2.5"), CurvePoint(step=1, loss="2.4")]
SHOWN = [{"step": 0, "evalLoss": "2.5"}, {"step": 1, "loss": "2.4"}]
STORED = TRAINING.model_copy(update={"curve": CURVE, "curve_points": POINTS})
BY_ITSELF = {"reason": "LossDiverged", "message": "m", "facts": {"curve": f"{CURVE}.newest"}}
TRIAL = Subject("LoRAJob", "x", "ns", sweep="s")
OVER_ITS_DISK = pod(phase="Failed", reason="Evicted", message="over its limit")
EVICTED = pod(phase="Failed", reason="Evicted", message="low on memory", disruption="TerminationByKubelet")


def trained(report: TrainerStatus = STORED) -> Any:
    """Return what is known of a run that trains."""
    return snapshot(running(), progress=report)


@pytest.mark.parametrize(
    ("reason", "last"),
    [
        ("OutOfMemory", ended(code=137, why="OOMKilled")),
        ("Killed", ended(code=137)),
        ("NodeLost", ended(code=137, why="ContainerStatusUnknown")),
        ("DiskFull", OVER_ITS_DISK),
        ("NodePressure", EVICTED),
    ],
)
def test_a_run_that_was_killed_names_the_curve_where_one_was_stored(reason: str, last: Any) -> None:
    shown = compute_status(trained())
    assert shown["curve"] == {"uri": CURVE, "points": SHOWN}
    failed = compute_status(again(trained(), last, train=FAILED))
    assert (failed["phase"], failed["failure"]["reason"]) == ("Failed", reason)
    assert NAMED in failed["failure"]["hint"]
    LoRAJobStatus.model_validate(failed)
    never = compute_status(again(trained(TRAINING), last, train=FAILED))["failure"]["hint"]
    assert "curve" not in never
    assert failed["failure"]["hint"].replace(f" {NAMED}", "") == never


def test_it_is_named_to_whoever_meets_the_deadline_and_of_a_trial() -> None:
    late = compute_status(again(trained(), running(), deadline_seconds=60))
    assert late["failure"]["reason"] == "DeadlineExceeded"
    assert NAMED in late["failure"]["hint"]
    seen = again(trained(), ended(code=137, why="OOMKilled"), train=FAILED)
    trial = compute_status(dataclasses.replace(seen, owner=dataclasses.replace(seen.owner, sweep="s")))
    assert NAMED in trial["failure"]["hint"]


def test_one_that_names_it_itself_is_not_told_twice() -> None:
    words = {"failure": BY_ITSELF}
    failure = compute_status(again(trained(), ended(code=64, says=words), train=FAILED))["failure"]
    assert failure["facts"] == BY_ITSELF["facts"]
    assert failure["hint"].count(CURVE) == 1


def test_it_goes_once_it_lies_beside_an_adapter_and_stays_for_a_retry() -> None:
    published = compute_status(again(trained(), ended(says=RESULT), train=DONE))
    assert (published["phase"], published["curve"]) == ("Succeeded", {"points": SHOWN})
    words = {"failure": {"reason": "NotImproved", "message": "m"}, "rejectedAdapter": RESULT["adapter"]}
    rejected = compute_status(again(trained(), ended(code=64, says=words), train=FAILED))
    assert (rejected["curve"], "curve" in rejected["failure"]["hint"]) == ({"points": SHOWN}, False)
    failed = compute_status(again(trained(), ended(code=137, why="OOMKilled"), train=FAILED))
    assert (reopened(failed, "1") or {})["curve"] == {"uri": CURVE, "points": SHOWN}
    silent = compute_status(again(trained(), running("p2"), progress=TRAINING, reporter="p2"))
    assert silent["curve"] == {"uri": CURVE, "points": SHOWN}, "the next attempt has not stored its own yet"


def test_a_trial_whose_sweep_has_removed_it_names_it_no_more() -> None:
    for failed in (
        compute_status(again(trained(), ended(code=137, why="OOMKilled"), train=FAILED)),
        compute_status(again(trained(), ended(code=64, says={"failure": BY_ITSELF}), train=FAILED)),
    ):
        after = after_removal(failed, TRIAL, 1, NOW)
        assert after.pop("curve") == {"points": SHOWN}
        assert "curve" not in str(after).lower()
        assert after["failure"]["hint"].startswith(failed["failure"]["hint"].partition(".")[0])
        assert after_removal(after, TRIAL, 1, NOW) == after


def test_nothing_of_it_is_a_secret_or_too_long() -> None:
    told = TrainerStatus(curve="s3://b/AKIAIOSFODNN7EXAMPLE").curve
    assert told is not None
    assert "AKIAIOSFODNN7EXAMPLE" not in told
    assert status_for(running(), progress=TRAINING).get("curve") is None
