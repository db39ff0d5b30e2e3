"""One replica of an AdapterServer without a cluster: vLLM as in its pod, the gateway's process, and an S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import FileRecord, Lineage, Manifest
from tunery_api.runspec import MountedSecret, RunIdentity
from tunery_api.serving import Desired, DesiredAdapter, ServeSpec, engine_name
from tunery_operator.planning import adapterserver as plan

from kit.engine_process import FIX, EngineProcess, Kind
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.ports import free_port
from tools.cluster.s3 import S3Server

SPEC: Final = AdapterServerSpec.model_validate(
    {
        "model": {"uri": "s3://models/SmolLM2-135M-Instruct"},
        "adapterSelector": {"matchLabels": {"team": "support"}},
        "engine": {
            "maxRank": 16,
            "maxAdaptersInBatch": 2,
            "maxLoadedAdapters": 4,
            "maxLength": 2048,
            "precision": "Float32",
        },
        "resources": {"gpus": 0, "cpu": "2", "memory": "4Gi"},
    }
)
BASE: Final = SPEC.model.effective_served_name()
COMPLETIONS: Final = "/v1/completions"
SERVED_SECONDS: Final = 120


@dataclass
class GatewayProcess:
    """The process of gateway and loader."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        return cpu_of(self.process.pid)


@dataclass
class Replica:
    """The engine, the gateway in front of it, and the list of adapters to serve."""

    folder: Path
    store: S3Server
    engine: EngineProcess
    gateway: GatewayProcess
    straight: aiohttp.ClientSession
    """To the engine's socket."""
    client: aiohttp.ClientSession
    """To the gateway."""
    wanted: dict[str, DesiredAdapter] = field(default_factory=dict)
    revision: int = 1

    def publish(self, place: str, folder: Path) -> DesiredAdapter:
        """Put an adapter into the store as a run does; return it as it is asked for under the name `place` begins
        with."""
        files = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
        records = {name: FileRecord(sha256=_sha256(data), size=len(data)) for name, data in files.items()}
        who = RunIdentity(kind="LoRAJob", namespace="team", name="job", uid="1")
        lineage = Lineage(served_name=BASE, method="LoRA")
        manifest = Manifest(created="2026-11-27T00:00:00Z", run=who, files=records, lineage=lineage).to_json()
        client = self.store.client()
        for name, data in (files | {"manifest.json": manifest}).items():
            client.put_object(Bucket="adapters", Key=f"{place}/{name}", Body=data)
        name = place.partition("/")[0]
        return DesiredAdapter(name=name, uri=f"s3://adapters/{place}", manifest_sha256=_sha256(manifest))

    def want(self, *adapters: DesiredAdapter) -> None:
        """Have these served, beside the others under other names."""
        self.wanted |= {each.name: each for each in adapters}
        self._write()

    def _write(self) -> None:
        self.revision += 1
        write_desired(self.folder, Desired(revision=self.revision, adapters=list(self.wanted.values())))

    async def ask(self, model: str, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
        """Return the gateway's answer, its status among it."""
        return await ask(self.client, self.gateway.url, model, prompt, max_tokens=tokens, **more)

    async def served(self, adapter: DesiredAdapter) -> None:
        """Wait for the first answer of this version."""
        wanted = engine_name(adapter.name, str(adapter.manifest_sha256))
        async with asyncio.timeout(SERVED_SECONDS):
            while (await self.ask(adapter.name, "Hello", 1)).get("model") != wanted:
                await asyncio.sleep(0.02)

    def engine_cpu(self) -> float:
        """Return the seconds of CPU that the engine's processes have used."""
        assert self.engine.process
        return sum(cpu_of(pid) for pid in of_session(self.engine.process.pid))


async def ask(client: aiohttp.ClientSession, url: str, model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """Return the answer to a completion with the likeliest tokens: its JSON and its status."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **more}
    async with client.post(url + COMPLETIONS, json=body) as answer:
        return {"status": answer.status, **(await answer.json())}


def tokens_of(answer: dict[str, Any]) -> list[int]:
    """Return the tokens of an answer; raises SystemExit where it has none."""
    if answer["status"] != 200:
        raise SystemExit(f"refused: {answer}")
    found: list[int] = answer["choices"][0]["token_ids"]
    return found


@asynccontextmanager
async def replica(folder: Path, model: Path) -> AsyncIterator[Replica]:
    """Start everything, and end it."""
    flags = [flag for flag in plan.engine_arguments(SPEC) if not flag.startswith("--uds")]
    engine = EngineProcess(Kind.VLLM, folder, [str(model), *flags], plan.engine_environment(SPEC, (FIX,)))
    with s3_server(folder / "s3") as store:
        secret = folder / "secret"
        secret.mkdir()
        for key, value in store.environment().items():
            (secret / key).write_text(value)
        mounted = MountedSecret(name="s3", path=str(secret), field="spec.adapterSecretRef")
        try:
            await asyncio.to_thread(engine.start)
            connector = aiohttp.UnixConnector(str(engine.socket), limit=0)
            async with (
                started_gateway(folder, str(engine.socket), model_dir=str(model), adapter_secret=mounted) as gateway,
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as straight,
                new_client() as client,
            ):
                yield Replica(folder, store, engine, gateway, straight, client)
        finally:
            engine.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server with a bucket for adapters."""
    with S3Server(folder, buckets=("adapters",)).temporary() as server:
        yield server


@asynccontextmanager
async def started_gateway(folder: Path, engine_socket: str, **more: Any) -> AsyncIterator[GatewayProcess]:
    """Start the gateway's process as a pod does, and wait until it is ready."""
    port = free_port()
    write_desired(folder, Desired(revision=1))
    paths = {"model_dir": str(folder / "model"), "adapters_dir": str(folder / "adapters")}
    spec = ServeSpec(
        identity=RunIdentity(kind="AdapterServer", namespace="team", name="support", uid="1"),
        model=ModelSpec(uri=SPEC.model.uri),
        served_name=BASE,
        max_rank=SPEC.engine.max_rank,
        max_adapters_in_batch=SPEC.engine.max_adapters_in_batch,
        max_loaded_adapters=SPEC.engine.max_loaded_adapters,
        port=port,
        engine_socket=engine_socket,
        desired_file=str(folder / "adapters.json"),
        **(paths | more),
    )
    (folder / "serve.json").write_text(spec.model_dump_json(by_alias=True))
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*ENDS_WITH_PARENT, sys.executable, "-m", "tunery_server", "gateway", str(folder / "serve.json")),
            stderr=log,
            env=os.environ,
        )
    try:
        gateway = GatewayProcess(process, f"http://127.0.0.1:{port}", folder / "gateway.log")
        await _until_ready(gateway.url)
        yield gateway
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(120), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def new_client() -> aiohttp.ClientSession:
    """Return a client without a limit of connections, and with patience."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600))


def write_desired(folder: Path, desired: Desired) -> None:
    """Exchange the list of adapters, whole at every instant."""
    draft = folder / "adapters.json.new"
    draft.write_text(desired.model_dump_json(by_alias=True))
    draft.replace(folder / "adapters.json")


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that the threads of a process have used so far; 0 where it has ended."""
    try:
        return sum(
            int(Path(task, "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:
        return 0.0


def of_session(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
