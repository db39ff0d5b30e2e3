"""Metrics by tenant: each thing that a status tells is counted once, whatever is written how often."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tunery_operator.metrics import Facts, State, StateCollector, changes, expose, observe

NOW = datetime(2026, 1, 31, 13, tzinfo=UTC)
FACTS = Facts("LoRAJob", "team", "2026-01-31T12:00:00Z", NOW, "nvidia.com/gpu", "LoRA")
Json = dict[str, Any]


def condition(kind: str, status: str, time: str = "12:00:00") -> Json:
    return {"type": kind, "status": status, "reason": kind, "lastTransitionTime": f"2026-01-31T{time}Z"}


def attempt(uid: str, reason: str = "", end: bool = True) -> Json:
    return {"uid": uid, "reason": reason, **({"endTime": "2026-01-31T12:30:00Z"} if end else {})}


def observed(old: Json, new: Json) -> list[tuple[str, tuple[str, ...], float]]:
    """Return what a change tells, with the names of the metrics."""
    return [(seen.metric._name, seen.labels, seen.value) for seen in changes(old, new, FACTS)]


def test_the_same_status_tells_nothing() -> None:
    status = {
        "phase": "Succeeded",
        "gpuSeconds": 7,
        "attemptHistory": [attempt("a", "Succeeded")],
        "progress": {"step": 3},
        "conditions": [condition("QuotaReserved", "True")],
        "queue": "q",
    }
    assert observed(status, status) == []
    assert observed({}, {}) == []


def test_an_attempt_counts_when_it_has_ended() -> None:
    running = {"attemptHistory": [attempt("a", end=False)]}
    assert observed({}, running) == []
    ended = {"attemptHistory": [attempt("a", "OutOfMemory"), attempt("b", end=False)]}
    assert observed(running, ended) == [("tunery_attempts", ("LoRAJob", "team", "OutOfMemory"), 1)]
    both = {"attemptHistory": [attempt("a", "OutOfMemory"), attempt("b", "words of a pod")]}
    assert observed(ended, both) == [("tunery_attempts", ("LoRAJob", "team", "Other"), 1)]


def test_a_stop_is_an_outcome_of_its_own_and_no_failure() -> None:
    finished = [("tunery_jobs_finished", ("LoRAJob", "team", "Stopped", "Stopped"), 1)]
    assert (
        observed({"phase": "Stopping"}, {"phase": "Stopped", "conditions": [condition("Preflight", "False")]})
        == finished
    )
    assert observed({"phase": "Stopped"}, {"phase": "Stopped"}) == []


def test_gpu_seconds_are_added_as_the_ledger_grows() -> None:
    labels = ("team", "nvidia.com/gpu", "batch")
    assert observed({"gpuSeconds": 100}, {"gpuSeconds": 340, "queue": "batch"}) == [("tunery_gpu_seconds", labels, 240)]
    assert observed({"gpuSeconds": 340}, {"gpuSeconds": 340}) == []


def test_the_wait_for_a_queue_begins_when_the_job_could_have_run() -> None:
    waiting = {"queue": "q", "conditions": [condition("QuotaReserved", "False", "12:10:00")]}
    admitted = {"queue": "q", "conditions": [condition("QuotaReserved", "True", "12:15:00")]}
    assert observed(waiting, admitted) == [("tunery_queue_wait_seconds", ("team", "q"), 300)]
    assert observed({}, admitted) == [("tunery_queue_wait_seconds", ("team", "q"), 900)]
    resumed = {"queue": "q", "conditions": [*admitted["conditions"], condition("Suspended", "False", "12:14:00")]}
    assert observed({}, resumed) == [("tunery_queue_wait_seconds", ("team", "q"), 60)]
    assert observed({}, {"conditions": admitted["conditions"]}) == [], "without a queue nobody waited for one"


def test_the_first_step_counts_from_when_training_might_start() -> None:
    started = {"conditions": [condition("Preflight", "True", "12:50:00")]}
    stepped = {**started, "progress": {"step": 1}}
    assert observed(started, stepped) == [("tunery_time_to_first_step_seconds", ("team",), 600)]
    assert observed(stepped, {**started, "progress": {"step": 2}}) == []


@pytest.mark.parametrize("method", ["QLoRA", "words of a pod"])
def test_an_end_counts_once_with_its_duration(method: str) -> None:
    end = {"phase": "Succeeded", "runSeconds": 1800, "resolved": {"method": method}}
    assert observed({"phase": "Uploading"}, end) == [
        ("tunery_jobs_finished", ("LoRAJob", "team", "Succeeded", "Succeeded"), 1),
        ("tunery_run_duration_seconds", ("LoRAJob", "QLoRA" if method == "QLoRA" else "Other"), 1800),
    ]


def test_a_failure_in_preflight_counts_as_one() -> None:
    failed = {
        "phase": "Failed",
        "failure": {"reason": "DatasetInvalid"},
        "conditions": [condition("Preflight", "False")],
    }
    assert observed({}, failed) == [
        ("tunery_jobs_finished", ("LoRAJob", "team", "Failed", "DatasetInvalid"), 1),
        ("tunery_preflight_failures", ("team", "DatasetInvalid"), 1),
    ]


def test_an_object_that_is_tried_again_may_end_again() -> None:
    failed = {"phase": "Failed", "failure": {"reason": "NodeLost"}}
    assert observed(failed, {"phase": "Pending"}) == []
    assert len(observed({"phase": "Pending"}, failed)) == 1


def test_a_tenant_cannot_make_endless_series() -> None:
    for index in range(300):
        facts = Facts("LoRAJob", "greedy", FACTS.created, NOW, "nvidia.com/gpu")
        observe({}, {"gpuSeconds": 1, "queue": f"q-{index}"}, facts)
    family = next(found for found in REGISTRY.collect() if found.name == "tunery_gpu_seconds")
    series = {
        s.labels["queue"]: s.value for s in family.samples if s.labels["namespace"] == "greedy" and "total" in s.name
    }
    assert len(series) == 101
    assert series["Other"] == 200


def test_what_is_exposed_is_what_prometheus_expects() -> None:
    state = State(
        objects=lambda: {("LoRAJob", "team", "Training"): 2},
        watch_ages=lambda: {"pods": 1.5},
        queue_depth=lambda: {"high": 0},
        queue_oldest=lambda: 0.0,
    )
    collector = StateCollector(state)
    REGISTRY.register(collector)
    try:
        body, content_type = expose("text/plain")
        assert content_type.startswith("text/plain; version=")
        assert b'tunery_objects{kind="LoRAJob",namespace="team",phase="Training"} 2.0' in body
        assert b'tunery_work_queue_depth{priority="high"} 0.0' in body
        assert b'tunery_info{version="' in body
        assert b"tunery_reconcile_duration_seconds" in body
        _, open_metrics = expose("application/openmetrics-text; version=1.0.0")
        assert open_metrics.startswith("application/openmetrics-text")
    finally:
        REGISTRY.unregister(collector)
