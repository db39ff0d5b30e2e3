"""What `tunery explain` says, by the state of an object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tunery.commands.explain import Explanation, explain
from tunery.objects import View, view
from tunery_api.kinds import Kind

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
RETRY = 'kubectl annotate lorajob support -n team --overwrite tunery.dev/retry="$(date +%s)"'
SPEC = {
    "model": {"uri": "hf://org/model", "secretRef": {"name": "hub"}},
    "output": {"uri": "s3://adapters/support", "secretRef": {"name": "s3"}},
}


def an_object(status: dict[str, Any], kind: Kind = Kind.LORAJOB, **metadata: Any) -> View:
    """Return the view of an object with a status."""
    meta = {"name": "support", "namespace": "team", "uid": "1", "creationTimestamp": "2026-12-01T11:50:00Z", **metadata}
    return view({"metadata": meta, "spec": SPEC, "status": {"observedGeneration": 1, **status}}, kind)


def explained(status: dict[str, Any], kind: Kind = Kind.LORAJOB, **metadata: Any) -> Explanation:
    """Return the explanation of such an object."""
    return explain(an_object(status, kind, **metadata), NOW)


def test_a_job_that_trains_names_progress_and_what_is_next() -> None:
    said = explained(
        {"phase": "Training", "progress": {"step": 82, "totalSteps": 200, "eta": "3m"}, "metrics": {"loss": "1.2"}}
    )
    assert said.now == ["Its pod trains.", "step 82/200, loss 1.2, ETA 3m."]
    assert said.next == ["It measures the held-out rows and publishes the adapter at s3://adapters/support."]
    assert (said.why, said.fix, said.commands) == ([], [], [])


def test_a_job_that_no_operator_has_seen_names_doctor() -> None:
    said = explained({"observedGeneration": -1})
    assert said.now == ["The operator has not seen it yet; it was created 10m ago."]
    assert said.commands == ["tunery -n team doctor"]
    new = explained({"observedGeneration": -1}, creationTimestamp="2026-12-01T11:59:50Z")
    assert (new.why, new.commands) == ([], [])


def test_a_missing_secret_names_the_command_that_creates_it() -> None:
    failure = {
        "reason": "SecretNotFound",
        "message": "Secret s3 does not exist",
        "hint": "Create it. To retry: kubectl",
    }
    said = explained({"phase": "Failed", "failure": failure})
    assert said.why == ["SecretNotFound: Secret s3 does not exist"]
    assert said.fix == ["Create it. To retry: kubectl"]
    assert said.commands == [
        "kubectl create secret generic hub -n team --from-literal=HF_TOKEN=VALUE",
        "kubectl create secret generic s3 -n team --from-literal=AWS_ACCESS_KEY_ID=VALUE "
        "--from-literal=AWS_SECRET_ACCESS_KEY=VALUE",
        "tunery -n team retry lorajob/support",
    ]


@pytest.mark.parametrize(
    ("reason", "commands"),
    [
        ("DiskFull", ["tunery -n team retry lorajob/support"]),
        ("LossDiverged", ["tunery -n team resubmit lorajob/support --set training.learningRate=VALUE"]),
        (
            "DatasetNotFound",
            [
                "tunery -n team retry lorajob/support",
                "tunery -n team resubmit lorajob/support --set dataset.uri=VALUE",
            ],
        ),
        ("OfALaterVersion", ["tunery -n team retry lorajob/support"]),
    ],
)
def test_the_commands_after_a_failure(reason: str, commands: list[str]) -> None:
    said = explained({"phase": "Failed", "failure": {"reason": reason, "message": "m", "hint": "h"}})
    assert said.commands == commands


def test_a_failed_trial_leads_to_its_sweep() -> None:
    failure = {"reason": "DiskFull", "message": "m", "hint": "h"}
    said = explained({"phase": "Failed", "failure": failure}, labels={"tunery.dev/sweep": "search"})
    assert said.commands == ["tunery -n team explain lorasweep/search"]


def test_a_requested_retry_is_not_a_failure() -> None:
    failure = {"reason": "DiskFull", "message": "m", "hint": "h"}
    said = explained({"phase": "Failed", "failure": failure}, annotations={"tunery.dev/retry": "1"})
    assert said.now == ["A retry was requested; the operator has not started it yet."]
    assert (said.why, said.fix, said.commands) == ([], [], [])


def test_a_full_queue() -> None:
    condition = {"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota", "message": "waiting for q"}
    said = explained({"phase": "Queued", "reason": "WaitingForQuota", "queue": "q", "conditions": [condition]})
    assert said.now == ["Its Job waits for quota; no pod exists."]
    assert said.why == ["WaitingForQuota: waiting for q"]
    assert said.fix == ["It starts once the queue has room: kubectl describe localqueue q -n team"]


def test_inputs_and_events_explain_what_waits_and_not_what_works() -> None:
    waiting, working = an_object({"phase": "Waiting", "reason": "InputMissing"}), an_object({"phase": "Training"})
    states, events = ["lorajob/base does not exist."], ["Event FailedScheduling of p: m"]
    assert explain(waiting, NOW, states, events).why == ["InputMissing", *states, *events]
    assert explain(working, NOW, states, events).why == []


def test_a_success_names_adapter_and_change() -> None:
    said = explained(
        {
            "phase": "Succeeded",
            "adapter": {"uri": "s3://a/x"},
            "metrics": {"evalLoss": "1.4", "baseEvalLoss": "2.5"},
            "findings": [{"type": "StillLearning", "severity": "Info", "step": 9, "message": "it still falls"}],
        }
    )
    assert said.now == [
        "lorajob/support has succeeded",
        "adapter: s3://a/x",
        "held-out loss: 2.5 → 1.4, −44.0 %",
        "info: StillLearning: it still falls.",
    ]


def test_a_sweep_names_its_best_and_its_failed_trials() -> None:
    trials = [
        {"number": 0, "name": "support-000", "state": "Complete"},
        {"number": 1, "name": "support-001", "state": "Infeasible", "reason": "WontFit", "why": "needs 30 GiB"},
    ]
    best = {"name": "support-000", "value": "1.5", "baseValue": "2", "parameters": {"lora.rank": "8"}}
    status = {"phase": "Searching", "countsText": "2/4", "trials": trials, "best": best}
    said = explained(status, Kind.LORASWEEP)
    assert "The best trial so far is support-000 (lora.rank=8): 2 → 1.5, −25.0 %." in said.now
    assert "Trial support-001 is Infeasible: WontFit needs 30 GiB" in said.now
    assert said.commands == ["tunery -n team explain lorajob/support-001"]
    ending = explained({**status, "endReason": "Budget"}, Kind.LORASWEEP)
    assert ending.next == ["It creates no more trials (Budget) and publishes the best adapter."]


def test_a_server_names_replicas_and_adapters_with_problems() -> None:
    adapters = [
        {
            "name": "a",
            "state": "Failed",
            "reason": "RankTooHigh",
            "message": "rank 64",
            "hint": "Raise engine.maxRank.",
        },
        {"name": "b", "state": "Served"},
    ]
    replicas = [{"pod": "p", "ready": False, "reason": "Unschedulable", "message": "0/1 nodes"}]
    said = explained({"phase": "Degraded", "adapters": adapters, "replicaStatuses": replicas}, Kind.ADAPTERSERVER)
    assert said.now == ["It serves, but has a problem."]
    assert said.why == ["Replica p: Unschedulable: 0/1 nodes", "Adapter a is Failed: RankTooHigh: rank 64"]
    assert said.fix == ["Raise engine.maxRank."]
    stopped = explained({"phase": "Stopped"}, Kind.ADAPTERSERVER)
    assert stopped.commands == ["kubectl scale adapterserver support -n team --replicas=1"]
