"""A loader on a table: adapters published to folders, a clock that is moved by hand, an engine that keeps its books."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunery_api.manifest import FileRecord, Lineage, Manifest
from tunery_api.runspec import DiskLimit, RunIdentity
from tunery_api.serving import Desired, DesiredAdapter, ReportedAdapter, ServeSpec
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import ambient
from tunery_server.adapters.loop import Loader, Ways
from tunery_server.engine import Engine, EngineGone, EngineRefusal
from tunery_server.gateway.app import Gateway
from tunery_server.gateway.auth import ApiKeys
from tunery_server.process import open_gateway
from tunery_server.routes import Asleep, NotServed, Routes, UnknownModel

BASE = "org/base"
WIDTH, INNER, LAYERS = 8, 16, 2
WHO = RunIdentity(kind="LoRAJob", namespace="team", name="job", uid="1-2-3")
Shapes = Mapping[str, tuple[int, ...]]
Files = dict[str, bytes]


def safetensors(shapes: Shapes, dtype: str = "F32", fill: int = 0, **entries: Any) -> bytes:
    """Return a safetensors file whose bytes are all `fill`; `entries` replace what its header says of a tensor."""
    size = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}[dtype]
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header | entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * at


def base_shapes(width: int = WIDTH, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Return a small Llama's weights."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, width), "lm_head.weight": (32, width)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (width, INNER)
    return shapes


def write_base(folder: Path) -> Path:
    """Write a small Llama without a tokenizer: headers and a config are all that the loader reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32}))
    (folder / "model.safetensors").write_bytes(safetensors(base_shapes()))
    return folder


def lora_shapes(rank: int = 4, width: int = WIDTH, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Return the tensors of an adapter of that base."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for module, (takes, gives) in {"self_attn.q_proj": (width, width), "mlp.down_proj": (INNER, width)}.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            shapes[f"{name}.lora_A.weight"] = (rank, takes)
            shapes[f"{name}.lora_B.weight"] = (gives, rank)
    return shapes


def adapter_files(fill: int = 1, rank: int = 4, **config: Any) -> Files:
    """Return the two files of an adapter; `fill` makes one version differ from another."""
    fields = {"peft_type": "LORA", "base_model_name_or_path": BASE, "r": rank, "lora_alpha": 8}
    fields |= {"target_modules": ["q_proj", "down_proj"], **config}
    return {
        "adapter_config.json": json.dumps(fields).encode(),
        "adapter_model.safetensors": safetensors(lora_shapes(rank), fill=fill),
    }


def manifest_of(files: Files, **lineage: Any) -> bytes:
    """Return the manifest of published files."""
    records = {
        name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()
    }
    told = Lineage(**({"served_name": BASE} | lineage))
    return Manifest(created="2026-11-27T00:00:00Z", run=WHO, files=records, lineage=told).to_json()


def publish(folder: Path, files: Files, **lineage: Any) -> str:
    """Put files and their manifest into a folder; returns the manifest's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = manifest_of(files, **lineage)
    (folder / "manifest.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class BookEngine(Engine):
    """An engine in this process that checks what it is given, and does as its switches say."""

    root: Path
    most: int = 99
    number: int | None = 1
    """Which start it is; None: it is not there."""
    held: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    said: str = "0.32.0"
    refuse: Callable[[str], str | None] = lambda name: None
    dies_of: Callable[[str], bool] = lambda name: False
    answer: Callable[[str], list[float | None]] = lambda name: [float(len(name)), float(sum(map(ord, name)) % 97), -1.0]
    spoils: Callable[[str], bool] = lambda name: False
    """After which nothing but NaN is answered to anybody."""
    spoilt: bool = False
    gate: asyncio.Event | None = None
    """Where there is one, a load waits for it."""
    highest: int = 0
    busy: int = 0
    hangs: bool = False

    def birth(self) -> str | None:
        return None if self.number is None else str(self.number)

    def die(self) -> None:
        self.number, self.held = None, {}

    def start(self, number: int) -> None:
        self.number, self.held, self.spoilt = number, {}, False

    def _alive(self) -> None:
        if self.number is None:
            raise EngineGone("the engine cannot be reached")
        if self.hangs:
            raise EngineGone("the engine did not answer", hangs=True)

    async def asked_for_health(self) -> bool:
        self._alive()
        return True

    async def version(self) -> str:
        self._alive()
        return self.said

    async def models(self) -> set[str]:
        self._alive()
        return {BASE, *self.held}

    async def load(self, engine_name: str, path: str) -> None:
        self._alive()
        self.busy += 1
        assert self.busy == 1, "one load at a time"
        try:
            if self.gate is not None:
                await self.gate.wait()
            self.log.append(("load", engine_name))
            check_folder(Path(path))
            assert Path(path).name.startswith(engine_name.rpartition("@")[2])
            if self.dies_of(engine_name):
                self.die()
                raise EngineGone("the connection was closed")
            self._alive()
            if words := self.refuse(engine_name):
                raise EngineRefusal(500, words)
            self.held[engine_name] = path
            self.highest = max(self.highest, len(self.held))
        finally:
            self.busy -= 1

    async def unload(self, engine_name: str) -> None:
        self._alive()
        self.log.append(("unload", engine_name))
        if engine_name not in self.held:
            raise EngineRefusal(404, "no such adapter")
        del self.held[engine_name]

    async def logprobs(self, model: str, prompt: str, top: int) -> list[float | None]:
        self._alive()
        self.log.append(("probe", model))
        if self.dies_of(f"probe:{model}"):
            self.die()
            raise EngineGone("the connection was closed")
        self.spoilt = self.spoilt or self.spoils(model)
        return [None] if self.spoilt else self.answer(model)

    def did(self, what: str) -> list[str]:
        """Return the names that it was told to load, unload or answer as."""
        return [name for each, name in self.log if each == what]


def check_folder(folder: Path) -> None:
    """Assert what must be true of every folder that an engine is given."""
    assert folder.is_absolute()
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    manifest_path = folder.parent / ".manifests" / f"{folder.name}.json"
    assert hashlib.sha256(manifest_path.read_bytes()).hexdigest() == folder.name
    manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest.files[path.name].sha256


@dataclass
class Table:
    """A replica's folders, its engine and its loader."""

    root: Path
    limit: int = 8
    disk: DiskLimit | None = None
    clock: Clock = field(default_factory=Clock)
    opened: Callable[[DesiredAdapter], StorePath] | None = None
    revision: int = 0

    def __post_init__(self) -> None:
        write_base(self.root / "model")
        self.spec = ServeSpec.model_validate(
            {
                "identity": WHO.model_dump(),
                "model": {"uri": "s3://models/base"},
                "servedName": BASE,
                "maxRank": 64,
                "maxLoadedAdapters": self.limit,
                "disk": self.disk.model_dump() if self.disk else None,
                "modelDir": str(self.root / "model"),
                "adaptersDir": str(self.root / "adapters"),
                "engineSocket": str(self.root / "engine.sock"),
                "desiredFile": str(self.root / "adapters.json"),
            }
        )
        self.engine = BookEngine(root=self.root)
        self.new_gateway()

    def new_gateway(self) -> None:
        """Another process of the gateway: what it knew is gone, the folders and the engine are there."""
        self.routes = Routes(BASE)
        self.loader = Loader(self.spec, self.routes, self.engine, Ways(self.opened or open_file, self.clock))
        self.started = False

    def place(self, name: str) -> Path:
        return self.root / "published" / name

    def publish(self, name: str, files: Files | None = None, **lineage: Any) -> str:
        return publish(self.place(name), files or adapter_files(), **lineage)

    def item(self, name: str, sha256: str | None = None, place: str = "") -> DesiredAdapter:
        uri = self.place(place or name).as_uri()
        return DesiredAdapter(name=name, uri=uri, manifest_sha256=sha256)

    def want(self, *items: DesiredAdapter, **more: Any) -> None:
        """Write the list as the mounted ConfigMap has it; `more` are other fields of it."""
        self.revision += 1
        desired = Desired(revision=self.revision, adapters=list(items), **more)
        draft = self.root / "adapters.new"
        draft.write_text(desired.model_dump_json(by_alias=True))
        draft.replace(self.root / "adapters.json")

    async def go(self, steps: int = 3, seconds: float = 1.0) -> None:
        """Make passes, each to its end, with that much time between them."""
        if not self.started:
            await self.loader.start()
            self.started = True
        for _ in range(steps):
            await self.loader.step()
            await self.loader.settle()
            self.clock.now += seconds
        await self.loader.step()
        await self.loader.settle()

    def told(self, name: str) -> ReportedAdapter:
        """Return what the operator is told of an adapter."""
        return next(each for each in self.loader.state().adapters if each.name == name)

    def answers(self, name: str) -> str:
        """Return the engine name that answers, or why nothing does."""
        try:
            return self.routes.resolve(name).engine_name
        except NotServed as error:
            return error.reason
        except UnknownModel:
            return "404"
        except Asleep:
            return "Asleep"


def open_file(item: DesiredAdapter) -> StorePath:
    """Open a folder, as a store that faults are easily made in."""
    return open_store(item.uri, ambient(), "uri")


async def ask(table: Table, name: str, hold: asyncio.Event | None = None) -> str:
    """Be one request: return the engine's name of what answers, or the reason of the refusal."""
    try:
        target = await table.routes.find(name)
    except NotServed as error:
        return error.reason
    with table.routes.using(target):
        assert target.engine_name in table.engine.held
        if hold is not None:
            await hold.wait()
    return target.engine_name


@asynccontextmanager
async def behind_a_gateway(loader: Loader, routes: Routes, engine: Engine) -> AsyncIterator[str]:
    """Run a loader and a gateway to it; yields the gateway's address, and ends both, the loads under way too."""
    runner = await open_gateway(Gateway(routes, engine, loader, ApiKeys(None)), 0, "127.0.0.1")
    running = asyncio.create_task(loader.run())
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        running.cancel()
        await runner.cleanup()
        await asyncio.wait([running])
        await loader.settle()
        await engine.close()
