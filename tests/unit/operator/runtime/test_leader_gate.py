"""A stand-by keeps its memory warm and does nothing; who begins to act looks at everything once."""

from __future__ import annotations

import asyncio

import pytest

from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime import leader_gate
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.leader_gate import LeaderGate
from tunery_operator.runtime.workqueue import DONE, Requeue, WorkQueue
from unit.operator.runtime.test_cache import NOON, job, owner

from kit.operator.cached import put_job


def key(name: str) -> Key:
    return Key(Kind.LORAJOB, "team", name)


class Stage:
    def __init__(self, ttl: int | None = None) -> None:
        self.looked: list[str] = []
        self.cache = Cache(ttl, clock=lambda: NOON)
        self.gate = LeaderGate(self.cache, WorkQueue(self._look, 1))

    def _look(self, each: Key) -> Requeue:
        self.looked.append(each.name)
        return DONE

    async def until(self, *names: str) -> None:
        for _ in range(1000):
            if self.looked == list(names):
                return
            await asyncio.sleep(0.01)
        assert self.looked == list(names)


async def test_a_stand_by_looks_at_nothing_and_then_at_everything() -> None:
    stage = Stage()
    for index in range(3):
        stage.cache.put_object(Kind.LORAJOB, owner(index + 1, "Training", f"n{index}", f"u{index}"))
    stage.gate.add([key("n0")])
    stage.cache.put_object(Kind.LORAJOB, owner(10, "Succeeded", "n0", "u0"))
    await asyncio.sleep(0.05)
    assert stage.looked == []
    stage.gate.start()
    await stage.until("n1", "n2")


async def test_what_nobody_has_looked_at_goes_first() -> None:
    stage = Stage()
    old = owner(1, "Training", "old", "u1")
    old["status"]["observedGeneration"] = 1
    stage.cache.put_object(Kind.LORAJOB, old)
    stage.cache.put_object(Kind.LORAJOB, owner(2, None, "new", "u2"))
    stage.gate.start()
    await stage.until("new", "old")


async def test_a_job_that_nobody_marked_as_done_is_not_forgotten() -> None:
    stage = Stage()
    stage.cache.put_object(Kind.LORAJOB, owner(1, "Succeeded"))
    put_job(stage.cache, job(2, conditions=[{"type": "Complete", "status": "True"}]))
    stage.gate.start()
    await stage.until("one")


async def test_a_request_for_results_of_an_ended_object_is_not_forgotten() -> None:
    stage, requested = Stage(), owner(1, "Succeeded")
    requested["metadata"]["annotations"] = {"tunery.dev/fetch": "a request"}
    stage.cache.put_object(Kind.LORAJOB, requested)
    stage.gate.start()
    await stage.until("one")


async def test_nothing_is_done_after_the_lead_is_lost() -> None:
    stage = Stage()
    stage.cache.put_object(Kind.LORAJOB, owner(1, "Training"))
    stage.gate.start()
    await stage.until("one")
    await stage.gate.stop()
    stage.gate.add([key("one")])
    await asyncio.sleep(0.05)
    assert stage.looked == ["one"]
    stage.gate.start()
    await stage.until("one", "one")


async def test_every_object_is_looked_at_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_gate, "ROUND_SECONDS", 0.2)
    stage = Stage()
    for index in range(2):
        stage.cache.put_object(Kind.LORAJOB, owner(index + 1, "Training", f"n{index}", f"u{index}"))
    stage.gate.start()
    rounds = asyncio.create_task(stage.gate.resync())
    await stage.until("n0", "n1", "n0", "n1")
    rounds.cancel()


async def test_expired_objects_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_gate, "EXPIRY_SECONDS", 0.01)
    stage = Stage(ttl=0)
    stage.cache.put_object(Kind.LORAJOB, owner(1, "Succeeded"))
    expire = asyncio.create_task(stage.gate.expire())
    await asyncio.sleep(0.05)
    assert stage.looked == []
    stage.gate.start()
    await stage.until("one")
    expire.cancel()
