"""The engine for faults: each switch does what it says, and without one it speaks as the others do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from kit.engine_process import EngineProcess, Kind
from kit.faulty_engine import DIED


@pytest.fixture
def switches(tmp_path: Path) -> Path:
    return tmp_path / "faults.json"


@pytest.fixture
def engine(tmp_path: Path, switches: Path) -> Iterator[EngineProcess]:
    options = ["/model", "--served-model-name", "org/base", "--max-loras", "2", "--shutdown-timeout", "5"]
    found = EngineProcess(Kind.FAULTY, tmp_path, options, {"TUNERY_FAULTS": str(switches)}).start()
    yield found
    found.kill()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


Turn = Callable[..., None]


@pytest.fixture
def turn(switches: Path) -> Turn:
    return lambda **values: switches.write_text(json.dumps(values)) and None


async def test_without_a_switch_adapters_answer_and_not_as_the_base(engine: EngineProcess, adapter: Path) -> None:
    assert (await engine.load("a@1", adapter)).status == 200
    assert (await engine.models())["a@1"]["parent"] == "org/base"
    told = [
        (await engine.complete(name, "hello", max_tokens=2, logprobs=0, prompt_logprobs=0)).body["choices"][0]
        for name in ("a@1", "org/base")
    ]
    assert told[0]["logprobs"]["token_logprobs"] != told[1]["logprobs"]["token_logprobs"]
    assert len(told[0]["prompt_logprobs"]) == 5
    assert (await engine.unload("a@1")).status == 200
    assert (await engine.complete("a@1", "hello")).status == 404


async def test_loads_fail_or_end_the_process_by_name(engine: EngineProcess, adapter: Path, turn: Turn) -> None:
    turn(fail_in_load=["bad"], die_in_load=["poison"])
    assert (await engine.load("bad@1", adapter)).status == 500
    assert (await engine.load("good@1", adapter)).status == 200
    with pytest.raises(aiohttp.ClientError):
        await engine.load("poison@1", adapter)
    assert await asyncio.to_thread(engine.wait) == DIED
    assert engine.socket.exists()


async def test_a_load_hangs_beside_requests_that_go_on(engine: EngineProcess, adapter: Path, turn: Turn) -> None:
    turn(hang_in_load=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.load("a@1", adapter), 0.5)
    assert (await engine.complete("org/base", "hello")).status == 200


async def test_the_first_request_ends_the_process(engine: EngineProcess, adapter: Path, turn: Turn) -> None:
    await engine.load("a@1", adapter)
    turn(die_at_generate=["a@1"])
    assert (await engine.complete("org/base", "hello")).status == 200
    with pytest.raises(aiohttp.ClientError):
        await engine.complete("a@1", "hello")
    assert await asyncio.to_thread(engine.wait) == DIED


async def test_health_is_slow_or_bad_and_text_fails(engine: EngineProcess, turn: Turn) -> None:
    turn(slow_health=0.5, sick=True, fail=True)
    assert "vllm:num_requests_running{" in (await engine.get("/metrics")).body
    began = time.monotonic()
    assert (await engine.get("/health")).status == 503
    assert time.monotonic() - began >= 0.5
    assert (await engine.complete("org/base", "hello")).status == 500


async def test_answers_of_an_adapter_are_the_bases_or_no_numbers(
    engine: EngineProcess, adapter: Path, turn: Turn
) -> None:
    await engine.load("a@1", adapter)
    turn(same_as_base=True)
    same = [await engine.complete(name, "hello", logprobs=0) for name in ("a@1", "org/base")]
    assert same[0].body["choices"] == same[1].body["choices"]
    turn(nan=True)
    assert (await engine.complete("a@1", "hello", prompt_logprobs=0)).status == 400
