"""The contract of engines, second part: requests and answers, whole and in a stream, and what is measured."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tunery_server.engine import Engine

from kit.engine_adapters import BASE, Shelf
from kit.engine_contract import (
    CLOSE,
    PROMPT,
    apart,
    asked,
    given,
    peft_continuation,
    refused,
    streamed,
    value,
)
from kit.engine_process import EngineProcess


async def test_a_prompt_alone_is_scored_with_echo(engine: EngineProcess) -> None:
    """max_tokens 0 is allowed with `echo` only, and the usage counts one token even so."""
    refused(await engine.complete(BASE, PROMPT, max_tokens=0, prompt_logprobs=0), 400, "BadRequestError")
    answer = await engine.complete(BASE, PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert answer.body["choices"][0]["text"] == PROMPT
    assert apart(given(answer.body), await asked(engine, BASE)) < CLOSE
    assert answer.body["usage"]["completion_tokens"] == 1


async def test_echoed_logprobs_are_those_of_the_prompt(engine: EngineProcess) -> None:
    answer = await engine.complete(BASE, PROMPT, max_tokens=2, echo=True, logprobs=1)
    choice = answer.body["choices"][0]
    told = choice["logprobs"]
    assert choice["text"].startswith(PROMPT)
    assert told.keys() == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    count = answer.body["usage"]["prompt_tokens"]
    assert "".join(told["tokens"][:count]) == PROMPT
    assert told["text_offset"][:count] == list(range(count)), "this tokenizer has a token for each letter"
    assert told["token_logprobs"][0] is None
    assert apart(told["token_logprobs"][1:count], await asked(engine, BASE)) < CLOSE
    assert len(told["token_logprobs"]) == count + 2


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_404(engine: EngineProcess, route: str, stream: bool) -> None:
    body = {"model": "nobody", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": stream}
    answer = await engine.post(route, body)
    refused(answer, 404, "NotFoundError")
    assert answer.body["error"]["param"] == "model"


async def test_a_request_that_names_no_model_is_the_bases(engine: EngineProcess) -> None:
    """So the gateway has to ask for one itself."""
    answer = await engine.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert (answer.status, answer.body["model"]) == (200, BASE)


async def test_an_answer_names_its_model_and_counts_its_tokens(engine: EngineProcess, shelf: Shelf) -> None:
    await engine.load("counted@1", shelf["one"])
    answer = await engine.complete("counted@1", "hello", max_tokens=3, ignore_eos=True)
    assert answer.body["object"] == "text_completion"
    assert answer.body["model"] == "counted@1"
    usage = answer.body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 3, 8)
    assert answer.body["choices"][0]["finish_reason"] == "length"


async def test_more_tokens_than_the_model_has_are_refused_and_those_beyond_the_room_are_cut(
    engine: EngineProcess,
) -> None:
    refused(await engine.complete(BASE, "hello", max_tokens=513), 400, "BadRequestError")
    refused(await engine.complete(BASE, "hello", max_tokens=-1), 400, "BadRequestError")
    answer = await engine.complete(BASE, "a" * 500, max_tokens=100, ignore_eos=True)
    assert answer.body["usage"]["completion_tokens"] == 12


async def test_a_prompt_may_be_tokens(engine: EngineProcess) -> None:
    answer = await engine.complete(BASE, [12, 13, 14], max_tokens=1, prompt_logprobs=0)  # type: ignore[arg-type]
    assert [next(iter(one)) for one in answer.body["choices"][0]["prompt_logprobs"][1:]] == ["13", "14"]


async def test_the_same_seed_gives_the_same_answer(engine: EngineProcess) -> None:
    """Not the same in both engines: each draws in its own way."""

    async def drawn(seed: int) -> str:
        answer = await engine.complete(BASE, PROMPT, max_tokens=12, temperature=1.5, seed=seed)
        text: str = answer.body["choices"][0]["text"]
        return text

    assert await drawn(1) == await drawn(1)
    assert len({await drawn(seed) for seed in range(4)}) > 1


async def test_a_chat_goes_through_the_bases_template(engine: EngineProcess, shelf: Shelf, base: Path) -> None:
    await engine.load("chat@1", shelf["one"])
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "chat@1", "messages": messages, "max_tokens": 4, "temperature": 0, "logprobs": True,
            "top_logprobs": 2, "ignore_eos": True}  # fmt: skip
    answer = await engine.post("/v1/chat/completions", body)
    assert (answer.body["object"], answer.body["model"]) == ("chat.completion", "chat@1")
    choice = answer.body["choices"][0]
    assert choice["message"]["role"] == "assistant"
    told = choice["logprobs"]["content"]
    assert all(one.keys() == {"token", "logprob", "bytes", "top_logprobs"} for one in told)
    text = AutoTokenizer.from_pretrained(base).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert apart([one["logprob"] for one in told], peft_continuation(base, shelf["one"], text, 4)) < CLOSE
    assert answer.body["usage"]["prompt_tokens"] == len(AutoTokenizer.from_pretrained(base)(text).input_ids)


async def test_a_stream_gives_the_same_text_piece_by_piece(engine: EngineProcess) -> None:
    """A busy vLLM puts several tokens into one chunk; in the stand-in each has its own."""
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = (await engine.post("/v1/completions", body)).body
    chunks = await streamed(engine, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "text_completion", BASE)
    }
    assert not any(chunk.get("usage") for chunk in chunks)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_the_last_chunk_is_the_usage_where_it_is_asked_for(engine: EngineProcess, route: str) -> None:
    body = {"model": BASE, "prompt": PROMPT, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5,
            "temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
    *chunks, last = await streamed(engine, route, body)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 5
    assert all(len(chunk["choices"]) == 1 and not chunk.get("usage") for chunk in chunks)


async def test_a_streamed_chat_begins_with_its_role(engine: EngineProcess) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "ignore_eos": True}
    first, *others = await streamed(engine, "/v1/chat/completions", body)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["choices"][0]["delta"].keys() == {"content"} for chunk in others)
    assert [chunk["choices"][0]["finish_reason"] for chunk in others] == [None] * (len(others) - 1) + ["length"]


async def test_metrics_count_requests_and_name_the_adapters_in_flight(engine: EngineProcess, shelf: Shelf) -> None:
    """vLLM keeps a line of `lora_requests_info` for each set of adapters it ever had; the stand-in has the newest."""
    await engine.load("metered@1", shelf["one"])
    body = {"model": "metered@1", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with engine.request("POST", "/v1/completions", body) as response:
        await response.content.readuntil(b"\n\n")
        seen = (await engine.get("/metrics")).body
        for _ in range(50):
            if value(seen, "vllm:num_requests_running") and 'running_lora_adapters="metered@1"' in seen:
                break
            seen = (await engine.get("/metrics")).body
        else:
            pytest.fail("nothing was seen running")
    assert value(seen, "vllm:num_requests_waiting") == 0
    assert f'vllm:num_requests_running{{engine="0",model_name="{BASE}"}} 1.0' in seen
    assert 'max_lora="2"' in seen


async def test_metrics_measure_the_time_to_the_first_token(engine: EngineProcess) -> None:
    count = "vllm:time_to_first_token_seconds_count"
    before = value((await engine.get("/metrics")).body, count)
    await engine.complete(BASE, PROMPT, max_tokens=2)
    for _ in range(50):
        seen = (await engine.get("/metrics")).body
        if value(seen, count) == before + 1:
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("no first token was measured")
    assert f'_bucket{{engine="0",le="+Inf",model_name="{BASE}"}} {before + 1}' in seen
    assert value(seen, count.replace("_count", "_sum")) > 0


async def test_requests_for_two_adapters_and_the_base_run_together(engine: EngineProcess, shelf: Shelf) -> None:
    for name in ("one", "two"):
        await engine.load(f"{name}@together", shelf[name])
    body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with AsyncExitStack() as streams:
        for name in ("one@together", "two@together", BASE):
            response = await streams.enter_async_context(
                engine.request("POST", "/v1/completions", body | {"model": name})
            )
            await response.content.readuntil(b"\n\n")
        seen = (await engine.get("/metrics")).body
    assert value(seen, "vllm:num_requests_running") == 3
    assert 'running_lora_adapters="one@together,two@together"' in seen


async def test_a_client_that_goes_away_frees_its_place(engine: EngineProcess) -> None:
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 450, "ignore_eos": True, "stream": True}
    async with engine.request("POST", "/v1/completions", body) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    for _ in range(50):
        if value((await engine.get("/metrics")).body, "vllm:num_requests_running") == 0:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the request still runs")


async def test_other_routes_are_404_and_other_methods_405(engine: EngineProcess) -> None:
    assert (await engine.get("/nothing")).status == 404
    assert (await engine.get(f"/v1/models/{BASE}")).status == 404
    assert (await engine.post("/health", {})).status == 405


async def test_what_is_no_json_is_400(engine: EngineProcess) -> None:
    assert (await engine.post("/v1/completions", ["a list"])).status == 400
    assert (await engine.post("/v1/completions", {"model": BASE})).status == 400


async def test_a_started_engine_is_healthy_and_says_its_version(engine: EngineProcess) -> None:
    assert (await engine.get("/health")).status == 200
    assert (await engine.get("/version")).body == {"version": "0.32.0"}


async def test_the_gateways_probe_is_answered_beside_other_requests(engine: EngineProcess, shelf: Shelf) -> None:
    """Eight tokens with the likeliest twenty at each: what an engine without our plugin takes, too."""
    await engine.load("probed@1", shelf["one"])
    client = Engine(str(engine.socket))
    try:
        *others, adapter, base = await asyncio.gather(
            *(engine.complete(BASE, PROMPT, max_tokens=16, ignore_eos=True) for _ in range(4)),
            client.logprobs("probed@1", PROMPT, 20),
            client.logprobs(BASE, PROMPT, 20),
        )
    finally:
        await client.close()
        await engine.unload("probed@1")
    assert {answer.status for answer in others} == {200}
    assert min(len(adapter), len(base)) > 64
    assert None not in [*adapter, *base]
    assert adapter != base
