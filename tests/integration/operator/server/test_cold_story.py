"""Aliases, clients, held names and cold adapters of an AdapterServer, against a real API server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kit.operator.api import eventually
from kit.operator.live_server import SERVERS, Server, served
from kit.operator.objects import Namespace, adapterserver, lorajob
from kit.operator.process import OperatorProcess

NAMED = [
    {"name": "bot", "uri": "s3://adapters/bot", "keepLoaded": True},
    {"name": "rare", "uri": "s3://adapters/rare"},
    {"name": "late", "loraJobRef": {"name": "late"}},
]
ACCESS = {"apiKeysSecretRef": {"name": "keys"}, "clients": [{"name": "alice", "models": ["bot:prod"]}]}


@pytest.fixture
def server(namespace: Namespace, operator: OperatorProcess, progress_tls: Path) -> Server:
    """A server with an adapter that stays loaded, one that need not, and one whose LoRAJob is not there yet."""
    eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
    aliases = [{"name": "bot:prod", "targets": [{"adapter": "bot"}]}]
    namespace.apply(adapterserver("support", adapters=NAMED, aliases=aliases, access=ACCESS))
    return Server(namespace, operator, progress_tls)


def test_replicas_are_told_of_aliases_clients_and_of_what_is_not_there_yet(
    server: Server, namespace: Namespace
) -> None:
    desired = server.wait_desired("bot", "rare")
    assert [item.get("keepLoaded") for item in desired["adapters"]] == [True, False]
    assert [alias["name"] for alias in desired["aliases"]] == ["bot:prod"]
    assert desired["clients"] == {"alice": ["bot:prod"]}
    missing = {"name": "late", "reason": "AdapterWaiting", "message": "LoRAJob late does not exist yet"}
    assert desired["held"] == [missing]

    # Each change comes with the answer to the next report, and makes no new pod.
    [pod] = server.start()
    assert server.report(pod)["desired"] == desired
    template = server.child("deployments")["spec"]["template"]
    flipped = [{"name": "bot:prod", "targets": [{"adapter": "bot", "weight": 1}, {"adapter": "rare", "weight": 9}]}]
    namespace.patch_spec("support", SERVERS, aliases=flipped)
    eventually("it flips", lambda: len(server.desired()["aliases"][0]["targets"]) == 2)
    answer = server.report(pod)["desired"]
    assert (answer["aliases"], answer["revision"]) == (flipped, desired["revision"] + 1)
    namespace.apply(lorajob("late", preflight="Skip"))
    namespace.run_pod("late-train")
    eventually("it is reported", lambda: "does not exist" not in server.desired()["held"][0]["message"])
    assert server.report(pod)["desired"]["held"][0]["message"].startswith("LoRAJob late is ")
    assert server.child("deployments")["spec"]["template"] == template


@pytest.mark.slow
def test_cold_adapters_are_served_and_requests_alone_write_nothing(server: Server, namespace: Namespace) -> None:
    [pod] = server.start()
    now = time.time() // 600 * 600 + 1
    cold = {**served("rare"), "state": "Cold", "lastUsed": now}
    server.report(pod, served("bot", lastUsed=now - 600), cold)
    assert server.wait_adapter("rare", "Cold")["replicas"] == "1/1"
    status = namespace.wait_phase("support", "Degraded", SERVERS)
    assert (status["adaptersText"], status["adapterCounts"]["cold"]) == ("2/3", 1)
    [replica] = status["replicaStatuses"]
    assert (replica["served"], replica["loaded"]) == (2, 1)
    assert status["failure"]["reason"] == "AdapterMissing"
    assert status["failure"]["message"] == "adapter late: LoRAJob late does not exist yet"

    version = (namespace.get(SERVERS, "support") or {})["metadata"]["resourceVersion"]
    for seconds in (5, 10):
        server.report(pod, served("bot", lastUsed=now - 600 + seconds), {**cold, "lastUsed": now + seconds})
        time.sleep(1.2)
    assert (namespace.get(SERVERS, "support") or {})["metadata"]["resourceVersion"] == version
    server.report(pod, served("bot"), served("rare", lastUsed=now))
    server.wait_adapter("rare", "Served")

    namespace.patch_spec("support", SERVERS, adapters=NAMED[:2])
    namespace.wait_phase("support", "Ready", SERVERS)
    namespace.patch_spec("support", SERVERS, adapters=NAMED[1:2])
    status = namespace.wait_phase("support", "Degraded", SERVERS)
    assert status["failure"]["message"] == "alias bot:prod points to bot, which is not an adapter of this server"
