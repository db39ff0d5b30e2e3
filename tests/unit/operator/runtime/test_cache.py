"""What the operator remembers: whatever order it is told in, and nothing of what is gone."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.names import DONE_LABEL, KIND_LABEL, OWNER_LABEL, OWNER_UID_LABEL, ROLE_LABEL
from tunery_api.runspec import TrainerStatus
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.cache import DELETION_SECONDS, Cache
from tunery_operator.runtime.object_state import Report
from tunery_operator.runtime.store import REMEMBERED, Store

from kit.operator.api import Json
from kit.operator.cached import active_keys, delete_job, delete_object, delete_pod, list_pods, put_job, put_pod

ONE = Key(Kind.LORAJOB, "team", "one")
MERGE = Key(Kind.ADAPTERMERGE, "team", "both")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def owner(version: int, phase: str | None = None, name: str = "one", uid: str = "u1", **spec: Any) -> Json:
    meta = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version), "generation": 1}
    status = {"phase": phase, "completionTime": "2026-01-31T12:00:00Z"} if phase in ("Succeeded", "Failed") else {}
    return {"metadata": meta, "spec": spec, "status": status or ({"phase": phase} if phase else {})}


def job(version: int, uid: str = "j1", name: str = "one-train", owner_uid: str = "u1", **status: Any) -> Json:
    reference = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "name": name.rpartition("-")[0]}
    meta = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {ROLE_LABEL: "train"},
        "ownerReferences": [{**reference, "uid": owner_uid, "controller": True}],
    }
    return {"metadata": meta, "spec": {}, "status": status}


def pod(
    version: int,
    uid: str = "p1",
    job_uid: str = "j1",
    phase: str = "Running",
    job_name: str = "one-train",
    owner_uid: str = "u1",
) -> Json:
    labels = {KIND_LABEL: "lorajob", OWNER_LABEL: job_name.rpartition("-")[0], OWNER_UID_LABEL: owner_uid}
    meta = {
        "name": f"{job_name}-{uid}",
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-31T11:00:00Z",
        "labels": labels,
        "ownerReferences": [{"kind": "Job", "name": job_name, "uid": job_uid, "controller": True}],
    }
    ran = {"startedAt": "2026-01-31T11:00:00Z"}
    ended = {"terminated": {**ran, "finishedAt": "2026-01-31T11:10:00Z", "exitCode": 0}}
    state = {"running": ran} if phase == "Running" else ended if phase in ("Succeeded", "Failed") else {}
    return {"metadata": meta, "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]}}


def expired(cache: Cache, now: float) -> list[Key]:
    """Return the keys of the objects whose time to live is over."""
    return [view.key for view in cache.all_objects() if view.expires is not None and view.expires <= now]


@pytest.fixture
def cache() -> Cache:
    return Cache(clock=lambda: NOON)


class TestOwners:
    @pytest.mark.parametrize("late", [9, 10], ids=["older", "the same again"])
    @pytest.mark.parametrize("phase", ["Training", "Succeeded", "Failed"])
    def test_what_is_not_newer_is_refused(self, cache: Cache, phase: str, late: int) -> None:
        """M11: a late event of a finished object made a second train Job."""
        cache.put_object(Kind.LORAJOB, owner(10, phase))
        before = cache.body(ONE)
        assert cache.put_object(Kind.LORAJOB, owner(late, "Pending")) == set()
        assert cache.body(ONE) is before

    def test_a_late_event_does_not_bring_a_deleted_object_back(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(10))
        delete_object(cache, ONE, "u1")
        assert cache.put_object(Kind.LORAJOB, owner(11)) == set()
        assert cache.put_object(Kind.LORAJOB, owner(12, uid="u2")) == {ONE}, "another of that name is another object"

    def test_a_late_deletion_does_not_take_the_next_of_that_name(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(10, uid="u1"))
        cache.put_object(Kind.LORAJOB, owner(12, uid="u2"))
        assert delete_object(cache, ONE, "u1") == set()
        assert cache.body(ONE) is not None

    @pytest.mark.parametrize("phase", ["Failed", "Stopped", "Succeeded"])
    def test_an_object_that_asks_for_another_try_has_not_ended(self, cache: Cache, phase: str) -> None:
        body = owner(10, phase)
        body["metadata"]["annotations"] = {"tunery.dev/retry": "2"}
        body["status"]["observedRetry"] = "1"
        assert cache.put_object(Kind.LORAJOB, body) == {ONE}
        assert cache.body(ONE) is body
        answered = owner(11, phase)
        answered["metadata"]["annotations"] = {"tunery.dev/retry": "2"}
        answered["status"]["observedRetry"] = "2"
        assert cache.put_object(Kind.LORAJOB, answered) == {ONE}, "its Jobs are looked after, whoever ended it"
        assert cache.body(ONE) is None
        assert cache.put_object(Kind.LORAJOB, owner(12, phase)) == set()
        started = Cache(clock=lambda: NOON)
        started.put_object(Kind.LORAJOB, answered)
        assert active_keys(started) == [], "a start looks at none that has its answer"

    def test_who_waits_is_woken_by_a_change_of_phase_only(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERMERGE, owner(1, name="both", uid="m1", adapters=[{"loraJobRef": {"name": "one"}}]))
        assert cache.put_object(Kind.LORAJOB, owner(2, "Training")) == {ONE, MERGE}
        assert cache.put_object(Kind.LORAJOB, owner(3, "Training")) == {ONE}
        assert cache.put_object(Kind.LORAJOB, owner(4, "Succeeded")) == {ONE, MERGE}
        assert delete_object(cache, ONE, "u1") == {MERGE}

    def test_what_is_of_a_sweep(self, cache: Cache) -> None:
        trial = owner(1, name="tuned-000", uid="u2")
        reference = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "name": "tuned", "uid": "s1"}
        trial["metadata"]["ownerReferences"] = [{**reference, "controller": True}]
        cache.put_object(Kind.LORAJOB, trial)
        cache.put_object(Kind.LORAJOB, owner(1))
        assert cache.is_of_sweep(Key(Kind.LORASWEEP, "team", "tuned"))
        assert cache.is_of_sweep(Key(Kind.LORAJOB, "team", "tuned-000"))
        assert not cache.is_of_sweep(ONE)
        assert not cache.is_of_sweep(Key(Kind.ADAPTERMERGE, "team", "tuned-000"))
        cache.put_object(Kind.LORAJOB, owner(2, name="tuned-000", uid="u2"))
        assert not cache.is_of_sweep(Key(Kind.LORAJOB, "team", "tuned-000")), "it is nobody's any more"

    def test_a_list_tells_of_deletions(self, cache: Cache) -> None:
        """M14: five finished LoRAJobs that were deleted in a gap were counted for ever."""
        for index in range(3):
            cache.put_object(Kind.LORAJOB, owner(10 + index, "Succeeded", name=f"n{index}", uid=f"u{index}"))
        cache.put_object(Kind.LORAJOB, owner(30, name="new", uid="new"))
        cache.objects[Kind.LORAJOB].prune(None, {"u1"}, "20")
        assert cache.phases() == {("LoRAJob", "team", "Succeeded"): 1, ("LoRAJob", "team", "Pending"): 1}
        assert active_keys(cache) == [Key(Kind.LORAJOB, "team", "new")], "what is newer than the list stays"

    def test_a_list_of_one_namespace_says_nothing_of_another(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(10))
        cache.objects[Kind.LORAJOB].prune("elsewhere", set(), "20")
        assert active_keys(cache) == [ONE]

    @pytest.mark.parametrize(
        ("default", "spec", "offset", "due"),
        [
            (None, {}, 10**9, False),
            (None, {"ttlSecondsAfterFinished": 60}, 59, False),
            (None, {"ttlSecondsAfterFinished": 60}, 61, True),
            (60, {}, 61, True),
            (60, {"ttlSecondsAfterFinished": 600}, 61, False),
        ],
    )
    def test_times_to_live(self, default: int | None, spec: Json, offset: float, due: bool) -> None:
        """m7: no request is needed to know when a finished object expires."""
        cache = Cache(default)
        ended = cache.put_object(Kind.LORAJOB, owner(10, "Succeeded", **spec))
        assert (ONE in expired(cache, NOON + offset)) == due
        assert ended == ({ONE} if default is not None or spec else set()), "its time to live may be over already"
        assert cache.put_object(Kind.LORAJOB, owner(11, "Succeeded", **spec)) == set()

    def test_the_default_time_to_live_is_not_for_a_trial(self) -> None:
        """It goes with its sweep, unless somebody has given it a time of its own, or has taken it away from there."""
        cache = Cache(60)
        sweep = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "name": "tuned", "uid": "s1"}
        for number, spec in enumerate(({}, {"ttlSecondsAfterFinished": 60}, {"ttlSecondsAfterFinished": 600})):
            body = owner(10, "Succeeded", name=f"tuned-{number:03d}", uid=f"u{number}", **spec)
            body["metadata"]["ownerReferences"] = [{**sweep, "controller": True}]
            cache.put_object(Kind.LORAJOB, body)
        assert expired(cache, NOON + 61) == [Key(Kind.LORAJOB, "team", "tuned-001")]
        zero = Key(Kind.LORAJOB, "team", "tuned-000")
        assert zero in cache.put_object(Kind.LORAJOB, owner(11, "Succeeded", name="tuned-000", uid="u0"))
        assert zero in expired(cache, NOON + 61)


class TestJobs:
    def test_the_state_that_is_newer_counts(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(1))
        assert put_job(cache, job(10, active=1)) == {ONE}
        assert put_job(cache, job(9)) == set()
        assert put_job(cache, job(11, active=1)) == set(), "nothing that a verdict needs has changed"
        found = cache.jobs.get("team", "one-train")
        assert found is not None
        assert (found.version, found.active) == ("11", 1)

    def test_a_forgotten_job_does_not_come_back(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(1))
        put_job(cache, job(10))
        assert delete_job(cache, "one-train", "j1") == {ONE}
        assert put_job(cache, job(11)) == set()
        assert cache.jobs.get("team", "one-train") is None
        assert put_job(cache, job(12, uid="j2")) == {ONE}

    def test_a_done_job_is_forgotten_in_silence(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(1))
        put_job(cache, job(10))
        done = job(11)
        done["metadata"]["labels"][DONE_LABEL] = "true"
        assert put_job(cache, done) == set()
        assert cache.jobs.get("team", "one-train") is None
        assert delete_job(cache, "one-train", "j1") == set(), "the watch tells that it left"

    def test_a_finished_job_of_a_finished_object_is_looked_at(self, cache: Cache) -> None:
        """The operator died between the last status and the mark on the Job."""
        complete = [{"type": "Complete", "status": "True"}]
        assert put_job(cache, job(10, conditions=complete)) == set(), "an object that is not known yet"
        cache.put_object(Kind.LORAJOB, owner(5, "Succeeded"))
        assert put_job(cache, job(11, conditions=complete, active=1)) == {ONE}

    def test_a_list_tells_of_deletions(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(1))
        put_job(cache, job(10))
        assert cache.jobs.prune(None, set(), "9") == set()
        assert cache.jobs.prune(None, set(), "20") == {ONE}
        assert cache.jobs.get("team", "one-train") is None


class TestPods:
    @pytest.fixture(autouse=True)
    def _known(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, owner(1))
        put_job(cache, job(2, active=1))
        put_pod(cache, pod(3))

    def test_a_pod_whose_job_went_before_the_operator_came_wakes_its_owner(self, cache: Cache) -> None:
        def seen(version: int) -> Json:
            body = pod(version, "p2", "j2", job_name="two-train")
            body["metadata"]["labels"] = {OWNER_UID_LABEL: "u2"}
            return body

        put_pod(cache, seen(20))
        cache.put_object(Kind.LORAJOB, owner(10, "Suspending", "two", "u2"))
        assert delete_pod(cache, seen(21)) == {Key(Kind.LORAJOB, "team", "two")}

    def incomplete(self, cache: Cache) -> bool:
        found = cache.jobs.get("team", "one-train")
        assert found is not None
        return cache.needs_pod_list(found)

    def test_a_pod_that_ends_is_read_live_once(self, cache: Cache) -> None:
        assert not self.incomplete(cache)
        assert delete_pod(cache, pod(10)) == {ONE}, "it leaves the watch with the state before"
        assert self.incomplete(cache)
        list_pods(cache, "one-train", 10, pod(10, phase="Succeeded"))
        assert not self.incomplete(cache)
        assert [found.finished for found in cache.pods_of("team", "j1")] == [True]
        assert cache.state(ONE).lost.get("one-train", ()) == ()
        assert put_pod(cache, pod(9)) == set(), "a late event does not let it run again"
        put_job(cache, job(11, succeeded=1))
        assert not self.incomplete(cache), "the Job counts what is known"

    def test_the_job_counts_more_pods_than_are_known(self, cache: Cache) -> None:
        put_job(cache, job(11, failed=1))
        assert self.incomplete(cache)
        list_pods(cache, "one-train", 11)
        assert not self.incomplete(cache), "asked and answered: it is gone"
        put_job(cache, job(12, failed=2))
        assert self.incomplete(cache)

    def test_what_the_watch_tells_while_the_list_is_made_is_newer(self, cache: Cache) -> None:
        delete_pod(cache, pod(10))
        assert self.incomplete(cache)
        put_pod(cache, pod(12, uid="p2"))
        list_pods(cache, "one-train", 11, pod(10, phase="Failed"))
        assert {found.uid for found in cache.pods_of("team", "j1")} == {"p1", "p2"}
        assert not self.incomplete(cache)

    def test_a_pod_that_leaves_while_the_list_is_made_is_asked_for_again(self, cache: Cache) -> None:
        assert not self.incomplete(cache)
        delete_pod(cache, pod(10))
        list_pods(cache, "one-train", 9, pod(9))
        assert self.incomplete(cache)

    def test_a_pod_that_is_gone_is_remembered_until_the_object_ends(self, cache: Cache) -> None:
        delete_pod(cache, pod(10))
        assert self.incomplete(cache)
        list_pods(cache, "one-train", 11)
        [lost] = cache.state(ONE).lost.get("one-train", ())
        assert (lost.uid, lost.seconds) == ("p1", 3600.0)
        delete_job(cache, "one-train", "j1")
        assert len(cache.state(ONE).lost.get("one-train", ())) == 1, (
            "a Job deleted for a suspension takes nothing along"
        )
        cache.put_object(Kind.LORAJOB, owner(20, "Succeeded"))
        assert cache.state(ONE).lost.get("one-train", ()) == ()

    def test_pods_outlive_their_job(self, cache: Cache) -> None:
        delete_job(cache, "one-train", "j1")
        assert [found.uid for found in cache.pods.by_index("job name", ("team", "one-train"))] == ["p1"]
        assert cache.owner_of_pod("team", "one-train-p1", "p1") == (ONE, "u1"), "it stores a checkpoint, and says so"
        assert cache.owner_of_pod("other", "one-train-p1", "p1") is None
        assert delete_pod(cache, pod(10)) == {ONE}, "who waits for it is looked at"
        assert cache.pods.by_index("job name", ("team", "one-train")) == ()
        assert [lost.uid for lost in cache.state(ONE).lost.get("one-train", ())] == ["p1"]

    def test_a_pod_of_an_earlier_object_does_not_report_for_its_successor(self, cache: Cache) -> None:
        earlier = pod(8, "p0", "j0")
        earlier["metadata"]["labels"] = {OWNER_UID_LABEL: "u0"}
        put_pod(cache, earlier)
        assert cache.owner_of_pod("team", "one-train-p0", "p0") is None
        assert cache.owner_of_pod("team", "one-train-p1", "p1") == (ONE, "u1")

    def test_the_pods_of_a_job_that_we_deleted_are_going_for_a_minute(self) -> None:
        now = [NOON]
        cache = Cache(clock=lambda: now[0])
        put_job(cache, job(5))
        put_pod(cache, pod(6))
        found = cache.jobs.get("team", "one-train")
        assert found is not None
        cache.delete_job(found)
        assert cache.is_being_deleted("team", "j1")
        now[0] += DELETION_SECONDS
        assert not cache.is_being_deleted("team", "j1")

    @pytest.mark.parametrize("job_uid", ["j1", "j9"], ids=["of the Job", "of an unknown Job"])
    def test_a_pod_of_another_namespace_is_no_pod_of_the_job(self, cache: Cache, job_uid: str) -> None:
        """It may have any label, and the deletion of a pod of the Job may not be told by it."""
        foreign = pod(20, "p9", job_uid)
        foreign["metadata"]["namespace"] = "elsewhere"
        assert put_pod(cache, foreign) == set()
        assert [found.uid for found in cache.pods_of("team", "j1")] == ["p1"]
        assert cache.owner_of_pod("elsewhere", "one-train-p9", "p9") is None
        found = cache.jobs.get("team", "one-train")
        assert found is not None
        cache.delete_job(found)
        foreign["metadata"]["resourceVersion"] = "21"
        assert delete_pod(cache, foreign) == set()
        assert cache.is_being_deleted("team", "j1")
        assert cache.state(ONE).lost == {}

    def test_a_list_tells_who_left(self, cache: Cache) -> None:
        assert cache.pods.prune(None, {"p1"}, "20") == set()
        assert cache.pods.prune(None, set(), "20") == {ONE}
        assert self.incomplete(cache)

    def test_whose_pod_it_is(self, cache: Cache) -> None:
        assert cache.owner_of_pod("team", "one-train-p1", "p1") == (ONE, "u1")
        assert cache.owner_of_pod("team", "one-train-p1", "p2") is None
        assert cache.owner_of_pod("other", "one-train-p1", "p1") is None
        cache.put_object(Kind.LORAJOB, owner(20, "Succeeded"))
        assert cache.owner_of_pod("team", "one-train-p1", "p1") is None

    @pytest.mark.parametrize(("index", "speaks"), [("0", True), ("1", False), ("12", False)])
    def test_of_pods_that_work_together_the_first_one_speaks(self, cache: Cache, index: str, speaks: bool) -> None:
        numbered = pod(6, "p2")
        numbered["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
        put_pod(cache, numbered)
        assert cache.owner_of_pod("team", "one-train-p2", "p2") == ((ONE, "u1") if speaks else None)


def containers(value: Any, seen: set[int]) -> int:
    """Return the number of entries in everything that an object holds, except for tombstones, which are bounded."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Store):
        return len(value.items()) + sum(map(len, value._indexed.values()))
    if isinstance(value, dict):
        return len(value) + sum(containers(item, seen) for item in value.values())
    if isinstance(value, (set, list)):
        return len(value)
    return sum(containers(item, seen) for item in vars(value).values()) if isinstance(value, Cache) else 0


@pytest.mark.parametrize("seed", range(20))
def test_nothing_leaks(seed: int) -> None:
    """M26: whatever comes and goes in whatever order, nothing is left at the end but tombstones and spent timers."""
    rng, cache, version = random.Random(seed), Cache(60, clock=lambda: NOON), iter(range(1, 10**6))
    names = [f"n{index}" for index in range(4)]

    def some_owner() -> tuple[str, str]:
        return (name := rng.choice(names)), f"u-{name}-{rng.randrange(3)}"

    def see_owner() -> None:
        name, uid = some_owner()
        phase = rng.choice([None, "Training", "Succeeded", "Failed"])
        source = {"loraJobRef": {"name": rng.choice([*names, "never"])}}
        cache.put_object(Kind.LORAJOB, owner(next(version), phase, name, uid, continueFrom=source))

    def forget_owner() -> None:
        name, uid = some_owner()
        delete_object(cache, Key(Kind.LORAJOB, "team", name), rng.choice([uid, None]))

    def remember() -> None:
        name, uid = some_owner()
        key = Key(Kind.LORAJOB, "team", name)
        state = cache.state(key, uid)
        state.stale, state.written_at = True, 1.0
        state.progress = Report(TrainerStatus(), "pod", datetime.now(UTC))

    def some_job() -> tuple[str, str, str]:
        name, uid = some_owner()
        return f"{name}-train", f"j-{name}-{rng.randrange(5)}", uid

    def see_job() -> None:
        name, uid, owner_uid = some_job()
        put_job(cache, job(next(version), uid, name, owner_uid, active=rng.randrange(2), failed=rng.randrange(2)))

    def forget_job() -> None:
        name, uid, _ = some_job()
        delete_job(cache, name, uid)

    def see_or_forget_pod() -> None:
        name, uid, owner_uid = some_job()
        phase = rng.choice(["Pending", "Running"])
        body = pod(next(version), f"p-{uid}-{rng.randrange(9)}", uid, phase, name, owner_uid)
        rng.choice([put_pod, put_pod, delete_pod])(cache, body)

    def read_pods() -> None:
        name, uid, _ = some_job()
        found = cache.jobs.get("team", name)
        if found is not None:
            cache.needs_pod_list(found)
            number = next(version)
            list_pods(cache, name, number, pod(number, f"p-{uid}-9", found.uid, "Succeeded", name))

    steps: list[Callable[[], None]] = [see_owner, forget_owner, remember, see_job, forget_job, read_pods]
    for _ in range(600):
        rng.choice([*steps, see_or_forget_pod, see_or_forget_pod])()
    end = str(next(version))
    cache.pods.prune(None, set(), end)
    cache.jobs.prune(None, set(), end)
    cache.objects[Kind.LORAJOB].prune(None, set(), end)
    assert containers(cache, set()) == len(Kind)


def test_tombstones_are_bounded() -> None:
    cache = Cache(60, clock=lambda: NOON)
    for index in range(2 * REMEMBERED):
        cache.put_object(Kind.LORAJOB, owner(index + 1, "Succeeded", f"n{index}", f"u{index}"))
        delete_object(cache, Key(Kind.LORAJOB, "team", f"n{index}"), f"u{index}")
    assert len(cache.objects[Kind.LORAJOB]._tombstones) <= REMEMBERED


def test_threads_do_not_disturb_each_other() -> None:
    """M12: `Set changed size during iteration` struck in 190 of 400 final writes."""
    cache, errors = Cache(), list[Exception]()

    def work(number: int) -> None:
        try:
            for round_ in range(200):
                uid, name = f"u{number}-{round_}", f"n{number}"
                cache.put_object(Kind.LORAJOB, owner(1000 * round_ + 1, None, name, uid))
                put_job(cache, job(1000 * round_ + 2, f"j{uid}", f"{name}-train", uid))
                cache.state(Key(Kind.LORAJOB, "team", name)).stale = True
                cache.phases()
                active_keys(cache)
                cache.put_object(Kind.LORAJOB, owner(1000 * round_ + 3, "Succeeded", name, uid))
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert cache.phases() == {("LoRAJob", "team", "Succeeded"): 8}
