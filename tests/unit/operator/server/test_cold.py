"""The status of servers with adapters that wait for requests, aliases, and what is on its way, in tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunery_api.serving import LAST_USED_SECONDS
from tunery_operator.planning.resolution import DanglingAlias, PendingAdapter
from tunery_operator.status.server.snapshot import ServerSnapshot

from kit.operator.servers import NOW, digest, heard, reported, server_pod
from kit.operator.serverstatuskit import compute, condition, events_of, resolution, snapshot


def cold(name: str, **changes: Any) -> Any:
    return reported(name, "Cold", manifest_sha256=digest(name), **changes)


BOTH = snapshot(
    server_pod("a"),
    server_pod("b"),
    served=resolution("bot", "rare"),
    reports={"a": heard(reported("bot"), cold("rare")), "b": heard(reported("bot"), reported("rare"))},
)


def test_a_cold_adapter_counts_as_served() -> None:
    status = compute(BOTH).status
    assert (status["phase"], status["adaptersText"]) == ("Ready", "2/2")
    assert status["adapterCounts"] == {"desired": 2, "served": 2, "cold": 1, "failed": 0, "skipped": 0}
    rare, bot = status["adapters"]
    assert (rare["name"], rare["state"], rare["replicas"], rare["manifestSha256"]) == (
        "rare",
        "Cold",
        "2/2",
        digest("rare"),
    )
    assert "notServedOn" not in rare
    assert bot["state"] == "Served"
    assert condition(status, "AdaptersServed")["status"] == "True"
    assert [(each["served"], each["loaded"]) for each in status["replicaStatuses"]] == [(2, 1), (2, 2)]


def test_one_that_is_loaded_for_a_request_is_no_event() -> None:
    before = compute(BOTH).status
    loaded = replace(BOTH, reports={**BOTH.reports, "uid-a": heard(reported("bot"), reported("rare"))})
    after = compute(loaded, before)
    assert after.status["adapterCounts"]["cold"] == 0
    assert events_of(after) == []


def test_nothing_is_cold_where_no_requests_come() -> None:
    pods = (server_pod("a"), server_pod("b", ready=False))
    status = compute(replace(BOTH, pods=pods)).status
    assert [(each["served"], each["loaded"]) for each in status["replicaStatuses"]] == [(2, 1), (0, 0)]
    starting = compute(replace(BOTH, pods=(server_pod("a", ready=False),))).status
    assert {entry["state"] for entry in starting["adapters"]} == {"Loading"}


def test_a_failed_adapter_is_failed_wherever_else_it_is_cold() -> None:
    bad = heard(reported("bot"), reported("rare", "Failed", reason="AdapterCorrupt", message="differs"))
    status = compute(replace(BOTH, reports={**BOTH.reports, "uid-b": bad})).status
    assert (status["adapters"][0]["name"], status["adapters"][0]["state"]) == ("rare", "Failed")
    assert [entry["pod"] for entry in status["adapters"][0]["notServedOn"]] == ["b"]
    assert status["adapterCounts"]["cold"] == 0


# When it was last asked for


def used(*seconds: float | None) -> ServerSnapshot:
    """Return two replicas that were last asked for `bot` at these times."""
    pods = [server_pod(name) for name in "ab"[: len(seconds)]]
    reports = {name: heard(reported("bot", last_used=each)) for name, each in zip("ab", seconds, strict=False)}
    return snapshot(*pods, reports=reports)


EARLY, LATE = 1_767_348_000.0, 1_767_348_000.0 + LAST_USED_SECONDS


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        ([None, None], None),
        ([EARLY, None], "2026-01-02T10:00:00Z"),
        ([EARLY, LATE], "2026-01-02T10:10:00Z"),
        ([LATE, EARLY], "2026-01-02T10:10:00Z"),
    ],
)
def test_the_newest_request_on_any_replica_is_told(seconds: list[float | None], shown: str | None) -> None:
    assert compute(used(*seconds)).status["adapters"][0].get("lastUsedTime") == shown


def test_what_a_replica_that_is_gone_was_asked_for_stays_known() -> None:
    before = compute(used(LATE)).status
    assert compute(used(None), before).status["adapters"][0]["lastUsedTime"] == "2026-01-02T10:10:00Z"
    assert compute(used(EARLY), before).status["adapters"][0]["lastUsedTime"] == "2026-01-02T10:10:00Z"


def test_the_first_request_of_ten_minutes_is_told_by_when_it_was_heard_of_and_the_next_ones_are_not() -> None:
    """A replica tells ten minutes as their beginning, which may lie before the adapter was first served."""
    noon = NOW.timestamp()
    before = compute(used(noon), None, 68).status
    assert before["adapters"][0]["lastUsedTime"] == "2026-01-02T12:01:08Z"
    for seconds in (73, 599, 640, 7200):
        assert compute(used(noon), before, seconds).status["adapters"][0]["lastUsedTime"] == "2026-01-02T12:01:08Z"
    later = compute(used(noon + LAST_USED_SECONDS), before, 604).status
    assert later["adapters"][0]["lastUsedTime"] == "2026-01-02T12:10:04Z"


def test_nothing_was_asked_for_before_the_server_was_made() -> None:
    """What is told to ten minutes begins before a server that was asked within the first of them."""
    found = used(EARLY)
    young = replace(found, owner=replace(found.owner, created="2026-01-02T10:03:07Z"))
    before = compute(young).status
    assert before["adapters"][0]["lastUsedTime"] == "2026-01-02T10:03:07Z"
    assert compute(young, before).status == before
    later = replace(young, reports=used(LATE).reports)
    assert compute(later, before).status["adapters"][0]["lastUsedTime"] == "2026-01-02T10:10:00Z"
    assert "lastUsedTime" not in compute(replace(young, reports=used(None).reports)).status["adapters"][0]


# What is on its way, and what leads nowhere


def test_a_server_whose_named_adapter_is_still_in_training_is_not_ready_and_nothing_is_wrong_with_it() -> None:
    waits = (PendingAdapter("late", "LoRAJob/late", "LoRAJob late is Training"),)
    found = snapshot(server_pod("a"), served=resolution("bot", pending=waits), reports={"a": heard(reported("bot"))})
    status = compute(found).status
    assert (status["phase"], status["adaptersText"]) == ("Updating", "1/2")
    assert "failure" not in status
    for type_ in ("AdaptersServed", "AdaptersResolved"):
        assert condition(status, type_)["reason"] == "WaitingForAdapters"
        assert condition(status, type_)["message"] == "LoRAJob late is Training"
    assert condition(status, "Available")["status"] == "True"


def test_an_alias_that_leads_nowhere_is_told_with_what_to_do() -> None:
    dangling_aliases = (DanglingAlias("bot:prod", "both"), DanglingAlias("bot:dev", "x"))
    found = snapshot(
        server_pod("a"),
        served=resolution("bot", dangling_aliases=dangling_aliases),
        reports={"a": heard(reported("bot"))},
    )
    outcome = compute(found)
    message = "alias bot:prod points to both, which is not an adapter of this server; 1 more target is missing"
    assert outcome.status["phase"] == "Degraded"
    assert outcome.status["failure"]["message"] == message
    assert "aliases" in outcome.status["failure"]["remedies"][0]["fields"]
    assert condition(outcome.status, "AdaptersResolved")["message"] == message
    assert ("AdapterMissing", True) in events_of(outcome)
    assert events_of(compute(found, outcome.status)) == []
