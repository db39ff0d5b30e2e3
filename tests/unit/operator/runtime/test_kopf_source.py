"""Kopf runs on our event source, and calls a handler for each object that was added."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.kopf_source import KopfDispatcher, KopfEventSource


def key(name: str) -> Key:
    return Key(Kind.LORAJOB, "team", name)


@asynccontextmanager
async def dispatching(changed: list[Key]) -> AsyncIterator[KopfEventSource]:
    """Kopf itself, on a source."""
    source, started = KopfEventSource(), asyncio.Event()
    dispatcher = KopfDispatcher(source, changed.extend)
    task = asyncio.create_task(dispatcher.run(started.set))
    await started.wait()
    try:
        yield source
    finally:
        dispatcher.stop()
        await asyncio.wait_for(task, 20)


async def test_kopf_calls_the_handlers_for_what_the_source_has(caplog: pytest.LogCaptureFixture) -> None:
    """Everything that kopf_source.py says of Kopf's insides: another version of it that needs more fails here."""
    changed: list[Key] = []
    merge = Key(Kind.ADAPTERMERGE, "team", "both")
    async with dispatching(changed) as source:
        source.add([key("one"), merge, key("one")])
        for _ in range(1000):
            if len(changed) >= 2:
                break
            await asyncio.sleep(0.01)
        assert sorted(changed) == [merge, key("one")], "told twice before Kopf has read it: once"
        source.add([key(f"n{index}") for index in range(300)])
        for _ in range(1000):
            if len(changed) >= 302:
                break
            await asyncio.sleep(0.01)
        assert changed[2:] == [key(f"n{index}") for index in range(300)], "in the order in which they were told"
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_the_source_knows_what_kopf_may_ask() -> None:
    with pytest.raises(LookupError, match="has its version changed"):
        await KopfEventSource().request("get", "http://kopf-source.invalid/apis/apps/v1/deployments")
    with pytest.raises(LookupError, match="PATCH"):
        await KopfEventSource().request("PATCH", "http://kopf-source.invalid/apis/tunery.dev/v1alpha1/lorajobs")
