"""Verdicts: what is in the cluster on the left, what status says on the right."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.objects import REPORT, RESULT
from tunery_api.errors import FieldError
from tunery_api.runspec import PreflightReport, RunResult, TrainerStatus
from tunery_api.status import LoRAJobStatus, Phase
from tunery_operator.plan.inputs import FailedInput, UnfinishedInput
from tunery_operator.plan.model import Key, Kind, Owner
from tunery_operator.status.clock import format_duration
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions
from tunery_operator.status.jobview import JobView, parse_job
from tunery_operator.status.patch import merge_patch
from tunery_operator.status.podview import PodView, parse_pod
from tunery_operator.status.snapshot import Attempt, Snapshot

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
OWNER = Owner(Key(Kind.LORAJOB, "ns", "x"), "uid-1", 3, {})


def job(**changes: Any) -> JobView:
    base = parse_job({"metadata": {"name": "x-train", "uid": "j"}, "spec": {"activeDeadlineSeconds": 60}})
    return dataclasses.replace(base, **changes)


def pod(name: str = "p1", **changes: Any) -> PodView:
    base = parse_pod({"metadata": {"name": name, "uid": name, "creationTimestamp": f"2026-01-31T11:0{name[-1]}:00Z"}})
    return dataclasses.replace(base, node="n1", **changes)


def ran(name: str = "p1", code: int | None = None, seconds: int = 60, **changes: Any) -> PodView:
    """Return a pod that runs, or ended with a code."""
    phase = "Running" if code is None else "Failed" if code else "Succeeded"
    ended = None if code is None else NOW + timedelta(seconds=seconds)
    return pod(name, **{"phase": phase, "started_at": NOW, "finished_at": ended, "exit_code": code, **changes})


def says(phase: Phase | None) -> TrainerStatus:
    """Return a report of the running pod."""
    return TrainerStatus(progress_percentage=10, phase=phase)


def snapshot(**changes: Any) -> Snapshot:
    return Snapshot(Kind.LORAJOB, OWNER, changes.pop("status", {}), NOW, **changes)


def failed(reason: str = "BackoffLimitExceeded") -> JobView:
    return job(failed_reason=reason)


RESULT_TEXT = RunResult.model_validate(RESULT).model_dump_json(by_alias=True, exclude_none=True)
REPORT_TEXT = PreflightReport.model_validate(REPORT).model_dump_json(by_alias=True, exclude_none=True)
NAN = '{"failure": {"reason": "LossDiverged", "message": "NaN at step 7"}}'

PHASES: dict[str, tuple[Snapshot, str, str | None]] = {
    "nothing yet": (snapshot(preflight_needed=True), "Preflight", None),
    "invalid": (snapshot(errors=(FieldError("spec.lora.rank", "must be at least 1"),)), "Failed", "InvalidSpec"),
    "conflict": (snapshot(conflict="Job x-train exists"), "Failed", "NameConflict"),
    "waits": (snapshot(inputs=(UnfinishedInput("y", "is Training"),)), "Waiting", None),
    "input failed": (snapshot(inputs=(FailedInput("y", "OutOfMemory"),)), "Failed", "AdapterMissing"),
    "suspended": (snapshot(suspend=True), "Suspended", None),
    "preflight runs": (snapshot(preflight_needed=True, preflight=Attempt(job(), (ran(),))), "Preflight", None),
    "starting": (snapshot(work=Attempt(job())), "Starting", None),
    "unschedulable": (
        snapshot(work=Attempt(job(), (pod(unschedulable="0/1 nodes: Insufficient nvidia.com/gpu"),))),
        "Starting",
        "Unschedulable",
    ),
    "image": (
        snapshot(work=Attempt(job(), (pod(waiting_reason="ImagePullBackOff"),))),
        "Starting",
        "ImagePullFailed",
    ),
    "config": (
        snapshot(work=Attempt(job(), (pod(waiting_reason="CreateContainerConfigError"),))),
        "Starting",
        "ContainerRefused",
    ),
    "queued": (snapshot(queue="team-a", work=Attempt(job(suspend=True))), "Queued", None),
    "has said nothing": (snapshot(work=Attempt(job(), (ran(),))), "Starting", None),
    "loads": (snapshot(work=Attempt(job(), (ran(),)), progress=says(Phase.STARTING)), "Starting", None),
    "training": (snapshot(work=Attempt(job(), (ran(),)), progress=says(Phase.TRAINING)), "Training", None),
    "another image trains": (snapshot(work=Attempt(job(), (ran(),)), progress=says(None)), "Training", None),
    "uploads": (snapshot(work=Attempt(job(), (ran(),)), progress=says(Phase.UPLOADING)), "Uploading", None),
    "says it is done": (snapshot(work=Attempt(job(), (ran(),)), progress=says(Phase.SUCCEEDED)), "Uploading", None),
    "container done": (snapshot(work=Attempt(job(), (ran(code=0, phase="Running"),))), "Uploading", None),
    "between attempts": (snapshot(work=Attempt(job(), (ran(code=75),))), "Starting", None),
    "succeeded": (
        snapshot(work=Attempt(job(complete=True), (ran(code=0, termination_message=RESULT_TEXT),))),
        "Succeeded",
        None,
    ),
    "no result": (snapshot(work=Attempt(job(complete=True), (ran(code=0),))), "Uploading", None),
    "pod gone": (snapshot(work=Attempt(job(complete=True))), "Uploading", None),
    "said why": (snapshot(work=Attempt(failed(), (ran(code=64, termination_message=NAN),))), "Failed", "LossDiverged"),
    "oom": (snapshot(work=Attempt(failed(), (ran(code=137, exit_reason="OOMKilled"),))), "Failed", "OutOfMemory"),
    "killed": (snapshot(work=Attempt(failed(), (ran(code=137),))), "Failed", "OutOfMemory"),
    "node lost": (
        snapshot(work=Attempt(failed(), (ran(code=137, disruption="DeletionByTaintManager"),))),
        "Failed",
        "NodeLost",
    ),
    "bug": (snapshot(work=Attempt(failed(), (ran(code=1),))), "Failed", "InternalError"),
    "bug, again and again": (
        snapshot(work=Attempt(failed(), (ran(code=1), ran("p2", code=1)))),
        "Failed",
        "RetriesExhausted",
    ),
    "too long": (snapshot(work=Attempt(failed("DeadlineExceeded"), (ran(code=143),))), "Failed", "DeadlineExceeded"),
}


@pytest.mark.parametrize(("seen", "phase", "reason"), PHASES.values(), ids=PHASES.keys())
def test_phase_and_reason(seen: Snapshot, phase: str, reason: str | None) -> None:
    status = compute_status(seen)
    assert (status["phase"], status.get("failure", {}).get("reason")) == (phase, reason)
    LoRAJobStatus.model_validate(status)


def test_the_verdict_is_the_same_when_asked_again() -> None:
    for name, (seen, _, _) in PHASES.items():
        first = compute_status(seen)
        later = dataclasses.replace(seen, status=first, now=NOW + timedelta(hours=1))
        assert merge_patch(first, compute_status(later)) == {}, name


def test_preflight_report_is_taken_over() -> None:
    attempt = Attempt(job(complete=True), (ran(code=0, termination_message=REPORT_TEXT),))
    status = compute_status(snapshot(preflight_needed=True, preflight=attempt))
    assert status["dataset"] == REPORT["dataset"]
    assert status["resolved"] == REPORT["resolved"]


def test_a_credential_in_a_message_is_taken_out() -> None:
    text = "cannot open s3 with AKIAIOSFODNN7EXAMPLE"
    status = compute_status(snapshot(work=Attempt(failed(), (ran(code=1, termination_message=text),))))
    assert "AKIAIOSFODNN7EXAMPLE" not in str(status)


def test_events_tell_each_transition_once() -> None:
    before = compute_status(snapshot(work=Attempt(job())))
    seen = snapshot(status=before, work=Attempt(job(complete=True), (ran(code=0, termination_message=RESULT_TEXT),)))
    after = compute_status(seen)
    assert [event.reason for event in transitions(before, after)] == ["Evaluated", "AdapterUploaded", "Succeeded"]
    assert transitions(after, after) == ()


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_merge_patch(old: dict[str, Any], new: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge_patch(old, new) == patch


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (45, "45s"), (200, "3m20s"), (7500, "2h5m"), (90_000, "1d1h")]
)
def test_durations(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text
