"""Two replicas on a real node, and a status that is true through everything that happens to them.

A recorder compares the status with what each engine lists by its own socket, twice a second, while an adapter is added,
updated and taken away, engine, gateway and operator are killed, a pod is deleted, the storage stands still, and
an alias is led to another adapter and back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.conftest import SERVED_BASE, Train

from kit.kubectl import Kubectl, wait_for
from kit.operator.pods import OperatorRecord, leader, operator_pods
from kit.processes import kill
from kit.serving import Server, Traffic, storage_standing_still, traffic
from kit.truth import GATEWAY, LATE_SECONDS, SILENT_SECONDS, Truth, watched

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("engine", "base")]
NAMESPACE = "e2e-truth"
LABEL = {"team": "truth"}
ALIAS = "bot:prod"
ENGINE_PROCESS = "engine.sock"
FLIP_SECONDS = 10
WHOLE = "Served 2/2"


@pytest.fixture(scope="module")
def server(kubectl: Kubectl, tenant: str, train: Train) -> Server:
    """A server of two adapters, and a name that leads to the first of them; scaled from one replica to two."""
    jobs = [train("one", LABEL), train("two", LABEL, training=OTHER)]
    secret = {"name": "s3"}
    spec = {
        "model": {"uri": SERVED_BASE, "secretRef": secret},
        "adapterSelector": {"matchLabels": LABEL},
        "adapterSecretRef": secret,
        "aliases": [{"name": ALIAS, "targets": [{"adapter": "one"}]}],
        "engine": {"maxRank": 16, "maxAdaptersInBatch": 4, "maxLoadedAdapters": 8, "precision": "Float32"},
        "resources": {"gpus": 0, "cpu": "300m", "memory": "6Gi", "ephemeralStorage": "2Gi"},
        "replicas": 1,
        "rollout": {"maxSurge": 0, "maxUnavailable": 1},
    }
    for job in jobs:
        job.wait_phase("Succeeded")
    manifest = {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "AdapterServer",
        "metadata": {"name": "pair"},
        "spec": spec,
    }
    server = Server(kubectl, manifest, tenant)
    server.apply()
    server.wait_ready(600)
    scaled(server, 2)
    return server


def scaled(server: Server, replicas: int) -> None:
    """Scale a server as users do: what answers already is not touched, and nobody sees an error."""
    (first,) = server.pods("serve")
    with traffic(server, "one", "served") as seen:
        server.kubectl.run("scale", server.kind, server.name, f"--replicas={replicas}", "-n", server.namespace)
        both_serve(server)
    assert_whole(seen)
    uids = [pod["metadata"]["uid"] for pod in server.pods("serve")]
    assert len(uids) == replicas
    assert first["metadata"]["uid"] in uids


OTHER = {"maxSteps": 24, "learningRate": 2e-2, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}


def both_serve(server: Server, *names: str, timeout: float = 400) -> None:
    """Wait until the status says of each adapter that both replicas serve it."""
    for name in names or ("one", "two"):
        wait_for(f"{name} on both", lambda name=name: is_whole(server.adapter(name)), timeout)  # type: ignore[misc]


def is_whole(adapter: dict[str, Any]) -> bool:
    """Tell whether all of two replicas serve an adapter."""
    return adapter.get("state") == "Served" and adapter.get("replicas") == "2/2"


@contextmanager
def undisturbed(server: Server, *asked: str) -> Iterator[Truth]:
    """While something happens that takes no replica away, nobody sees an error and no status is wrong for long."""
    with traffic(server, *asked) as seen, watched(server) as truth:
        yield truth
    assert_true(truth, LATE_SECONDS)
    assert_whole(seen)


def assert_true(truth: Truth, seconds: float) -> None:
    """Fail where the status said for longer than `seconds` that something is served which is not."""
    assert truth.looks, "the status was never looked at"
    assert truth.served, "it never said that anything is served"
    assert max(truth.longest.values(), default=0.0) < seconds, truth.longest


def assert_whole(seen: Traffic) -> None:
    """Fail where a request got no answer."""
    assert seen.replies
    assert seen.failed == []


def test_adapters_come_change_and_go_and_the_others_stay_served(server: Server, train: Train) -> None:
    with undisturbed(server, "one", "served") as truth:
        train("three", LABEL).wait_phase("Succeeded")
        both_serve(server, "three")
        old = server.adapter("three")["manifestSha256"]
        train("three", LABEL, training=OTHER).wait_phase("Succeeded")
        wait_for("its update", lambda: server.adapter("three").get("manifestSha256") not in (old, None), 60)
        both_serve(server, "three")
        server.kubectl.run("label", "lorajob", "three", "-n", server.namespace, "team-")
        wait_for("it to go", lambda: not server.adapter("three"), 30)
    assert truth.states["one"] == truth.states["two"] == [WHOLE], "they never flicker"


def test_without_storage_nothing_that_is_served_is_touched(server: Server, environment: dict[str, str]) -> None:
    with undisturbed(server, "one", "two", "served") as truth, storage_standing_still(environment):
        time.sleep(20)
    assert truth.states["one"] == [WHOLE]


def test_the_operator_is_killed_and_the_status_stays_true(
    server: Server, kubectl: Kubectl, operator: OperatorRecord
) -> None:
    with undisturbed(server, "one", "two") as truth:
        name = leader(kubectl)
        (pod,) = [each for each in operator_pods(kubectl) if each["metadata"]["name"] == name]
        operator.killed(pod["metadata"]["name"])
        kill(pod, "tunery_operator")
        time.sleep(2)
        wait_for("an operator that leads", lambda: leader(kubectl), 90)
        time.sleep(10)
    assert truth.states["one"] == [WHOLE]
    both_serve(server)


def test_an_alias_leads_elsewhere_and_back_on_every_replica_without_an_error(server: Server) -> None:
    """To the other adapter and back; nothing is downloaded for it."""
    with undisturbed(server, ALIAS, "one"):
        assert models_of(server) == {"one"}
        for target in ("two", "one"):
            begun = time.monotonic()
            server.patch_spec(aliases=[{"name": ALIAS, "targets": [{"adapter": target}]}])
            wait_for(f"only {target}", lambda target=target: models_of(server) == {target}, 30)  # type: ignore[misc]
            assert time.monotonic() - begun < FLIP_SECONDS
    assert "Loading" not in str(server.events())


def models_of(server: Server) -> set[str]:
    """Return what answers under the alias: each request may reach either replica."""
    return {server.ask(ALIAS).model.partition("@")[0] for _ in range(16)}


def test_an_engine_is_killed_and_its_replica_is_told_as_gone(server: Server) -> None:
    both_serve(server)
    pod = server.pods("serve")[0]
    with watched(server) as truth:
        kill(pod, ENGINE_PROCESS)
        wait_for("it to be told", lambda: not is_whole(server.adapter("one")), 60)
        both_serve(server)
    assert_true(truth, LATE_SECONDS)
    assert_steady(truth.states["one"])


def test_a_gateway_is_killed_and_takes_over_again(server: Server) -> None:
    both_serve(server)
    pod = server.pods("serve")[0]
    with watched(server) as truth:
        kill(pod, GATEWAY)
        time.sleep(5)
        both_serve(server)
    # A gateway that is dead tells nobody.
    assert_true(truth, SILENT_SECONDS + LATE_SECONDS)
    assert_steady(truth.states["one"])


def test_a_pod_is_deleted_and_another_takes_its_place_without_an_error(server: Server, kubectl: Kubectl) -> None:
    both_serve(server)
    gone = server.pods("serve")[0]["metadata"]["name"]
    with undisturbed(server, "one", "served") as truth:
        kubectl.delete("pod", gone, server.namespace)
        both_serve(server)
    assert gone not in {pod["metadata"]["name"] for pod in server.pods("serve")}
    assert_steady(truth.states["one"])


def assert_steady(states: list[str]) -> None:
    """Fail where an adapter that one replica held all the while was not served, or came and went more than once."""
    assert all(state.startswith("Served ") for state in states), states
    assert (states[0], states[-1]) == (WHOLE, WHOLE), states
    assert states.count(WHOLE) <= 2, states
