"""A server whose operator is killed before and after each write, or starts anew where nothing has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.operator.adversity import Adversity, adversity
from kit.operator.api import Api, eventually
from kit.operator.killing import Case, Run, Write, assert_struck, finish, killed_at, writes_of
from kit.operator.live_server import SERVERS, Server, served
from kit.operator.objects import Namespace, adapterserver, lorajob
from kit.operator.players import Witness
from kit.operator.stage import Stage, make_namespace
from tools.cluster.controlplane import ControlPlane

EVERY = os.environ.get("TUNERY_TEST_EVERY_FAULT") == "1"
STORY_SECONDS = 400.0
"""For all stories that run side by side; each kill costs a start of the operator."""
CHILDREN = {"deployments": 1, "configmaps": 3, "services": 1, "poddisruptionbudgets": 1, "networkpolicies": 1}
"""How many there are at the end: of two settings each has its serve.json, and there is adapters.json."""


@pytest.fixture
def world(
    stage: Stage, api: Api, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adversity]:
    stage.clear()
    folder = tmp_path_factory.mktemp("server-kills")
    with adversity(api, stage.make, control_plane.authority, stage.kubeconfig, folder, make_namespace) as world:
        yield world


def from_apply_to_a_change(namespace: Namespace) -> None:
    """A server, an adapter that comes by its label, other settings, and another number of replicas."""
    namespace.apply(adapterserver("support", adapterSelector={"matchLabels": {"team": "support"}}))
    server = Server(namespace)
    eventually("it answers", lambda: server.status.get("readyReplicas") == 1, STORY_SECONDS)
    body = lorajob("bot", preflight="Skip")
    body["metadata"]["labels"] = {"team": "support"}
    namespace.apply(body)
    eventually("the adapter is to be served", lambda: server.wanted() == ["bot"], STORY_SECONDS)
    namespace.patch_spec("support", SERVERS, engine={"maxRank": 128})
    eventually("other settings", lambda: server.argument("--max-lora-rank") == "128", STORY_SECONDS)
    namespace.patch_spec("support", SERVERS, replicas=2)
    eventually("both answer", lambda: server.status.get("readyText") == "2/2", STORY_SECONDS)
    eventually("all of it is told", lambda: server.status.get("observedGeneration") == 3, STORY_SECONDS)
    assert {plural: len(names) for plural, names in server.children().items()} == CHILDREN


@pytest.mark.slow
def test_killed_at_each_write_the_same_children_are_there_in_the_end(api: Api, world: Adversity) -> None:
    deployments = Witness(api, "/apis/apps/v1/deployments")
    deployments.start()
    first = Run(from_apply_to_a_change, {"bot-train": 1}, world.namespace())
    finish(world, [first])
    killed = [killed_at(world, first, case) for case in _chosen(writes_of(world, first.namespace))]
    finish(world, killed)
    assert_struck(killed)
    for run in killed:
        assert deployments.made(run.namespace.name) == {"support-server": 1}, run.rules
    deployments.stop()
    world.assert_sound()


def _chosen(writes: list[tuple[Write, int]]) -> list[Case]:
    """Return the writes of the server to kill at, each with whether before or after it.

    Unless every case is asked for: after what is created, when the operator knows nothing of it, before what is
    changed, and at each second status.
    """
    both = [(write, nth, before) for write, nth in writes for before in (True, False)]
    of_children = [case for case in both if case[0][1] in CHILDREN]
    statuses = [case for case in both if case[0][1] == f"{SERVERS}/status"]
    if EVERY:
        return of_children + statuses
    return [case for case in of_children if case[2] is (case[0][0] == "patch")] + [
        case for case in statuses if case[1] % 2 == 0 and case[2]
    ]


@pytest.mark.slow
def test_a_start_of_the_operator_writes_nothing(world: Adversity, progress_tls: Path) -> None:
    namespace = world.namespace()
    eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
    namespace.apply(adapterserver("support", adapters=[{"name": "bot", "uri": "s3://adapters/x"}]))
    server = Server(namespace, world.operator, progress_tls)
    [pod] = server.start()
    server.report(pod, served("bot"))
    server.wait_adapter("bot", "Served")
    namespace.wait_phase("support", "Ready", SERVERS)
    eventually("all children", lambda: all(server.children().values()))
    assert world.operator.stop() == 0
    since = time.monotonic()
    world.operator.start()
    server.report(pod, served("bot"))
    time.sleep(2.0)
    assert [exchange.call for exchange in world.proxy.writes(namespace.name, since)] == []
    assert server.status["adaptersText"] == "1/1"
    world.assert_sound()
