"""The probe on engines that compute: whatever good adapter comes is served, and what it costs is one short request."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunery_api.serving import DesiredAdapter
from tunery_server.adapters.loop import Loader
from tunery_server.engine import Engine
from tunery_server.routes import Routes

from kit.adapters import Factors, factors, write_adapter
from kit.engine_adapters import BASE, LAYERS, Shelf
from kit.engine_process import EngineProcess
from kit.server.loader import Table

RANKS = (1, 2, 3, 5, 8)
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "all": {"target_modules": LAYERS},
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "one": {"target_modules": ["k_proj"]},
    "lowest": {"target_modules": ["o_proj"], "layers_to_transform": [0]},
    "highest": {"target_modules": ["down_proj"], "layers_to_transform": [1]},
}
WEIGHTS = (1.0, 1e-2, 1e-3, 1e-5)
"""How large the numbers of B are: of a long training, of an early one, and of a first step in a warm-up."""


class Counted(Engine):
    """The engine's client, which notes how many tokens it was given for each request for text, by model."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(socket_path)
        self.tokens: defaultdict[str, list[int]] = defaultdict(list)

    async def _document(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        found = await super()._document(method, path, body, seconds)
        if body is not None:
            self.tokens[body["model"]].append(found["usage"]["completion_tokens"])
        return found


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[Counted]:
    """A client of the engine that tests share, which holds nothing of the test after it."""
    found = Counted(str(engine.socket))
    before = await found.models()
    yield found
    for name in await found.models() - before:
        await found.unload(name)
    await found.close()


def good_adapters(base: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield a hundred adapters by name, in turn with the scale of LoRA and of rsLoRA, in two types of numbers."""
    modules = {name.removesuffix(".weight"): tensor for name, tensor in load_file(base / "model.safetensors").items()}
    for at, (rank, target, weight) in enumerate(itertools.product(RANKS, TARGETS, WEIGHTS)):
        config = TARGETS[target]
        dtype = torch.bfloat16 if at % 3 else torch.float32
        found: dict[str, Factors] = {}
        for name, tensor in modules.items():
            if _is_meant(name, config):
                a, b = factors(rank, *tensor.shape, seed=at, dtype=dtype)
                found[name] = (a, b * weight)
        name = f"good-{rank}-{target}-{weight:g}"
        yield name, write_adapter(folder / name, found, use_rslora=bool(at % 2), lora_alpha=2 * rank, **config)


def _is_meant(module: str, config: Mapping[str, Any]) -> bool:
    layers = config.get("layers_to_transform")
    return module.rsplit(".", 1)[-1] in config["target_modules"] and (
        layers is None or any(f".{layer}." in module for layer in layers)
    )


def offered(table: Table, name: str, folder: Path) -> DesiredAdapter:
    """Publish what the engine needs of an adapter, and return its entry."""
    files = {path.name: path.read_bytes() for path in folder.glob("adapter_*")}
    return table.item(name, table.publish(name, files))


@pytest.mark.slow
async def test_of_a_hundred_good_adapters_none_is_refused_and_each_costs_one_request_of_eight_tokens(
    client: Counted, base: Path, shelf: Shelf, tmp_path: Path
) -> None:
    table = Table(tmp_path, limit=110)
    ways = {"model_dir": str(base), "engine_socket": client.socket_path, "max_rank": 8}
    table.spec = table.spec.model_copy(update=ways)
    loader = Loader(table.spec, Routes(BASE), client)
    good = [offered(table, *each) for each in good_adapters(base, tmp_path / "good")]
    assert len({item.manifest_sha256 for item in good}) == 100
    table.want(*good, *(offered(table, name, shelf[name]) for name in ("zero", "nan")))
    running = asyncio.create_task(loader.run())
    try:
        async with asyncio.timeout(300):
            while not loader.ready():
                await asyncio.sleep(0.05)
                assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])
    states = {each.name: (each.state.value, each.reason) for each in loader.state().adapters}
    assert {name: state for name, state in states.items() if state != ("Served", None)} == {
        "zero": ("Failed", "ProbeFailed"),
        "nan": ("Failed", "AdapterCorrupt"),
    }
    probes = {name: tokens for name, tokens in client.tokens.items() if name != BASE}
    assert {name.partition("@")[0] for name in probes} == {item.name for item in good} | {"zero"}
    assert all(tokens == [8] for tokens in probes.values()), "one request each, and the tokens that the engine counted"
    assert len(client.tokens[BASE]) == 1, "whose answer all are compared with"
