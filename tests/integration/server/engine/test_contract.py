"""One contract for engines: the stand-in keeps it and, with TUNERY_ENGINE=vllm, vLLM 0.32.

Where the two may differ, the test's docstring says in what. What else the stand-in does not have: vLLM's words, its
prefix cache, several prompts in a request, `n`, its speed, its memory and its GPU.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.engine_adapters import BASE, MAX_HELD, Shelf
from kit.engine_contract import (
    CLOSE,
    LONG,
    PROMPT,
    apart,
    asked,
    events,
    given,
    peft_continuation,
    peft_logprobs,
    refused,
    value,
)
from kit.engine_process import EngineProcess, Kind


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
    folder = shelf.fresh("one")
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
        await engine.load(f"bot@{version}", shelf.fresh(name))
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
    body = {"model": "flight@1", "prompt": PROMPT, "max_tokens": 60, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    async with engine.request("POST", "/v1/completions", body) as response:
        first = await response.content.readuntil(b"\n\n")
        assert (await engine.unload("flight@1")).status == 200
        chunks = events(first + await response.read())
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 60


async def test_files_may_go_after_unloading(engine: EngineProcess, shelf: Shelf, base: Path) -> None:
    """More loads than are held, so that what was unloaded would be read again if anybody still wanted it."""
    for number in range(MAX_HELD + 2):
        folder = shelf.fresh("two")
        await engine.load(f"files@{number}", folder)
        await asked(engine, f"files@{number}")
        await engine.unload(f"files@{number}")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    await engine.load("files@last", shelf["one"])
    assert apart(await asked(engine, "files@last"), peft_logprobs(base, shelf["one"], PROMPT)) < CLOSE
    assert apart(await asked(engine, BASE), peft_logprobs(base, None, PROMPT)) < CLOSE
