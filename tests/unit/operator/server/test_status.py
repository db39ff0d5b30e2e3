"""The status of a server from its Deployment, its pods and their reports, in tables."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.errors import FieldError
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_api.serving import Desired
from tunery_operator.observed.deployment import ContainerView, ServerPodView
from tunery_operator.planning.resolution import (
    AdapterNote,
    PendingAdapter,
    RejectedAdapter,
    Resolution,
    RetainedAdapter,
    SkippedObject,
)
from tunery_operator.status.server.compute import Outcome

from kit.operator.servers import NOW, deployment, digest, heard, reported, server_pod, wanted
from kit.operator.serverstatuskit import HEALTHY, compute, condition, events_of, resolution, snapshot


def test_a_server_that_serves_all() -> None:
    outcome = compute(HEALTHY)
    status = outcome.status
    assert {name: status[name] for name in ("phase", "readyText", "adaptersText", "replicas", "readyReplicas")} == {
        "phase": "Ready",
        "readyText": "2/2",
        "adaptersText": "1/1",
        "replicas": 2,
        "readyReplicas": 2,
    }
    assert status["url"] == "http://support-server.ns.svc:8000/v1"
    assert status["selector"] == "tunery.dev/kind=adapterserver,tunery.dev/owner=support"
    assert [(item["type"], item["status"], item["reason"]) for item in status["conditions"]] == [
        ("Validated", "True", "SpecValid"),
        ("AdaptersResolved", "True", "AdaptersResolved"),
        ("Available", "True", "Available"),
        ("AdaptersServed", "True", "AdaptersServed"),
        ("Progressing", "False", "RolledOut"),
    ]
    assert status["adapters"] == [
        {
            "name": "bot",
            "source": "LoRAJob/bot",
            "uri": "s3://adapters/bot",
            "manifestSha256": digest("bot"),
            "rank": 16,
            "sizeBytes": 1000,
            "state": "Served",
            "replicas": "2/2",
        }
    ]
    assert status["replicaStatuses"][0] == {
        "pod": "a",
        "ready": True,
        "served": 1,
        "loaded": 1,
        "engineVersion": "0.32.0",
    }
    assert events_of(outcome) == [("AdapterServed", False), ("ServerReady", False)]
    assert "failure" not in status


def test_a_heartbeat_changes_nothing() -> None:
    first = compute(HEALTHY)
    for seconds in (5.0, 20.0):
        later = replace(HEALTHY, reports={uid: replace(item, at=NOW) for uid, item in HEALTHY.reports.items()})
        again = compute(later, first.status, seconds)
        assert (again.status, again.events) == (first.status, ())


# Silence


def test_thirty_seconds_without_a_report_and_nobody_can_say_what_is_served() -> None:
    first = compute(HEALTHY)
    assert first.requeue_after is not None
    assert 29 <= first.requeue_after <= 31
    silent = compute(
        replace(HEALTHY, reports={**HEALTHY.reports, "uid-a": heard(reported("bot"), seconds_ago=31)}), first.status
    )
    status = silent.status
    assert status["adapters"][0]["state"] == "Unknown"
    assert status["adapters"][0]["replicas"] == "1/2"
    assert status["adapters"][0]["notServedOn"][0]["pod"] == "a"
    assert condition(status, "AdaptersServed")["status"] == "Unknown"
    assert status["phase"] == "Degraded"
    assert status["replicaStatuses"][0]["reason"] == "NotReporting"
    assert events_of(silent) == [("NotReporting", True)]
    late = {**HEALTHY.reports, "uid-a": heard(reported("bot"), seconds_ago=31)}
    distrusting = compute(replace(HEALTHY, reports=late, certificate_fault="certificate has expired"), first.status)
    message = condition(distrusting.status, "AdaptersServed")["message"]
    assert "trust the certificate of the operator's endpoint: certificate has expired. Ask a cluster admin" in message


def test_a_pod_that_the_kubelet_calls_not_ready_serves_nothing_whatever_it_last_said() -> None:
    pods = (server_pod("a", ready=False), server_pod("b"))
    status = compute(replace(HEALTHY, pods=pods)).status
    assert (status["readyText"], status["adapters"][0]["replicas"]) == ("1/2", "1/1")
    both = tuple(replace(pod, ready=False) for pod in pods)
    status = compute(replace(HEALTHY, pods=both)).status
    assert (status["adapters"][0]["state"], status["adapters"][0]["replicas"]) == ("Loading", "0/0")
    assert condition(status, "Available")["status"] == "False"


@pytest.mark.parametrize(
    "why",
    [
        {"node": None, "unschedulable": "0/3 nodes are available", "containers": ()},
        {"containers": (ContainerView("model", running=True), ContainerView("gateway"), ContainerView("engine"))},
    ],
    ids=["no node fits", "it brings the base"],
)
def test_before_any_gateway_runs_an_adapter_waits_and_is_not_being_loaded(why: dict[str, Any]) -> None:
    pending = server_pod("a", ready=False, phase="Pending", **why)
    bot = compute(snapshot(pending)).status["adapters"][0]
    assert (bot["state"], bot["message"]) == ("Waiting", "no replica runs yet")
    assert "replicas" not in bot
    running = server_pod("b", ready=False)
    bot = compute(snapshot(pending, running)).status["adapters"][0]
    assert (bot["state"], bot["replicas"]) == ("Loading", "0/0")


def test_a_restarted_operator_keeps_the_status_until_the_replicas_report() -> None:
    names = [f"a{number:04}" for number in range(300)]
    bad = reported("tone", "Failed", reason="AdapterCorrupt", message="a file differs")
    served, said = resolution(*names, "tone"), heard(*map(reported, names), bad)
    before = compute(snapshot(server_pod("a"), served=served, reports={"a": said})).status
    fresh = snapshot(server_pod("a"), served=served, watching_since=NOW)
    retained = compute(fresh, before, 5)
    assert (retained.status, retained.events) == (before, ())
    assert retained.requeue_after is not None
    assert retained.requeue_after > 25
    late = compute(fresh, before, 31).status
    assert {item["state"] for item in late["adapters"]} == {"Unknown"}


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([], id="its pod is gone"),
        pytest.param([server_pod("a", ready=False)], id="its pod is not ready any more"),
        pytest.param([server_pod("a"), server_pod("b")], id="another pod has come"),
    ],
)
def test_a_restarted_operator_shows_a_change_of_the_pods_at_once(pods: list[ServerPodView]) -> None:
    served = resolution("bot")
    before = compute(snapshot(server_pod("a"), served=served, reports={"a": heard(reported("bot"))})).status
    after = compute(snapshot(*pods, served=served, watching_since=NOW), before, 5).status
    assert after["readyReplicas"] == sum(pod.ready for pod in pods)
    assert after != before


# Adapters


def test_problems_come_first_and_a_failed_update_serves_the_old_content() -> None:
    bad = reported(
        "update", manifest_sha256="0" * 64, wanted_sha256=digest("update"), reason="AdapterCorrupt", message="differs"
    )
    reports = heard(
        bad, reported("good"), reported("late", "Loading"), reported("broken", "Failed", reason="ProbeFailed")
    )
    found = compute(
        snapshot(server_pod("a"), served=resolution("good", "late", "broken", "update"), reports={"a": reports})
    )
    status = found.status
    assert [(item["name"], item["state"]) for item in status["adapters"]] == [
        ("broken", "Failed"),
        ("update", "Served"),
        ("late", "Loading"),
        ("good", "Served"),
    ]
    update = status["adapters"][1]
    assert (update["manifestSha256"], update["wantedSha256"]) == ("0" * 64, digest("update"))
    assert update["hint"].startswith("Publish the named adapter again")
    assert status["adapterCounts"] == {"desired": 4, "served": 2, "cold": 0, "failed": 2, "skipped": 0}
    assert (status["adaptersText"], status["phase"]) == ("2/4", "Degraded")
    assert status["failure"]["reason"] == "ProbeFailed"
    assert condition(status, "AdaptersServed")["reason"] == "ProbeFailed"


def test_refused_waiting_kept_and_skipped_are_told() -> None:
    served = resolution(
        "kept",
        pending=(PendingAdapter("later", "LoRAJob/later", "LoRAJob later is Training"),),
        rejected=(
            RejectedAdapter("deep", "LoRAJob/deep", FailureReason.RANK_TOO_HIGH, "its rank is 128", edit("Raise it")),
        ),
        skipped=(SkippedObject("LoRAJob/other", "is for base Qwen"),),
        retained=(RetainedAdapter("kept", "LoRAJob/kept", "LoRAJob kept does not exist any more"),),
    )
    outcome = compute(snapshot(server_pod("a"), served=served, reports={"a": heard(reported("kept"))}))
    status = outcome.status
    by_name = {item["name"]: item for item in status["adapters"]}
    assert (by_name["deep"]["state"], by_name["deep"]["reason"], by_name["deep"]["hint"]) == (
        "Failed",
        "RankTooHigh",
        "Raise it.",
    )
    assert (by_name["later"]["state"], by_name["later"]["message"]) == ("Waiting", "LoRAJob later is Training")
    assert (by_name["kept"]["state"], by_name["kept"]["message"]) == ("Served", "LoRAJob kept does not exist any more")
    assert status["skipped"] == [{"source": "LoRAJob/other", "reason": "is for base Qwen"}]
    assert condition(status, "AdaptersResolved")["reason"] == "RankTooHigh"
    assert ("AdapterFailed", True) in events_of(outcome)


def test_a_note_stands_beside_an_adapter_that_is_served_and_is_no_problem() -> None:
    served = resolution("bot", notes=(AdapterNote("bot", "close, not the same"),))
    status = compute(snapshot(server_pod("a"), served=served, reports={"a": heard(reported("bot"))})).status
    assert (status["adapters"][0]["message"], status["phase"]) == ("close, not the same", "Ready")


def test_a_refused_version_beside_the_old_one_is_told_with_it() -> None:
    rejected = RejectedAdapter(
        "bot", "LoRAJob/bot", FailureReason.RANK_TOO_HIGH, "its rank is 128", edit("Raise it"), "s3://n", "e" * 64
    )
    found = snapshot(
        server_pod("a"), served=resolution("bot", rejected=(rejected,)), reports={"a": heard(reported("bot"))}
    )
    (entry,) = compute(found).status["adapters"]
    assert (entry["state"], entry["reason"], entry["hint"]) == ("Served", "RankTooHigh", "Raise it.")
    assert (entry["manifestSha256"], entry["wantedSha256"]) == (digest("bot"), "e" * 64)


def test_an_adapter_on_its_way_does_not_make_a_server_degraded_but_storage_that_is_down_is_told() -> None:
    found = snapshot(server_pod("a"), reports={"a": heard(reported("bot", "Loading"))})
    status = compute(found).status
    assert (status["phase"], condition(status, "AdaptersServed")["reason"]) == ("Updating", "Loading")
    down = reported("bot", "Loading", reason="StorageUnavailable", message="no answer")
    status = compute(replace(found, reports={"uid-a": heard(down)})).status
    assert (status["phase"], status["failure"]["reason"]) == ("Degraded", "StorageUnavailable")
    assert status["adapterCounts"]["failed"] == 0


def test_of_two_versions_on_two_replicas_the_old_one_is_named_until_it_is_gone() -> None:
    reports = {"a": heard(reported("bot", manifest_sha256="0" * 64)), "b": heard(reported("bot"))}
    (entry,) = compute(snapshot(server_pod("a"), server_pod("b"), reports=reports)).status["adapters"]
    assert (entry["manifestSha256"], entry["wantedSha256"]) == ("0" * 64, digest("bot"))


# Events


def test_many_adapters_make_one_event() -> None:
    names = [f"a{number:02}" for number in range(9)]
    empty = compute(snapshot(server_pod("a"), served=resolution(), reports={"a": heard()})).status
    found = snapshot(server_pod("a"), served=resolution(*names), reports={"a": heard(*map(reported, names))})
    added = compute(found, empty)
    (event,) = added.events
    assert event.reason == "AdapterServed"
    assert event.note.endswith("and 4 more")
    removed = compute(
        snapshot(server_pod("a"), served=resolution("a00"), reports={"a": heard(reported("a00"))}), added.status
    )
    assert [(item.reason, item.note) for item in removed.events] == [
        ("AdapterRemoved", "no longer served: a01, a02, a03, a04, a05 and 3 more")
    ]
    broken = [reported(name, "Failed", reason="AdapterCorrupt", message="differs") for name in names]
    failed = compute(replace(found, reports={"uid-a": heard(*broken)}), added.status)
    assert events_of(failed) == [("AdapterFailed", True)]


@pytest.mark.parametrize("ready", [True, False])
def test_what_an_earlier_operator_told_of_an_adapter_is_not_told_again(ready: bool) -> None:
    said = heard(reported("bad", "Failed", reason="AdapterCorrupt", message="differs"), reported("bot"))
    found = snapshot(server_pod("a", ready=ready), served=resolution("bad", "bot"), reports={"a": said})
    first = compute(found)
    assert ("AdapterFailed", True) in events_of(first)
    restarted = replace(found, watching_since=NOW + timedelta(seconds=60))
    silent = compute(replace(restarted, reports={}), first.status, 61)
    later = replace(said, at=NOW + timedelta(seconds=65))
    assert (
        events_of(silent) == events_of(compute(replace(restarted, reports={"uid-a": later}), silent.status, 65)) == []
    )
    (entry,) = (item for item in silent.status["adapters"] if item["name"] == "bad")
    assert (entry["state"], entry["message"]) == ("Failed", "differs")


def test_new_content_under_the_same_name_is_an_event() -> None:
    first = compute(HEALTHY).status
    other = reported("bot", manifest_sha256="0" * 64)
    found = replace(HEALTHY, reports={"uid-a": heard(other), "uid-b": heard(other)})
    outcome = compute(found, first, 10)
    assert [event.note for event in outcome.events] == [f"served by every ready replica: bot@{'0' * 12}"]
    assert outcome.status["lastChangeTime"] != first["lastChangeTime"]


def test_an_adapter_that_is_mended_is_an_event_and_so_is_another_cause_of_the_same_reason() -> None:
    def seen(before: Outcome, **fields: Any) -> Outcome:
        each = reported("bot", **fields)
        return compute(replace(HEALTHY, reports={"uid-a": heard(each), "uid-b": heard(each)}), before.status, 10)

    broken = {"reason": "AdapterCorrupt", "wanted_sha256": "0" * 64}
    outcome, story = compute(HEALTHY), []
    for fields in ({**broken, "message": "x differs"}, {**broken, "message": "y differs"}, {}, {}, broken):
        outcome = seen(outcome, **fields)
        story += [(event.reason, event.note, event.warning) for event in outcome.events]
    assert story == [
        ("AdapterFailed", "AdapterCorrupt: bot: x differs", True),
        ("AdapterFailed", "AdapterCorrupt: bot: y differs", True),
        ("AdapterServed", f"served by every ready replica: bot@{digest('bot')[:12]}", False),
        ("AdapterFailed", "AdapterCorrupt: bot: AdapterCorrupt", True),
    ]
    away = {"reason": "StorageUnavailable", "wanted_sha256": "0" * 64}
    first = seen(outcome, **away, message="no answer in 5 s")
    assert events_of(seen(first, **away, message="no answer in 9 s")) == [], (
        "what may pass by itself has other words each time"
    )


# The spec


def test_a_spec_that_is_not_valid_leaves_what_is_served_and_says_so() -> None:
    errors = (FieldError("spec.engine.maxRank", "must be one of 8, 16"),)
    before = compute(HEALTHY).status
    outcome = compute(replace(HEALTHY, spec=None, errors=errors, resolution=None), before)
    status = outcome.status
    assert (status["phase"], status["failure"]["reason"]) == ("Invalid", "InvalidSpec")
    assert status["failure"]["message"] == "spec.engine.maxRank: must be one of 8, 16"
    assert condition(status, "Validated")["status"] == "False"
    assert [(item["name"], item["state"]) for item in status["adapters"]] == [("bot", "Served")]
    assert condition(status, "Available")["status"] == "True"
    resolved = condition(status, "AdaptersResolved")
    assert (resolved["status"], resolved["reason"]) == ("Unknown", "InvalidSpec"), (
        "what that spec asks for is not known"
    )
    assert ("InvalidSpec", True) in events_of(outcome)


def test_no_replicas_is_stopped() -> None:
    first = compute(HEALTHY).status
    outcome = compute(replace(HEALTHY, replicas=0, pods=(), reports={}, deployment=deployment(0)), first)
    status = outcome.status
    assert (status["phase"], status["readyText"]) == ("Stopped", "0/0")
    served = condition(status, "AdaptersServed")
    assert (served["status"], served["reason"]) == ("Unknown", "Stopped")
    assert status["adapters"][0]["state"] == "Waiting"
    assert ("Stopped", False) in events_of(outcome)
    assert (outcome.requeue_after, "failure" in status) == (None, False)


def test_without_adapters_the_base_is_served() -> None:
    status = compute(snapshot(server_pod("a"), served=resolution(), reports={"a": heard()})).status
    assert (status["phase"], status["adaptersText"]) == ("Ready", "0/0")
    assert condition(status, "AdaptersServed")["reason"] == "NoAdapters"


# Size


def test_the_longest_names_fit() -> None:
    source = f"AdapterMerge/{'n' * 253}"
    served = Resolution(
        Desired(adapters=[wanted("a" * 128, source=source)]), skipped=(SkippedObject(source, "is for base other"),)
    )
    broken = reported("a" * 128, "Failed", reason="R" * 128, message="m" * 1024, hint="h" * 1024)
    pod = server_pod("p" * 253)
    found = snapshot(pod, served=served, reports={pod.name: heard(broken)})
    outcome = compute(found)
    assert outcome.status["adapters"][0]["source"] == outcome.status["skipped"][0]["source"] == source
    assert all(len(event.note.encode()) <= 1024 for event in outcome.events)


@pytest.mark.parametrize("state", ["Served", "Failed"])
def test_a_status_of_four_thousand_adapters_fits(state: str) -> None:
    names = [f"{number:04}-{'n' * 120}" for number in range(4000)]
    served = Resolution(Desired(revision=1, adapters=[wanted(name, uri=f"s3://b/{'u' * 1000}") for name in names]))
    why = {} if state == "Served" else {"reason": "AdapterCorrupt", "message": "m" * 1000, "hint": "h" * 1000}
    reports = {name: heard(*(reported(adapter, state, **why) for adapter in names)) for name in ("a", "b")}
    found = snapshot(server_pod("a"), server_pod("b"), served=served, reports=reports)
    status = compute(found).status
    assert len(json.dumps(status).encode()) <= 256 * 1024
    assert status["adapterCounts"]["desired"] == 4000
    assert status["adapterCounts"]["failed"] == (4000 if state == "Failed" else 0)
    assert 64 < len(status["adapters"]) <= 256
