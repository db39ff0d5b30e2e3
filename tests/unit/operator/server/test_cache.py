"""What the operator remembers of servers: offers that outlive their objects, whose a pod is, and what it said."""

from __future__ import annotations

import random
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.names import DONE_LABEL, KIND_LABEL, OWNER_UID_LABEL
from tunery_api.serverstatus import AdapterState
from tunery_api.serving import SILENT_SECONDS, Desired, ReplicaState, ReportedAdapter
from tunery_operator.observed.deployment import ReplicaSet, parse_deployment
from tunery_operator.observed.metadata import Key
from tunery_operator.progress.replicas import Replicas
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.workqueue import DONE, WorkQueue

from kit.operator.api import Json
from kit.operator.cached import active_keys, delete_object, delete_pod, put_pod
from kit.operator.server_bodies import deployment, pod, server

SERVER = Key(Kind.ADAPTERSERVER, "team", "support")
JOB = Key(Kind.LORAJOB, "team", "bot")
MERGE = Key(Kind.ADAPTERMERGE, "team", "both")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
OFFER_BYTES = 1100
"""What an object that has ended may cost, on average, with its name, its digest and its place in three tables."""


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Cache:
    return Cache(clock=clock)


def job(version: int, phase: str | None = None, name: str = "bot", uid: str = "", **labels: str) -> Json:
    meta = {"name": name, "namespace": "team", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    adapter = {"uri": f"s3://adapters/{name}", "manifestSha256": "ab" * 32, "servedName": "tiny", "rank": 16}
    status: Json = {"phase": phase} if phase else {}
    if phase == "Succeeded":
        status |= {"adapter": adapter, "completionTime": "2026-01-31T12:00:00Z"}
    return {"metadata": {**meta, "labels": labels}, "status": status}


def store(cache: Cache, key: Key, uid: str, pod_uid: str, said: ReplicaState) -> bool:
    """Store a report as the endpoint does; return whether it has news."""
    return Replicas(cache, WorkQueue(lambda _: DONE, 1)).store(key, uid, pod_uid, said)


def state(**fields: Any) -> ReplicaState:
    return ReplicaState(engine_ready=True, **fields)


class TestServers:
    @pytest.mark.parametrize("phase", ["Stopped", "Invalid", "Failed", "Succeeded", "Ready"])
    def test_a_server_never_ends(self, cache: Cache, phase: str) -> None:
        body = server(1, phase=phase)
        assert cache.put_object(Kind.ADAPTERSERVER, body) == {SERVER}
        assert cache.body(SERVER) is body
        assert active_keys(cache) == [SERVER]
        assert cache.phases() == {("AdapterServer", "team", phase): 1}
        assert [view.expires for view in cache.all_objects()] == [None]

    def test_a_stopped_job_has_ended(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, job(1, "Stopped"))
        assert cache.body(JOB) is None


class TestPublishedResults:
    def test_what_has_ended_is_offered_to_who_selects_it(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, job(1, "Succeeded", team="support"))
        cache.put_object(Kind.LORAJOB, job(2, "Succeeded", "other"))
        cache.put_object(Kind.ADAPTERSERVER, server(3, adapterSelector={"matchLabels": {"team": "support"}}))
        [published] = cache.published_results(SERVER).values()
        assert (published.source, published.manifest_sha256, published.rank) == ("LoRAJob/bot", "ab" * 32, 16)
        assert cache.body(JOB) is None, "and nothing else is kept of it"

    def test_a_server_is_woken_by_what_it_selects_and_by_nothing_else(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERSERVER, server(1, adapterSelector={"matchLabels": {"team": "support"}}))
        assert cache.put_object(Kind.LORAJOB, job(2, "Training")) == {JOB}
        assert cache.put_object(Kind.LORAJOB, job(3, "Training", team="support")) == {JOB, SERVER}, "a label"
        assert cache.put_object(Kind.LORAJOB, job(4, "Training", team="support")) == {JOB}, "nothing of it"
        assert cache.put_object(Kind.LORAJOB, job(5, "Succeeded", team="support")) == {JOB, SERVER}, "its phase"
        other = job(6, "Succeeded", team="support")
        other["status"]["adapter"]["manifestSha256"] = "cd" * 32
        assert cache.put_object(Kind.LORAJOB, other) == {SERVER}, "its digest"
        assert cache.put_object(Kind.LORAJOB, job(7, "Succeeded")) == {SERVER}, "the label is gone"
        assert cache.published_results(SERVER) == {}
        assert cache.put_object(Kind.LORAJOB, job(8, "Succeeded")) == set()
        assert cache.put_object(Kind.LORAJOB, job(9, "Succeeded", team="support")) == {SERVER}
        assert delete_object(cache, JOB, "uid-bot") == {SERVER}, "it is deleted"
        assert cache.published_results(SERVER) == {}

    def test_a_server_waits_for_what_it_names(self, cache: Cache) -> None:
        named = [{"name": "a", "loraJobRef": {"name": "bot"}}, {"name": "b", "adapterMergeRef": {"name": "both"}}]
        cache.put_object(Kind.ADAPTERSERVER, server(1, adapters=named))
        assert cache.put_object(Kind.LORAJOB, job(2)) == {JOB, SERVER}
        assert cache.put_object(Kind.ADAPTERMERGE, job(3, name="both")) == {MERGE, SERVER}
        assert cache.put_object(Kind.LORAJOB, job(4, name="both", uid="x")) == {Key(Kind.LORAJOB, "team", "both")}
        assert set(cache.published_results(SERVER)) == {(Kind.LORAJOB, "bot"), (Kind.ADAPTERMERGE, "both")}

    def test_another_spec_asks_for_something_else(self, cache: Cache) -> None:
        cache.put_object(Kind.LORAJOB, job(1, "Succeeded", team="support"))
        cache.put_object(Kind.LORAJOB, job(2, "Succeeded", "other", team="sales"))
        for version, team, name in ((3, "support", "bot"), (4, "sales", "other")):
            cache.put_object(Kind.ADAPTERSERVER, server(version, adapterSelector={"matchLabels": {"team": team}}))
            assert set(cache.published_results(SERVER)) == {(Kind.LORAJOB, name)}
        cache.put_object(Kind.ADAPTERSERVER, server(5, adapterSelector={"matchLabels": "nonsense"}))
        assert cache.published_results(SERVER) == {}, "a spec that the schema let through before"

    def test_an_object_of_the_same_name_is_another_offer(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERSERVER, server(1, adapters=[{"name": "a", "loraJobRef": {"name": "bot"}}]))
        cache.put_object(Kind.LORAJOB, job(2, "Succeeded"))
        assert SERVER in cache.put_object(Kind.LORAJOB, job(3, uid="u2"))
        assert cache.published_results(SERVER)[Kind.LORAJOB, "bot"].uri is None
        assert SERVER in cache.objects[Kind.LORAJOB].prune(None, set(), "9")
        assert cache.published_results(SERVER) == {}

    def test_another_namespace_offers_nothing(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERSERVER, server(1, adapterSelector={"matchLabels": {"team": "support"}}))
        foreign = job(2, "Succeeded", team="support")
        foreign["metadata"]["namespace"] = "elsewhere"
        assert SERVER not in cache.put_object(Kind.LORAJOB, foreign)
        assert cache.published_results(SERVER) == {}

    @pytest.mark.slow
    def test_ten_thousand_that_have_ended_cost_little(self, cache: Cache) -> None:
        def seen(index: int) -> Json:
            body = job(index + 1, "Succeeded", f"job-{index:05}", team=f"team-{index % 50}", app="x")
            body["metadata"]["uid"] = f"{index:08}-0000-4000-8000-000000000000"
            body["status"]["adapter"]["manifestSha256"] = f"{index:064x}"
            return body

        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for index in range(10_000):
                cache.put_object(Kind.LORAJOB, seen(index))
            cost = (tracemalloc.get_traced_memory()[0] - before) / 10_000
        finally:
            tracemalloc.stop()
        assert cost < OFFER_BYTES, f"{cost:.0f} bytes each"

    @pytest.mark.parametrize("seed", range(3))
    def test_whatever_comes_in_whatever_order_what_is_found_is_what_there_is(self, seed: int) -> None:
        rng, cache = random.Random(seed), Cache()
        jobs: dict[str, Json] = {}
        selectors = [{"matchLabels": {"team": "a"}}, {"matchLabels": {"team": "b"}}, None]
        selector: Any = None
        for version in range(1, 400):
            name = f"n{rng.randrange(8)}"
            match rng.randrange(4):
                case 0:
                    if jobs.pop(name, None) is not None:
                        delete_object(cache, Key(Kind.LORAJOB, "team", name), None)
                case 1:
                    selector = rng.choice(selectors)
                    spec = {} if selector is None else {"adapterSelector": selector}
                    cache.put_object(Kind.ADAPTERSERVER, server(version, **spec))
                case _:
                    phase = rng.choice(["Training", "Succeeded"])
                    body = job(version, phase, name, uid=f"u{version}", team=rng.choice("ab"))
                    jobs[name] = body
                    cache.put_object(Kind.LORAJOB, body)
            wanted = selector["matchLabels"]["team"] if selector else None
            found = {name for _, name in cache.published_results(SERVER)}
            assert found == {name for name, body in jobs.items() if body["metadata"]["labels"]["team"] == wanted}


class TestWhoseAPodIs:
    @pytest.fixture(autouse=True)
    def _server(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERSERVER, server(1))
        cache.deployments.put(parse_deployment(deployment(2)))
        assert put_pod(cache, pod(3)) == {SERVER}

    def test_nobody_knows_until_its_replica_set_was_read(self, cache: Cache) -> None:
        assert cache.owner_of_pod("team", "pod-p1", "p1") is None
        assert cache.is_unproven("team", "pod-p1", "p1")
        cache.deployment_of[ReplicaSet("team", "name-r1", "r1")] = "d1"
        assert not cache.is_unproven("team", "pod-p1", "p1")
        assert cache.owner_of_pod("team", "pod-p1", "p1") == (SERVER, "s1")
        assert [each.uid for each in _pods(cache)] == ["p1"]

    def test_labels_alone_prove_nothing(self, cache: Cache) -> None:
        put_pod(cache, pod(4, "p2", replica_set="foreign"))
        cache.deployment_of[ReplicaSet("team", "name-r1", "r1")] = "d1"
        cache.deployment_of[ReplicaSet("team", "name-foreign", "foreign")] = ""
        assert cache.owner_of_pod("team", "pod-p2", "p2") is None
        assert not cache.is_unproven("team", "pod-p2", "p2")
        assert [each.uid for each in _pods(cache)] == ["p1"]

    def test_a_wrong_name_does_not_speak_for_the_right_one(self, cache: Cache) -> None:
        forged = pod(4, "p2")
        forged["metadata"]["ownerReferences"][0]["name"] = "other"
        put_pod(cache, forged)
        cache.deployment_of[ReplicaSet("team", "other", "r1")] = ""
        cache.deployment_of[ReplicaSet("team", "name-r1", "r1")] = "d1"
        assert cache.owner_of_pod("team", "pod-p1", "p1") == (SERVER, "s1")
        assert cache.owner_of_pod("team", "pod-p2", "p2") is None

    def test_another_namespaces_pod_wakes_nobody(self, cache: Cache) -> None:
        forged = pod(4, "p2")
        forged["metadata"]["namespace"] = "elsewhere"
        assert put_pod(cache, forged) == set()
        assert {each.namespace for each in cache.server_pods.by_index("owner", ("team", "s1"))} == {"team"}

    def test_a_deployment_that_is_gone_proves_nothing(self, cache: Cache) -> None:
        cache.deployment_of[ReplicaSet("team", "name-r1", "r1")] = "d1"
        assert cache.deployments.delete(parse_deployment(deployment(5))) == {SERVER}
        assert cache.owner_of_pod("team", "pod-p1", "p1") is None
        assert cache.deployments.put(parse_deployment(deployment(6))) == set(), "a late event does not bring it back"
        assert cache.deployments.put(parse_deployment(deployment(7, uid="d2"))) == {SERVER}
        assert cache.owner_of_pod("team", "pod-p1", "p1") is None, "it was the other Deployment's"

    def test_only_news_wake_the_server(self, cache: Cache) -> None:
        assert put_pod(cache, pod(3)) == set(), "the same again"
        assert put_pod(cache, pod(4)) == set(), "nothing but its version"
        assert put_pod(cache, pod(5, ready=True)) == {SERVER}
        assert cache.deployments.put(parse_deployment(deployment(6))) == set()
        assert cache.deployments.put(parse_deployment(deployment(7, readyReplicas=1))) == {SERVER}
        assert delete_pod(cache, pod(8)) == {SERVER}
        assert put_pod(cache, pod(9)) == set(), "it is gone"

    def test_a_list_tells_who_left(self, cache: Cache) -> None:
        assert cache.server_pods.prune(None, set(), "10") == {SERVER}
        assert len(cache.server_pods.items()) == 0
        assert cache.deployments.prune(None, {"d1"}, "10") == set()
        assert cache.deployments.prune("elsewhere", set(), "10") == set()
        assert cache.deployments.prune(None, set(), "10") == {SERVER}
        assert cache.deployments.get("team", "support-server") is None

    def test_the_pods_of_jobs_are_no_replicas(self, cache: Cache) -> None:
        other = pod(4, "p2")
        other["metadata"]["labels"] = {KIND_LABEL: "lorajob", OWNER_UID_LABEL: "s1", DONE_LABEL: "false"}
        put_pod(cache, other)
        assert len(cache.server_pods.items()) == 1


class TestReports:
    @pytest.fixture(autouse=True)
    def _server(self, cache: Cache) -> None:
        cache.put_object(Kind.ADAPTERSERVER, server(1))
        put_pod(cache, pod(2))

    def test_only_what_is_new_is_news(self, cache: Cache, clock: Clock) -> None:
        adapter = ReportedAdapter(name="bot", state=AdapterState.LOADING)
        assert store(cache, SERVER, "s1", "p1", state(adapters=[adapter]))
        clock.now += 5
        assert not store(cache, SERVER, "s1", "p1", state(adapters=[adapter.model_copy()]))
        assert cache.state(SERVER).reports["p1"].at.timestamp() == clock.now, "when it came is noted all the same"
        loaded = adapter.model_copy(update={"state": AdapterState.SERVED})
        assert store(cache, SERVER, "s1", "p1", state(adapters=[loaded]))
        clock.now += SILENT_SECONDS
        assert store(cache, SERVER, "s1", "p1", state(adapters=[loaded])), "it had been silent"

    def test_replicas_that_say_the_same_of_an_adapter_share_it(self, cache: Cache) -> None:
        for uid in ("p1", "p2"):
            adapter = ReportedAdapter(name="bot", state=AdapterState.SERVED, manifest_sha256="ab" * 32)
            store(cache, SERVER, "s1", uid, state(adapters=[adapter]))
        one, two = (cache.state(SERVER).reports[uid].state.adapters[0] for uid in ("p1", "p2"))
        assert one is two

    def test_a_report_goes_with_its_pod_and_with_its_server(self, cache: Cache) -> None:
        store(cache, SERVER, "s1", "p1", state())
        delete_pod(cache, pod(3))
        assert cache.state(SERVER).reports == {}
        store(cache, SERVER, "s1", "p1", state())
        assert not store(cache, SERVER, "s0", "p1", state()), "an earlier server of that name"
        cache.put_object(Kind.ADAPTERSERVER, server(9, uid="s2"))
        assert cache.state(SERVER).reports == {}

    def test_what_is_to_be_served_goes_with_the_server(self, cache: Cache) -> None:
        assert cache.state(SERVER).desired is None
        cache.state(SERVER).desired = Desired(revision=3)
        cache.state(SERVER).children = {("services", "support-server"): "x"}
        cache.put_object(Kind.ADAPTERSERVER, server(5))
        assert cache.state(SERVER).desired == Desired(revision=3)
        delete_object(cache, SERVER, "s1")
        cache.put_object(Kind.ADAPTERSERVER, server(9, uid="s2"))
        assert cache.state(SERVER).desired is None
        assert cache.state(SERVER).children == {}


def _pods(cache: Cache) -> Any:
    return cache.replicas(SERVER, "s1", cache.deployments.get("team", "support-server"))


def test_nothing_leaks() -> None:
    cache = Cache()
    for index in range(50):
        version = 10 * index
        cache.put_object(
            Kind.ADAPTERSERVER, server(version + 1, uid=f"s{index}", adapterSelector={"matchLabels": {"a": "b"}})
        )
        cache.put_object(Kind.LORAJOB, job(version + 2, "Succeeded", f"j{index}", a="b"))
        cache.deployments.put(parse_deployment(deployment(version + 3, f"d{index}", f"s{index}", f"n{index}")))
        put_pod(cache, pod(version + 4, f"p{index}", f"r{index}", f"s{index}"))
        cache.deployment_of[ReplicaSet("team", f"name-r{index}", f"r{index}")] = f"d{index}"
        store(cache, SERVER, f"s{index}", f"p{index}", state())
        delete_pod(cache, pod(version + 5, f"p{index}", f"r{index}", f"s{index}"))
        cache.deployments.delete(parse_deployment(deployment(version + 6, f"d{index}", f"s{index}", f"n{index}")))
        delete_object(cache, Key(Kind.LORAJOB, "team", f"j{index}"), f"uid-j{index}")
        delete_object(cache, SERVER, f"s{index}")
    assert cache.deployment_of == {}
    stores = [*cache.objects.values(), cache.deployments, cache.server_pods]
    assert [table for part in stores for table in (part._items, *part._indexed.values()) if table] == []
