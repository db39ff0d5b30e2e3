"""A stand-by keeps its memory warm and does nothing; who begins to act looks at everything once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tunery_api.kinds import Kind
from tunery_operator.dispatch import duty as duty_module
from tunery_operator.dispatch.duty import Duty
from tunery_operator.dispatch.queue import WorkQueue
from tunery_operator.framework.feed import Feed
from tunery_operator.framework.handlers import Framework
from tunery_operator.kube.cache import Cache
from tunery_operator.reconcile.requeue import DONE, Requeue
from tunery_operator.views.owner import Key
from unit.operator.test_cache import NOON, job, owner


def key(name: str) -> Key:
    return Key(Kind.LORAJOB, "team", name)


class Stage:
    def __init__(self, ttl: int | None = None) -> None:
        self.looked: list[str] = []
        self.cache = Cache(ttl, clock=lambda: NOON)
        self.duty = Duty(self.cache, WorkQueue(self._look, 1))

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
        stage.cache.see_owner(Kind.LORAJOB, owner(index + 1, "Training", f"n{index}", f"u{index}"))
    stage.duty.add([key("n0")])
    stage.cache.see_owner(Kind.LORAJOB, owner(10, "Succeeded", "n0", "u0"))
    await asyncio.sleep(0.05)
    assert stage.looked == []
    stage.duty.start()
    await stage.until("n1", "n2")


async def test_what_nobody_has_looked_at_goes_first() -> None:
    stage = Stage()
    old = owner(1, "Training", "old", "u1")
    old["status"]["observedGeneration"] = 1
    stage.cache.see_owner(Kind.LORAJOB, old)
    stage.cache.see_owner(Kind.LORAJOB, owner(2, None, "new", "u2"))
    stage.duty.start()
    await stage.until("new", "old")


async def test_a_job_that_nobody_marked_as_done_is_not_forgotten() -> None:
    stage = Stage()
    stage.cache.see_owner(Kind.LORAJOB, owner(1, "Succeeded"))
    stage.cache.see_job(job(2, conditions=[{"type": "Complete", "status": "True"}]))
    stage.duty.start()
    await stage.until("one")


async def test_nothing_is_done_after_the_lead_is_lost() -> None:
    stage = Stage()
    stage.cache.see_owner(Kind.LORAJOB, owner(1, "Training"))
    stage.duty.start()
    await stage.until("one")
    await stage.duty.stop()
    stage.duty.add([key("one")])
    await asyncio.sleep(0.05)
    assert stage.looked == ["one"]
    stage.duty.start()
    await stage.until("one", "one")


async def test_every_object_is_looked_at_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duty_module, "ROUND_SECONDS", 0.2)
    stage = Stage()
    for index in range(2):
        stage.cache.see_owner(Kind.LORAJOB, owner(index + 1, "Training", f"n{index}", f"u{index}"))
    stage.duty.start()
    rounds = asyncio.create_task(stage.duty.look_again())
    await stage.until("n0", "n1", "n0", "n1")
    rounds.cancel()


async def test_expired_objects_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duty_module, "EXPIRY_SECONDS", 0.01)
    stage = Stage(ttl=0)
    stage.cache.see_owner(Kind.LORAJOB, owner(1, "Succeeded"))
    expire = asyncio.create_task(stage.duty.expire())
    await asyncio.sleep(0.05)
    assert stage.looked == []
    stage.duty.start()
    await stage.until("one")
    expire.cancel()


@asynccontextmanager
async def dispatching(changed: list[Key]) -> AsyncIterator[Feed]:
    """Kopf itself, on a feed."""
    feed, started = Feed(), asyncio.Event()
    framework = Framework(feed, changed.append)
    task = asyncio.create_task(framework.run(started.set))
    await started.wait()
    try:
        yield feed
    finally:
        framework.stop()
        await asyncio.wait_for(task, 20)


async def test_kopf_calls_the_handlers_for_what_the_feed_tells(caplog: pytest.LogCaptureFixture) -> None:
    """Everything that feed.py says of Kopf's insides: another version of it that needs more fails here."""
    changed: list[Key] = []
    merge = Key(Kind.ADAPTERMERGE, "team", "both")
    async with dispatching(changed) as feed:
        feed.tell([key("one"), merge, key("one")])
        for _ in range(1000):
            if len(changed) >= 2:
                break
            await asyncio.sleep(0.01)
        assert sorted(changed) == [merge, key("one")], "told twice before Kopf has read it: once"
        feed.tell([key(f"n{index}") for index in range(300)])
        for _ in range(1000):
            if len(changed) >= 302:
                break
            await asyncio.sleep(0.01)
        assert changed[2:] == [key(f"n{index}") for index in range(300)], "in the order in which they were told"
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_the_feed_knows_what_kopf_may_ask() -> None:
    with pytest.raises(LookupError, match="has its version changed"):
        await Feed().request("get", "http://feed.invalid/apis/apps/v1/deployments")
    with pytest.raises(LookupError, match="PATCH"):
        await Feed().request("PATCH", "http://feed.invalid/apis/tunery.dev/v1alpha1/lorajobs")
