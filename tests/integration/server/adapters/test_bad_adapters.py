"""Every kind of bad adapter in one list, beside one that is asked all the while: each is told, none disturbs it."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tunery_api.serving import DesiredAdapter
from tunery_server.adapters.loop import Loader, Ways
from tunery_server.engine import Engine
from tunery_server.routes import Routes

from kit.engine_process import EngineProcess, Kind
from kit.server.loader import (
    BASE,
    WIDTH,
    Clock,
    Files,
    Shapes,
    Table,
    adapter_files,
    behind_a_gateway,
    lora_shapes,
    open_file,
    safetensors,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROW = "base_model.model.model.layers.0"
NF4 = {"type": "NF4"}


class Bad(NamedTuple):
    """One kind: what is put into the list, and what must be told of it."""

    put: Callable[[Table, str], DesiredAdapter]
    reason: str
    words: str


def published(files: Files, **lineage: Any) -> Callable[[Table, str], DesiredAdapter]:
    """Return a way to put these files, as their manifest says they are."""
    return lambda table, name: table.item(name, table.publish(name, files, **lineage))


def harmed(file: str, change: Callable[[bytes], bytes] | None) -> Callable[[Table, str], DesiredAdapter]:
    """Return a way to put a good adapter, one file of which was changed after it was published; None: it is gone."""

    def put(table: Table, name: str) -> DesiredAdapter:
        item = table.item(name, table.publish(name))
        path = table.place(name) / file
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))
        return item

    return put


def replaced(table: Table, name: str) -> DesiredAdapter:
    """Put an adapter in whose place another was published since it was pinned."""
    pinned = table.publish(name)
    table.publish(name, adapter_files(fill=2))
    return table.item(name, pinned)


def weights(content: bytes) -> Files:
    """Return an adapter with other weights than its config says."""
    return {**adapter_files(), WEIGHTS: content}


def of_method(method: str, shapes: Shapes) -> Files:
    """Return an adapter of another method than LoRA, with the tensors that PEFT saves of it."""
    config = {"peft_type": method, "base_model_name_or_path": BASE}
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: safetensors(shapes, fill=1)}


def of_gpt2() -> dict[str, tuple[int, ...]]:
    """Return the tensors of an adapter of another architecture."""
    parts = {"model.layers": "transformer.h", "self_attn.q_proj": "attn.c_attn", "mlp.down_proj": "mlp.c_fc"}
    shapes = lora_shapes()
    for old, new in parts.items():
        shapes = {name.replace(old, new): shape for name, shape in shapes.items()}
    return shapes


def pickled() -> bytes:
    """Return the beginning of what torch.save writes."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return file.getvalue()


MAGNITUDES = lora_shapes() | {f"{ROW}.self_attn.q_proj.lora_magnitude_vector": (WIDTH,)}
DORA = {**adapter_files(use_dora=True), WEIGHTS: safetensors(MAGNITUDES, fill=1)}
PROMPT = {"prompt_embeddings": (4, WIDTH)}
BAD = {
    "flipped-weight": Bad(harmed(WEIGHTS, lambda data: data[:-1] + b"x"), "AdapterCorrupt", "does not match the dig"),
    "flipped-config": Bad(harmed(CONFIG, lambda data: b"[" + data[1:]), "AdapterCorrupt", "does not match the digest"),
    "truncated": Bad(harmed(WEIGHTS, lambda data: data[:-100]), "AdapterCorrupt", "its manifest says"),
    "no-file": Bad(harmed(WEIGHTS, None), "AdapterCorrupt", "is missing, but its manifest"),
    "no-adapter": Bad(lambda table, name: table.item(name), "AdapterMissing", "has no manifest.json"),
    "replaced": Bad(replaced, "AdapterCorrupt", "manifest.json"),
    "high-rank": Bad(published(adapter_files(rank=128)), "RankTooHigh", "its rank is 128, engine.maxRank is 64"),
    "dora": Bad(published(DORA), "AdapterUnsupported", "DoRA"),
    "dora-by-its-weights": Bad(published(weights(DORA[WEIGHTS])), "AdapterUnsupported", "is of DoRA"),
    "qdora": Bad(published(DORA, method="QDoRA", quantization=NF4), "AdapterUnsupported", "DoRA"),
    "ia3": Bad(published(of_method("IA3", {f"{ROW}.self_attn.q_proj.ia3_l": (WIDTH, 1)})), "AdapterUnsupported", "IA3"),
    "prefix-tuning": Bad(published(of_method("PREFIX_TUNING", PROMPT)), "AdapterUnsupported", "PREFIX_TUNING"),
    "prompt-tuning": Bad(published(of_method("PROMPT_TUNING", PROMPT)), "AdapterUnsupported", "PROMPT_TUNING"),
    "adalora": Bad(
        published(of_method("ADALORA", lora_shapes() | {f"{ROW}.self_attn.q_proj.lora_E": (4, 1)})),
        "AdapterUnsupported",
        "ADALORA",
    ),
    "other-base": Bad(
        published(adapter_files(base_model_name_or_path="org/other"), served_name="org/other"),
        "BaseMismatch",
        "it was trained on org/other",
    ),
    "other-width": Bad(
        published(weights(safetensors(lora_shapes(width=2 * WIDTH), fill=1))), "BaseMismatch", "the base has 8"
    ),
    "other-depth": Bad(
        published(weights(safetensors(lora_shapes(layers=9), fill=1))), "BaseMismatch", "the base has 2 layers"
    ),
    "other-architecture": Bad(
        published(weights(safetensors(of_gpt2(), fill=1))),
        "BaseMismatch",
        "another architecture",
    ),
    "bin": Bad(
        published({CONFIG: adapter_files()[CONFIG], "adapter_model.bin": pickled()}),
        "AdapterUnsupported",
        "no other format",
    ),
    "pickle": Bad(published(weights(pickled())), "AdapterUnsupported", "is a pickle of PyTorch"),
    "whole-model": Bad(
        published({"config.json": b"{}", "model.safetensors": safetensors({"a": (2,)})}),
        "AdapterUnsupported",
        "holds no adapter",
    ),
    "nan": Bad(published(weights(safetensors(lora_shapes(), fill=0xFF))), "AdapterCorrupt", "lora_"),
    "zeros": Bad(published(weights(safetensors(lora_shapes()))), "ProbeFailed", "exactly as the base model"),
}


class Told(Engine):
    """The engine's client, which notes what the engine is told to load and asked as."""

    def __init__(self, socket: str) -> None:
        super().__init__(socket)
        self.loads: list[str] = []
        self.probes: list[str] = []

    async def load(self, engine_name: str, path: str) -> None:
        self.loads.append(engine_name.partition("@")[0])
        await super().load(engine_name, path)

    async def logprobs(self, model: str, prompt: str, top: int) -> list[float | None]:
        self.probes.append(model.partition("@")[0])
        return await super().logprobs(model, prompt, top)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine that computes nothing: that zeros answer as the base does is said to it."""
    switches = tmp_path / "switches.json"
    switches.write_text(json.dumps({"same_as_base": ["zeros@"]}))
    options = ["--served-model-name", BASE]
    engine = EngineProcess(Kind.FAULTY, tmp_path, options, {"TUNERY_FAULTS": str(switches)}).start()
    yield engine
    engine.kill()


@asynccontextmanager
async def asked_all_the_while(url: str, model: str) -> AsyncIterator[list[tuple[int, str]]]:
    """Have two clients ask a model, each again as soon as it is answered; yields status and version of each answer."""
    answers: list[tuple[int, str]] = []
    ended = asyncio.Event()

    async def ask_on(client: aiohttp.ClientSession) -> None:
        while not ended.is_set():
            body = {"model": model, "prompt": "x", "max_tokens": 1}
            async with client.post(f"{url}/v1/completions", json=body) as answer:
                text = await answer.text()
                answers.append((answer.status, answer.headers.get("X-Tunery-Adapter", text)))

    async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(ask_on(client))
        try:
            yield answers
        finally:
            ended.set()


async def until_told(loader: Loader, states: dict[str, str]) -> None:
    """Wait for what the loader does without its clock; as long as a busy machine takes."""
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(60):
            while found != states:
                await asyncio.sleep(0.02)
                found = {each.name: each.state.value for each in loader.state().adapters}
    except TimeoutError:
        assert found == states


@pytest.mark.slow
async def test_every_kind_of_bad_adapter_is_told_at_once_beside_one_that_is_asked_all_the_while(
    faulty: EngineProcess, tmp_path: Path
) -> None:
    table = Table(tmp_path, limit=2 + len(BAD))
    routes, engine = Routes(BASE), Told(str(faulty.socket))
    # The clock stands still: 15 seconds are promised, and what waited for another look would never be told.
    loader = Loader(table.spec, routes, engine, Ways(open_file, Clock()))
    good = table.item("good", table.publish("good", adapter_files(7)))
    late = table.item("late", table.publish("late", adapter_files(9)))
    table.want(good)
    async with behind_a_gateway(loader, routes, engine) as gateway:
        await until_told(loader, {"good": "Served"})
        async with asked_all_the_while(gateway, "good") as answers:
            table.want(good, *(bad.put(table, name) for name, bad in BAD.items()), late)
            await until_told(loader, {"good": "Served", **dict.fromkeys(BAD, "Failed"), "late": "Served"})
            while_they_came = len(answers)
            async with asyncio.timeout(60):
                while len(answers) < while_they_came + 20:
                    await asyncio.sleep(0.02)
        told = {each.name: each for each in loader.state().adapters}
        assert {name: told[name].reason for name in BAD} == {name: bad.reason for name, bad in BAD.items()}
        assert {name: bad.words in str(told[name].message) for name, bad in BAD.items()} == dict.fromkeys(BAD, True)
        assert [name for name in BAD if not told[name].hint] == []
        assert sorted(engine.loads) == ["good", "late", "zeros"]
        assert sorted(engine.probes) == ["good", "late", BASE, "zeros"]
        assert {name for name in await engine.models() if name != BASE} == {
            f"{each.name}@{str(each.manifest_sha256)[:12]}" for each in (good, late)
        }
    assert while_they_came > 0
    assert set(answers) == {(200, f"good@{str(good.manifest_sha256)[:12]}")}
