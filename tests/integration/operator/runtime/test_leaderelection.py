"""Leader election against a real API server: one acts at a time, and the next one does so soon."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tunery_operator.client.client import KubeClient
from tunery_operator.client.permissions import Call
from tunery_operator.errors import ApiFailure
from tunery_operator.runtime.leaderelection import LeaderElection, Timing

from kit.operator.api import Api

LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
QUICK = Timing(lease=3.0, renew=2.0, retry=0.3)
_names = itertools.count(1)


@pytest.fixture
def lease() -> str:
    return f"lease-{next(_names)}"


class Cut:
    """A client whose network can be cut."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.cut = False
        self.seconds = 0.0
        """How long a write takes."""

    def get(self, call: Call, *arguments: Any) -> Any:
        self._fail()
        return self._client.get(call, *arguments)

    def request(self, call: Call, *arguments: Any) -> Any:
        self._fail()
        time.sleep(self.seconds)
        return self._client.request(call, *arguments)

    def _fail(self) -> None:
        if self.cut:
            raise ApiFailure(0, "no route to host")


class Replica:
    """One replica, which notes when it acts."""

    def __init__(self, client: Any, lease: str, name: str, timing: Timing = QUICK) -> None:
        self.election = LeaderElection(client, "default", lease, name, timing)
        self.election.on_started = self._start
        self.election.on_lost = self._stop
        self.acts = False
        self.task = asyncio.create_task(self.election.run())

    async def _start(self) -> None:
        self.acts = True

    async def _stop(self) -> None:
        self.acts = False

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(check: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_one_acts_and_the_lease_says_which(client: KubeClient, api: Api, lease: str) -> None:
    replicas = [Replica(client, lease, f"pod-{index}") for index in range(3)]
    await until(lambda: any(replica.acts for replica in replicas))
    await asyncio.sleep(1)
    acting = [replica for replica in replicas if replica.acts]
    assert len(acting) == 1
    assert acting[0].election.is_leader
    spec = (api.get(f"{LEASES}/{lease}") or {})["spec"]
    assert spec["holderIdentity"] == acting[0].election.identity
    assert spec["leaseDurationSeconds"] == 3
    assert spec["leaseTransitions"] == 0
    assert spec["acquireTime"] < spec["renewTime"]
    for replica in replicas:
        await replica.stop()


async def test_a_leader_that_stops_hands_over_at_once(client: KubeClient, api: Api, lease: str) -> None:
    slow = Timing(lease=30.0, renew=20.0, retry=0.5)
    first = Replica(client, lease, "first", slow)
    await until(lambda: first.acts)
    second = Replica(client, lease, "second", slow)
    await asyncio.sleep(1.2)
    assert not second.acts
    await first.stop()
    assert not first.acts
    spec = (api.get(f"{LEASES}/{lease}") or {})["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) in (("", 1), (second.election.identity, 30))
    await until(lambda: second.acts, 5)
    assert (api.get(f"{LEASES}/{lease}") or {})["spec"]["leaseTransitions"] == 1
    await second.stop()


async def test_a_leader_without_network_stops_before_another_starts(client: KubeClient, lease: str) -> None:
    network = Cut(client)
    first = Replica(network, lease, "first")
    await until(lambda: first.acts)
    second = Replica(client, lease, "second")
    await asyncio.sleep(1)
    network.cut = True
    await until(lambda: not first.acts)
    assert not second.acts, "two acted at the same time"
    assert not first.election.is_leader
    await until(lambda: second.acts)
    network.cut = False
    await asyncio.sleep(1.5)
    assert not first.acts
    await second.stop()
    await until(lambda: first.acts)
    await first.stop()


async def test_a_leader_that_was_paused_does_not_act_when_it_continues(client: KubeClient, lease: str) -> None:
    first = Replica(client, lease, "first")
    await until(lambda: first.election.is_leader)
    time.sleep(QUICK.renew)
    assert not first.election.is_leader
    await first.stop()


async def test_a_lead_counts_from_before_its_renewal_was_sent(client: KubeClient, lease: str) -> None:
    network = Cut(client)
    network.seconds = QUICK.renew / 2
    first = Replica(network, lease, "first")
    await until(lambda: first.election.is_leader)
    time.sleep(QUICK.renew / 2)
    assert not first.election.is_leader
    await first.stop()


async def test_the_clock_of_the_record_does_not_count(client: KubeClient, api: Api, lease: str) -> None:
    ancient = {"holderIdentity": "elsewhere", "leaseDurationSeconds": 2, "renewTime": "2001-01-01T00:00:00.000000Z"}
    api.call("POST", LEASES, {"metadata": {"name": lease}, "spec": ancient})
    began = time.monotonic()
    replica = Replica(client, lease, "pod")
    await until(lambda: replica.acts)
    assert time.monotonic() - began >= 2, "a record counts from when it was first seen, whatever time it tells"
    await replica.stop()


@pytest.mark.slow(fast=["claim1"])
@pytest.mark.parametrize("claim", [{"leaseDurationSeconds": 86_400}, {"leaseTransitions": 2**31 - 1}])
async def test_a_record_that_was_forged_locks_nobody_out(
    client: KubeClient, api: Api, lease: str, claim: dict[str, int]
) -> None:
    forged = {"holderIdentity": "ghost", "leaseDurationSeconds": 2, **claim}
    api.call("POST", LEASES, {"metadata": {"name": lease}, "spec": forged})
    replica = Replica(client, lease, "pod")
    await until(lambda: replica.acts)
    await replica.stop()


async def test_a_record_that_another_took_ends_the_lead(client: KubeClient, api: Api, lease: str) -> None:
    replica = Replica(client, lease, "pod")
    await until(lambda: replica.acts)
    api.patch(f"{LEASES}/{lease}", {"spec": {"holderIdentity": "usurper", "leaseDurationSeconds": 30}})
    await until(lambda: not replica.acts)
    await replica.stop()
    assert (api.get(f"{LEASES}/{lease}") or {})["spec"]["holderIdentity"] == "usurper", "only one's own is released"


async def test_a_lease_that_was_deleted_is_made_again(client: KubeClient, api: Api, lease: str) -> None:
    replica = Replica(client, lease, "pod")
    await until(lambda: replica.acts)
    api.delete(f"{LEASES}/{lease}")
    await until(lambda: api.get(f"{LEASES}/{lease}") is not None)
    assert replica.acts
    await replica.stop()


async def test_who_led_before_is_known_by_the_record(client: KubeClient, api: Api, lease: str) -> None:
    record = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": "2026-11-25T10:00:00.000000Z"}
    api.call("POST", LEASES, {"metadata": {"name": lease}, "spec": record})
    replica = Replica(client, lease, "pod")
    await until(lambda: replica.acts)
    await asyncio.sleep(1)
    assert replica.election.led_before == datetime(2026, 11, 25, 10, tzinfo=UTC)
    await replica.stop()
