"""What the gateway's log says of adapters: each load, unload and refusal once, and nothing of requests."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tunery_api.serving import DesiredAdapter

from kit.server.loader import Table, adapter_files, ask

TIME = re.compile(r"\d+\.\d s")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return level and text of what was said since the last call, without how long it took."""
    found = [
        f"{record.levelname} {TIME.sub('N s', record.getMessage())}"
        for record in caplog.records
        if record.name.startswith("tunery_server") and record.levelno >= logging.INFO
    ]
    caplog.clear()
    return found


async def test_each_load_and_unload_is_a_line_and_requests_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = Table(tmp_path)
    bot, tone = (table.publish(name, adapter_files(fill))[:12] for fill, name in enumerate(("bot", "tone"), 1))
    table.want(table.item("bot"), table.item("tone"))
    await table.go()
    assert sorted(lines(caplog)) == [
        f"INFO bot@{bot} is served: rank 4, N s",
        f"INFO tone@{tone} is served: rank 4, N s",
    ]
    for _ in range(20):
        await ask(table, "bot")
    await table.go(steps=20)
    assert lines(caplog) == []

    newer = table.publish("bot", adapter_files(7))[:12]
    table.want(table.item("bot"))
    await table.go(steps=3, seconds=300)
    assert set(lines(caplog)) == {
        f"INFO bot@{bot} is unloaded",
        f"INFO bot@{newer} is served: rank 4, N s",
        f"INFO tone@{tone} is unloaded",
    }


async def test_what_is_not_served_is_a_line_with_its_cause_until_the_cause_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = Table(tmp_path, limit=1)
    wide = table.publish("wide", adapter_files(1, rank=128))[:12]
    late = {"name": "late", "reason": "AdapterWaiting", "message": "LoRAJob late is Training"}
    kept = [table.item(name).model_copy(update={"keep_loaded": True}) for name in ("wide", "more")]
    table.want(*kept, held=[late])
    await table.go()
    first, *others = lines(caplog)
    told = [
        "WARNING more is not served: TooManyAdapters: 2 adapters have keepLoaded, engine.maxLoadedAdapters is 1, and "
        "this is number 2 of them",
        "INFO late is not served: AdapterWaiting: LoRAJob late is Training",
    ]
    assert sorted([first, *others[:-1]]) == sorted(told)
    assert others[-1].startswith(f"WARNING wide@{wide} is not served: RankTooHigh: ")
    table.want(*kept, held=[late])
    await table.go(steps=10, seconds=60)
    assert lines(caplog) == []
    table.want(*kept, held=[late | {"message": "LoRAJob late is Uploading"}])
    await table.go()
    assert lines(caplog) == ["INFO late is not served: AdapterWaiting: LoRAJob late is Uploading"]


async def test_a_storage_that_is_away_is_a_line_not_one_for_each_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = Table(tmp_path)
    table.want(table.item("bot"))
    await table.go(steps=10, seconds=60)
    [line] = lines(caplog)
    assert line.startswith("WARNING bot is not served: ")
    bot = table.publish("bot")[:12]
    await table.go(steps=3, seconds=60)
    assert lines(caplog) == [f"INFO bot@{bot} is served: rank 4, N s"]


async def test_what_breaks_and_is_mended_again_and_again_is_told_each_time_but_is_no_flood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr("tunery_server.adapters.saying.time.monotonic", lambda: now)
    table = Table(tmp_path)
    good = table.publish("bot")[:12]

    async def said(*wanted: DesiredAdapter) -> list[str]:
        table.want(*wanted)
        await table.go(steps=5, seconds=0.1)
        return lines(caplog)

    assert await said(table.item("bot")) == [f"INFO bot@{good} is served: rank 4, N s"]
    told = []
    for _ in range(8):
        told.append((await said(table.item("bot", place="away")), await said(table.item("bot"))))
    mended = [f"INFO bot@{good} is served as before: nothing stands in its way any more"]
    [warning] = told[0][0]
    assert warning.startswith(f"WARNING bot@{good} is served on, not bot: AdapterMissing: ")
    assert told[:4] == [([warning], mended)] * 4
    assert told[4] == ([f"{warning} (5 such lines in 10 minutes: no other of it in these)"], mended)
    assert told[5:] == [([], [])] * 3
    now = 601.0
    assert await said(table.item("bot", place="away")) == [f"{warning} (3 such lines were left out before it)"]


async def test_what_is_taken_away_while_the_engine_loads_it_is_told_of_before_it_is_unloaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    table = Table(tmp_path)
    tone = table.publish("tone")[:12]
    load = table.engine.load

    async def meanwhile(engine_name: str, path: str) -> None:
        await load(engine_name, path)
        table.want()
        await table.loader.step()

    monkeypatch.setattr(table.engine, "load", meanwhile)
    table.want(table.item("tone"))
    await table.go(steps=5)
    assert lines(caplog) == [
        f"INFO tone@{tone} was loaded and is not served: it is not wanted any more",
        f"INFO tone@{tone} is unloaded",
    ]
