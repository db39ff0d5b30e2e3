"""What people and tools read first, as tables: Finished, the words of kstatus, the reason, whether a pod reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from tunery_api.kinds import KINDS, Kind
from tunery_api.runspec import TrainerStatus
from tunery_api.serverstatus import ServerCondition
from tunery_api.status import FINAL_PHASES, MAX_CONDITIONS, ConditionType, Phase
from tunery_operator.runtime.cache import Cache
from tunery_operator.status.compute import compute_status
from tunery_operator.status.conditions import final_status, retried_status
from tunery_operator.status.deadline import requeue_after
from tunery_operator.status.events import transitions
from tunery_operator.status.retries import reopened
from tunery_operator.status.snapshot import Snapshot

from kit.operator.cached import active_keys
from kit.operator.objects import RESULT
from kit.operator.standings import (
    CHECKED,
    DIVERGED,
    DONE,
    DOWNLOADS,
    FAILED,
    LONG_AGO,
    STANDINGS,
    Standing,
    as_object,
    of,
)
from kit.operator.statuskit import (
    NOW,
    OWNER,
    TRAINING,
    again,
    at,
    condition,
    deleting,
    ended,
    job,
    message_of,
    running,
    snapshot,
    status_for,
)

REPORTED = "ProgressReported"
SILENT = ("False", "NotReporting")
HEARD = ("True", REPORTED)


@pytest.mark.parametrize("standing", STANDINGS.values(), ids=STANDINGS.keys())
def test_where_it_stands(standing: Standing) -> None:
    status = standing.status
    assert status["phase"] == standing.phase
    KINDS[standing.kind].status.model_validate(status)
    if standing.kind is Kind.ADAPTERSERVER:
        assert status.get("failure", {}).get("reason") == standing.reason
        assert condition(status, "Finished") is None, "a server never ends"
        return
    assert status.get("reason") == standing.reason
    if standing.phase in FINAL_PHASES:
        assert condition(status, "Finished") == ("True", standing.phase)
        assert condition(status, REPORTED) is None
    else:
        assert condition(status, "Finished") == ("False", "InProgress")


def test_a_status_has_room_for_every_condition() -> None:
    assert max(len(ConditionType), len(ServerCondition)) < MAX_CONDITIONS, "and for those of a later version"


def test_one_that_is_tried_again_is_not_finished_in_the_very_write_that_reopens_it() -> None:
    failed = status_for(ended(code=64, says=DIVERGED), train=FAILED)
    status = reopened(failed, "again")
    assert status is not None
    written = retried_status(status, 3, NOW + timedelta(minutes=5))
    assert (written["phase"], condition(written, "Finished")) == ("Pending", ("False", "InProgress"))
    assert condition(written, "Stalled") is None
    assert condition(written, "Reconciling") == ("True", "Pending")
    assert "reason" not in written
    flipped = next(each for each in written["conditions"] if each["type"] == "Finished")
    assert flipped["lastTransitionTime"] > failed["completionTime"]


WITH_CONDITIONS = {name: each for name, each in STANDINGS.items() if each.kind is not Kind.ADAPTERSERVER}


@pytest.mark.parametrize("standing", WITH_CONDITIONS.values(), ids=WITH_CONDITIONS.keys())
def test_a_change_of_the_spec_after_the_end_is_observed_once(standing: Standing) -> None:
    if standing.phase not in FINAL_PHASES:
        return
    generation = standing.status["observedGeneration"]
    assert final_status(standing.status, generation, NOW) == standing.status
    later = NOW + timedelta(days=30)
    changed = final_status(standing.status, generation + 1, later)
    assert {each["observedGeneration"] for each in changed["conditions"]} == {generation + 1}
    assert final_status(changed, generation + 1, later) == changed
    assert transitions(standing.status, changed) == (), "no event reports the end again"
    for each, open_objects in ((standing.status, 0), (changed, 1)):
        cache = Cache()
        body = as_object(standing, generation=generation, resourceVersion="1") | {"status": each}
        cache.put_object(standing.kind, body)
        assert len(active_keys(cache)) == open_objects, "a start looks at what is unsettled, and at nothing else"


def test_every_condition_is_of_the_generation_that_was_looked_at() -> None:
    """Or `kubectl wait` for one that was set long ago, such as Preflight, would wait for ever after a change."""
    checked = snapshot(running(), preflight_needed=True, preflight=CHECKED, progress=TRAINING)
    newer = again(checked, running(), progress=TRAINING, owner=replace(OWNER, generation=9))
    later_version = {**compute_status(checked)["conditions"][0], "type": "Later"}
    before = {**newer.status, "conditions": [*newer.status["conditions"], later_version]}
    status = compute_status(replace(newer, status=before))
    assert {"Preflight", "Validated", "Running", "Finished"} <= {each["type"] for each in status["conditions"]}
    seen = {each["type"]: each["observedGeneration"] for each in status["conditions"]}
    assert seen.pop("Later") == OWNER.generation, "who does not know it does not vouch for it"
    assert set(seen.values()) == {9}


# Whether the pod at work reports


def silent(started: float = -121, **changes: Any) -> Snapshot:
    """Return a LoRAJob whose pod runs for that long and has said nothing, under an operator that has acted for long."""
    return snapshot(running(started=started), **{"taking_reports_since": LONG_AGO, **changes})


def ago(seconds: float) -> Any:
    return NOW - timedelta(seconds=seconds)


def repeating(heard: float | None) -> Snapshot:
    """Return a LoRAJob whose pod reports every 30 seconds; it was heard so long ago, None: by an earlier operator."""
    told = {"podName": "p1", "progress": {"lastUpdateTime": at(-600)}}
    changes = {} if heard is None else {"progress": TRAINING, "reported_at": ago(heard)}
    pod = running(started=-900)
    return snapshot(pod, **{"taking_reports_since": LONG_AGO, "status": told, **changes})


HEARD_OF: dict[str, tuple[Snapshot, tuple[str, str] | None]] = {
    "two minutes are not over": (silent(-119), None),
    "two minutes are over": (silent(), SILENT),
    "it reports": (silent(progress=TRAINING), HEARD),
    "it reports once it is late": (again(silent(), running(started=-130), progress=TRAINING, reporter="p1"), HEARD),
    "the operator has just taken over": (silent(-900, taking_reports_since=ago(70)), None),
    "it has been there for long enough": (silent(-900, taking_reports_since=ago(76)), SILENT),
    "it was silent before the operator took over": (
        again(silent(), running(started=-130), taking_reports_since=ago(1)),
        SILENT,
    ),
    "it repeats what it said": (repeating(119), HEARD),
    "it reports no more": (repeating(121), SILENT),
    "it reports again": (
        again(repeating(121), running(started=-900), progress=TRAINING, reporter="p1", reported_at=NOW),
        HEARD,
    ),
    "it was heard before the operator took over, which waits for it": (
        replace(repeating(None), taking_reports_since=ago(70)),
        HEARD,
    ),
    "it was heard before the operator took over, and not since": (
        replace(repeating(None), taking_reports_since=ago(76)),
        SILENT,
    ),
    "it is the next pod": (again(silent(), running("p2", started=-5)), None),
    "only the one before was heard": (
        again(silent(progress=TRAINING), running(started=-900), running("p2", started=-5)),
        None,
    ),
    "the platform takes no reports": (silent(taking_reports_since=None), None),
    "nobody asked it to": (
        snapshot(running(started=-900, reports_to=None), taking_reports_since=LONG_AGO),
        None,
    ),
    "it is told to end": (again(silent(), running(meta=deleting(60))), SILENT),
    "it is suspended": (again(silent(), suspend=True, main=None), None),
    "it has ended": (again(silent(), ended(says=RESULT), train=DONE), None),
    "it has failed": (again(silent(), ended(code=64, says=DIVERGED), train=FAILED), None),
}


@pytest.mark.parametrize(("seen", "told"), HEARD_OF.values(), ids=HEARD_OF.keys())
def test_whether_the_pod_reports(seen: Snapshot, told: tuple[str, str] | None) -> None:
    assert condition(compute_status(seen), REPORTED) == told


def test_a_pod_that_does_not_report_is_told_in_time_by_a_warning_that_says_what_to_do() -> None:
    young = silent(-1)
    before = compute_status(young)
    assert requeue_after(young, before) == 120
    late = again(young, running(started=-1), seconds=120)
    after = compute_status(late)
    message = message_of(after, REPORTED)
    for part in ("pod p1 ", "Allow TCP 8443 from it to Service tunery.tunery-system", "kubectl logs p1 -n ns "):
        assert part in message
    [event] = transitions(before, after)
    assert (event.reason, event.warning, event.note) == ("NotReporting", True, message)
    heard = compute_status(again(late, running(), progress=TRAINING, reporter="p1", seconds=5))
    assert "NotReporting" not in str(heard)
    assert [event.reason for event in transitions(after, heard)] == ["Training"]


def test_a_stop_is_one_event_and_its_end_another() -> None:
    """That it was asked for, and that the pod was told, are seen one after the other."""
    at_work = snapshot(running())
    asked = again(at_work, running(), suspend=True)
    saves = again(asked, running(meta=deleting(60)), suspend=True, seconds=1)
    over = again(saves, ended(code=143), suspend=True, train=job(suspend=True, suspended_by_us=True), seconds=9)
    stages = [compute_status(each) for each in (at_work, asked, saves, over)]
    told = [[event.reason for event in transitions(*pair)] for pair in pairwise(stages)]
    assert told == [["Stopping"], [], ["Suspended"]]


def test_a_pod_that_reports_no_more_is_told_in_time_with_where_to_look() -> None:
    seen = repeating(0)
    before = compute_status(seen)
    assert requeue_after(seen, before) == 121
    after = compute_status(again(seen, running(started=-900), seconds=120))
    message = message_of(after, REPORTED)
    assert message.startswith("pod p1 has stopped reporting: kubectl logs p1 -n ns says why")
    assert "Allow TCP" not in message, "its reports came through"
    [event] = transitions(before, after)
    assert (event.reason, event.warning, event.note) == ("NotReporting", True, message)
    assert (after["phase"], after["reason"]) == ("Training", "NotReporting")


@pytest.mark.parametrize("seen", [silent(), repeating(181)], ids=["never-heard", "not-any-more"])
def test_a_certificate_that_pods_cannot_trust_is_told_as_the_cause_and_not_the_network(seen: Snapshot) -> None:
    after = compute_status(replace(seen, certificate_fault="certificate has expired"))
    message = message_of(after, REPORTED)
    assert (
        "cannot trust the certificate of the operator's endpoint: certificate has expired. Ask a cluster admin"
        in message
    )
    assert "kubectl logs p1" in message
    assert "Allow TCP" not in message


# Downloading


def test_a_download_shows_its_percent_and_leaves_what_was_trained_as_it_was() -> None:
    def progress(seen: Snapshot) -> tuple[str, Any]:
        status = compute_status(seen)
        return status["phase"], status.get("progress", {}).get("percentText")

    first = snapshot(running(), progress=DOWNLOADS)
    assert progress(first) == ("Downloading", "43%")
    assert condition(compute_status(first), "Running") == ("True", "Downloading")
    unknown = TrainerStatus(phase=Phase.STARTING, doing="downloading")
    assert progress(snapshot(running(), progress=unknown)) == ("Downloading", None)
    loads = again(first, running(), progress=TrainerStatus(phase=Phase.STARTING))
    assert progress(loads) == ("Starting", None)
    assert progress(again(loads, running(), progress=TRAINING)) == ("Training", "10%")
    trained = snapshot(running(), progress=TRAINING)
    second = again(trained, running("p2"), progress=DOWNLOADS, reporter="p2")
    assert progress(second) == ("Downloading", "43%")
    assert progress(again(second, running("p2"), progress=TrainerStatus(phase=Phase.STARTING))) == ("Starting", "10%")
    assert progress(again(second, ended("p2", code=64, says=DIVERGED), train=FAILED)) == ("Failed", "10%")


def test_a_merge_shows_it_at_its_start_and_in_between() -> None:
    def shown(progress: TrainerStatus, status: Any = None) -> Any:
        return of(Kind.ADAPTERMERGE, running(), progress=progress, status=status or {})

    first = shown(DOWNLOADS)
    assert (first["phase"], first["progress"]["percentText"]) == ("Downloading", "43%")
    merges = shown(TrainerStatus(phase=Phase.MERGING), first)
    assert (merges["phase"], merges.get("progress")) == ("Merging", None)
    again = shown(TrainerStatus(phase=Phase.DOWNLOADING, doing="downloading", percent=7), merges)
    assert (again["phase"], again["progress"]["percentText"]) == ("Downloading", "7%")
    ended_well = of(Kind.ADAPTERMERGE, ended(says=RESULT), train=DONE, status=again, progress=None)
    assert (ended_well["phase"], ended_well.get("progress")) == ("Succeeded", None)


@pytest.mark.parametrize("word", [Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.SUSPENDED, Phase.PENDING])
def test_no_pod_ends_its_object_by_a_word(word: Phase) -> None:
    """Nor makes an event of it: Succeeded is told once the object has succeeded."""
    before = status_for(running(), progress=TRAINING)
    status = status_for(running(), progress=TrainerStatus(phase=word), status=before)
    assert status["phase"] == ("Uploading" if word is Phase.SUCCEEDED else "Training")
    assert {"Succeeded", "Failed", "Stopped", "Suspended"}.isdisjoint(e.reason for e in transitions(before, status))
