"""Each list and watch meets each fault: what happened meanwhile is found, the probes tell the truth, nothing twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import pytest

from kit.operator.adversity import MADE, Adversity, adversity, begin, phases, verdict, wait_end, with_secret
from kit.operator.api import Api, Json, eventually
from kit.operator.faults import (
    ERRORS,
    REQUEST_FAULTS,
    Answer,
    Break,
    Duplicate,
    End,
    ErrorEvent,
    Fault,
    Garbage,
    Hold,
    Swap,
)
from kit.operator.objects import Namespace, lorajob
from kit.operator.players import ends_well
from kit.operator.stage import Stage, make_namespace
from tools.cluster.controlplane import ControlPlane

EVERY = os.environ.get("TUNERY_TEST_EVERY_FAULT") == "1"
WATCHED = ("lorajobs", "adaptermerges", "jobs", "pods")
END_SECONDS = 90.0
"""The operator pauses for at most 15 seconds between the tries of one watch."""
SETTLE_SECONDS = 6.0
TOLD_SECONDS = 30.0
LASTING_SECONDS = 10.0
MAX_TRIES = 25
"""Requests for one resource in LASTING_SECONDS of refusals."""
SILENT_SECONDS = 300.0
"""Time within which a watch that says nothing is given up: the API server sends a bookmark each minute."""
STREAM_FAULTS: list[Fault] = [
    Break(),
    End(),
    Garbage(),
    *(ErrorEvent(error.status) for error in ERRORS),
]
LASTING_STREAM_FAULTS: list[Fault] = [Duplicate(), Swap(same_object=True), Swap(same_object=False), Hold()]


@pytest.fixture(scope="module")
def world(
    stage: Stage, api: Api, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adversity]:
    stage.clear()
    folder = tmp_path_factory.mktemp("watch-faults")

    def end(pod: Json) -> tuple[int, object] | None:
        return None if pod["metadata"]["labels"]["tunery.dev/owner"] == "stays" else ends_well(pod)

    with adversity(api, stage.make, control_plane.authority, stage.kubeconfig, folder, make_namespace, end) as world:
        yield world


def ended_well(world: Adversity, namespace: Namespace, fault: object) -> None:
    """Fail unless the story in a namespace ends as if nothing had happened."""
    try:
        wait_end(namespace, END_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{fault}: {error}: {verdict(namespace)}") from error
    assert phases(namespace) == ("Succeeded", "Succeeded"), (fault, verdict(namespace))
    assert world.jobs.made(namespace.name) == MADE, fault
    world.operator.assert_alive()


def rounds(faults: Sequence[Fault]) -> Iterator[dict[str, Fault]]:
    """Yield a fault for each resource: every fault once, or (EVERY) once for every resource."""
    count, step = len(faults), 1 if EVERY else len(WATCHED)
    for start in range(0, count, step):
        yield {resource: faults[(start + index) % count] for index, resource in enumerate(WATCHED)}


def settle() -> None:
    """Let the watches live until they count as steady: the pauses after a failure begin anew."""
    time.sleep(SETTLE_SECONDS)


@pytest.mark.slow
def test_each_fault_of_a_watch_and_of_a_list_is_survived(world: Adversity) -> None:
    for faults in rounds([with_secret(fault) for fault in REQUEST_FAULTS]):
        settle()
        # The watch meets the fault, then its version is too old, and the list meets the fault, too.
        rules = [world.proxy.add(fault, "watch", resource) for resource, fault in faults.items()]
        rules += [world.proxy.add(Answer(410), "watch", resource) for resource in WATCHED]
        rules += [world.proxy.add(fault, "list", resource) for resource, fault in faults.items()]
        namespace = world.namespace()
        world.proxy.drop(*WATCHED)
        begin(namespace)
        ended_well(world, namespace, faults)
        assert all(rule.struck for rule in rules if rule.verb == "watch" and not isinstance(rule.fault, Answer)), faults
        world.proxy.clear()
    world.assert_sound()


@pytest.mark.slow
def test_each_fault_of_what_a_watch_says_is_survived(world: Adversity) -> None:
    for faults in rounds([with_secret(fault) for fault in STREAM_FAULTS]):
        settle()
        namespace = world.namespace()
        rules = [world.proxy.add(fault, "watch", resource) for resource, fault in faults.items()]
        begin(namespace)
        ended_well(world, namespace, faults)
        assert all(rule.struck for rule in rules), faults
        world.proxy.clear()
    world.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("fault", LASTING_STREAM_FAULTS, ids=repr)
def test_watches_that_stammer_mix_up_or_lag_change_nothing(world: Adversity, fault: Fault) -> None:
    settle()
    namespace = world.namespace()
    for resource in WATCHED:
        world.proxy.add(fault, "watch", resource, times=None)
    begin(namespace)
    time.sleep(3)
    world.proxy.clear()
    ended_well(world, namespace, fault)
    world.assert_sound()


def test_what_is_deleted_in_a_gap_is_gone(world: Adversity) -> None:
    namespace = world.namespace()
    for name in ("one", "two", "stays"):
        namespace.apply(lorajob(name, preflight="Skip"))
    for name in ("one", "two"):
        namespace.wait_phase(name, "Succeeded", timeout=END_SECONDS)
    namespace.wait_running("stays")
    first = namespace.job("stays-train")["metadata"]["uid"]
    sample = f'tunery_objects{{kind="LoRAJob",namespace="{namespace.name}",phase="Succeeded"}}'
    eventually("they are counted", lambda: world.operator.metric(sample) == 2.0)
    with world.proxy.gap(*WATCHED):
        for name in ("one", "two"):
            namespace.delete("lorajobs", name)
        namespace.delete("jobs", "stays-train")
        eventually("the Job is gone", lambda: namespace.get("jobs", "stays-train") is None)
    eventually("nobody counts them", lambda: not world.operator.metric(sample), TOLD_SECONDS)
    eventually(
        "a new Job",
        lambda: (namespace.get("jobs", "stays-train") or {"metadata": {"uid": first}})["metadata"]["uid"] != first,
    )
    # The witness has a watch of its own, which may be later than what was just asked for.
    made = {"one-train": 1, "two-train": 1, "stays-train": 2}
    eventually("nothing else was made", lambda: world.jobs.made(namespace.name) == made)
    world.assert_sound()


@pytest.mark.slow
def test_an_object_that_another_asked_for_first_is_not_overlooked(world: Adversity) -> None:
    namespace = world.namespace()
    hold = world.proxy.add(Hold(), "watch", "lorajobs", times=None)
    begin(namespace)
    eventually("the merge has looked", lambda: phases(namespace)[1] == "Waiting")
    hold.lift()
    ended_well(world, namespace, hold.fault)


@pytest.mark.slow
def test_late_events_of_a_finished_object_start_nothing(world: Adversity) -> None:
    namespace = world.namespace()
    hold = world.proxy.add(Hold(), "watch", "lorajobs", times=None)
    namespace.apply(lorajob("late", preflight="Skip"))
    namespace.apply(lorajob("stays", preflight="Skip"))
    # Its own events are held: only what the operator reads and writes itself tells it anything.
    time.sleep(2)
    hold.lift()
    namespace.wait_phase("late", "Succeeded", timeout=END_SECONDS)
    hold = world.proxy.add(Hold(), "watch", "lorajobs", times=None)
    namespace.patch_spec("stays", suspend=True)
    namespace.annotate("late", touched="1")
    namespace.delete("jobs", "late-train")
    eventually("its Job is cleaned up", lambda: namespace.get("jobs", "late-train") is None)
    time.sleep(2)
    hold.lift()
    namespace.wait_phase("stays", "Suspended")
    time.sleep(3)
    assert world.jobs.made(namespace.name) == {"late-train": 1, "stays-train": 1}
    world.assert_sound()


@pytest.mark.slow
def test_an_object_whose_deletion_is_not_seen_yet_gets_no_second_job(world: Adversity) -> None:
    namespace = world.namespace()
    namespace.apply(lorajob("stays", preflight="Skip"))
    namespace.wait_running("stays")
    hold = world.proxy.add(Hold(), "watch", "lorajobs", times=None)
    namespace.delete("lorajobs", "stays")
    eventually("its Job is cleaned up", lambda: namespace.get("jobs", "stays-train") is None)
    time.sleep(3)
    hold.lift()
    assert world.jobs.made(namespace.name) == {"stays-train": 1}
    world.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 500, 429])
def test_the_probes_tell_a_watch_that_is_refused_and_that_it_is_over(world: Adversity, status: int) -> None:
    since = time.monotonic()
    fault = Answer(status, retry_after=1 if status == 429 else None)
    for verb in ("list", "watch"):
        world.proxy.add(fault, verb, "jobs", times=None)
    world.proxy.drop("jobs")
    namespace = world.namespace()
    namespace.apply(lorajob("a", preflight="Skip"))
    eventually("it is not ready", lambda: world.operator.probe("readyz") == 503, TOLD_SECONDS)
    assert world.operator.probe("healthz") == 200
    time.sleep(max(0.0, LASTING_SECONDS - (time.monotonic() - since)))
    counts = world.proxy.counts(since)
    assert counts["list", "jobs"] + counts["watch", "jobs"] <= MAX_TRIES
    world.proxy.clear()
    eventually("it is ready again", lambda: world.operator.probe("readyz") == 200, TOLD_SECONDS)
    namespace.wait_phase("a", "Succeeded", timeout=END_SECONDS)
    assert world.jobs.made(namespace.name) == {"a-train": 1}
    world.assert_sound()


@pytest.mark.slow
def test_nothing_is_begun_before_everything_was_listed(world: Adversity) -> None:
    namespace = world.namespace()
    world.operator.kill()
    since = time.monotonic()
    rule = world.proxy.add(Answer(500), "list", "jobs", times=None)
    namespace.apply(lorajob("a", preflight="Skip"))
    world.operator.start(wait=False)
    eventually("it has tried", lambda: rule.struck >= 2, END_SECONDS)
    assert world.operator.probe("readyz") == 503
    assert world.operator.probe("healthz") == 200
    assert world.proxy.writes(since=since) == []
    rule.lift()
    eventually("it is ready", world.operator.is_ready, TOLD_SECONDS)
    namespace.wait_phase("a", "Succeeded", timeout=END_SECONDS)
    world.assert_sound()


@pytest.mark.slow
def test_a_watch_that_falls_silent_is_opened_anew(world: Adversity) -> None:
    namespace = world.namespace()
    world.proxy.silence("lorajobs")
    namespace.apply(lorajob("a", preflight="Skip"))
    time.sleep(5)
    assert namespace.status("a") == {}
    namespace.wait_phase("a", "Succeeded", timeout=SILENT_SECONDS)
