"""A batch without a cluster: a real S3 server, and a real gateway before an engine that answers by the request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aiohttp import web

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.manifest import Manifest
from tunery_api.runspec import MountedSecret, RunIdentity, RunResult, RunSpec
from tunery_api.serving import engine_name
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import Credentials, ambient
from tunery_server.batch import program
from tunery_server.batch.keeping import PartSize
from tunery_server.batch.parts import Mark
from tunery_server.batch.progress import Progress
from tunery_server.batch.run import Pace, run_batch
from tunery_server.batch.server import Patience
from tunery_server.batch.stopping import StopSignal
from tunery_server.threads import in_thread

from kit.s3 import credentials
from kit.server.gateway import BASE, CHAT, Site, open_site
from tools.cluster.s3 import S3Server

TONE_SHA = "77" * 32
TONE = engine_name("tone", TONE_SHA)
HURRIED = Patience(
    outage=3.0, known_outage=0.2, failures=3, first_pause=0.05, longest_pause=0.2, unknown_model=0.0, renewed_key=1.0
)
MODELS = (BASE, "support-bot", "tone")
RESPONSES = "/v1/responses"


def request(number: int, **more: Any) -> dict[str, Any]:
    """Return a line; every third asks for another model."""
    body = {"model": MODELS[number % 3], "messages": [{"role": "user", "content": f"é {number}"}]} | more
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": body}


def jsonl(documents: Iterable[Any]) -> bytes:
    """Return the documents, one a line."""
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@dataclass
class Oracle:
    """An engine whose answer is decided by the question; it counts how often each is asked."""

    asked: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    broken: set[str] = field(default_factory=set)
    """Contents that are refused with 400."""
    trouble: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    words: str = "a bad day"
    """What is said then."""
    now: int = 0
    most: int = 0
    """Requests that were in flight at a time."""

    async def __call__(self, asked: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        content = str(body.get("messages") or body.get("input") or body.get("prompt"))
        self.asked[content] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds * random.uniform(0.2, 1.8))
        finally:
            self.now -= 1
        if self.trouble:
            return web.json_response({"error": {"message": self.words}}, status=self.trouble.pop(0))
        if content in self.broken:
            return web.json_response({"error": {"message": "too long", "code": "too_long"}}, status=400)
        text = hashlib.sha256(f"{body['model']}{content}".encode()).hexdigest()
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        if asked.path == RESPONSES:
            usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
        return web.json_response({"id": "x", "model": body["model"], "choices": [text], "usage": usage})


@dataclass
class Table:
    """What a batch meets, and what came of it; without an S3 server all lies in folders."""

    folder: Path
    s3: S3Server | None
    root: str
    """The URI below which all of it lies."""
    site: Site
    oracle: Oracle
    pace: Pace
    keys: MountedSecret | None = None
    uid: str = "u-1"
    output: str | None = None
    """The folder of the result, where it is not the batch's own."""

    def place(self, name: str) -> StorePath:
        """Return a place below the root."""
        return open_store(f"{self.root}/{name}", self._credentials, "spec.output.uri")

    @cached_property
    def _credentials(self) -> Credentials:
        return credentials(self.s3) if self.s3 else ambient()

    def put(self, data: bytes, name: str = "in.jsonl") -> str:
        """Store an input; return its URI."""
        if self.s3 is None:
            (self.folder / "data").mkdir(exist_ok=True)
            (self.folder / "data" / name).write_bytes(data)
            return f"pvc://data/{name}"
        self.place(name).store.put_bytes(name, data)
        return f"{self.root}/{name}"

    def spec(self, uri: str, **more: Any) -> RunSpec:
        """Return what the operator would write."""
        given = {"serverRef": {"name": "support"}, "input": {"uri": uri}, "concurrency": 4} | more
        if self.keys:
            given["apiKeySecretRef"] = {"name": "keys", "key": "batch"}
        return RunSpec(
            identity=RunIdentity(kind="BatchInference", namespace="team", name="nightly", uid=self.uid),
            batch_inference=BatchInferenceSpec.model_validate(given),
            server_url=f"{self.site.url}/v1",
            output_uri=f"{self.root}/{self.output or f'out-{self.uid}'}",
            checkpoint_uri=f"{self.root}/parts-{self.uid}",
            secrets=self._secrets(),
            volumes={"input": str(self.folder / "data")},
            image="server@sha256:1",
            work_dir=str(self.folder / f"work-{self.uid}"),
        )

    def _secrets(self) -> dict[str, MountedSecret]:
        found = {"api-key": self.keys} if self.keys else {}
        if self.s3 is None:
            return found
        secret = self.folder / "s3"
        secret.mkdir(exist_ok=True)
        for name, value in self.s3.environment().items():
            (secret / name).write_text(value)
        mounted = MountedSecret(name="s3", path=str(secret), field="spec.output.secretRef")
        return found | {"input": mounted, "output": mounted}

    async def run(self, uri: str, stop: StopSignal | None = None, **more: Any) -> RunResult:
        """Run a batch in this process; raises what it raises."""
        run, progress = self.spec(uri, **more), Progress()
        try:
            return await in_thread(lambda: run_batch(run, progress, stop or StopSignal(), self.pace))
        finally:
            progress.close()

    def read(self, name: str) -> bytes:
        """Return a published file."""
        return self.place(self.output or f"out-{self.uid}").read_bytes(name)

    def lines(self, name: str = "output.jsonl") -> list[dict[str, Any]]:
        """Return the lines of a published file."""
        return [json.loads(line) for line in self.read(name).splitlines()]

    def manifest(self) -> Manifest:
        return Manifest.model_validate_json(self.read("manifest.json"))

    def listed(self, name: str) -> list[str]:
        """Return the names of the objects below a folder."""
        place = self.place(name)
        return [place.relative(entry) for entry in place.store.list(place.prefix)]

    @property
    def parts(self) -> list[str]:
        return self.listed(f"parts-{self.uid}")

    def marks(self) -> list[Mark]:
        """Return what says of parts that they are whole."""
        place = self.place(f"parts-{self.uid}")
        names = [name for name in self.parts if name.startswith("part-") and name.endswith(".json")]
        return [Mark.model_validate_json(place.read_bytes(name)) for name in names]

    async def start(self, uri: str, variables: dict[str, str] | None = None, **more: Any) -> Program:
        """Start the program in a process of its own."""
        run, folder = self.spec(uri, **more), self.folder / f"program-{self.uid}"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        (folder / "pace.json").write_text(json.dumps(asdict(self.pace)))
        environment = os.environ | {"TUNERY_TERMINATION_PATH": str(folder / "words"), "PYTHONPATH": os.getcwd()}
        environment |= variables or {}
        with (folder / "log").open("ab") as log:
            command = (sys.executable, "-m", "kit.server.batch", str(folder))
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
        return Program(process, folder)


@dataclass
class Program:
    """The program in a process of its own."""

    process: asyncio.subprocess.Process
    folder: Path

    async def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and return the exit code."""
        if number is not None and self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    async def kill(self) -> None:
        """End it as the kernel does."""
        await self.end(signal.SIGKILL)

    @property
    def words(self) -> RunResult:
        return RunResult.model_validate_json((self.folder / "words").read_bytes())

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@asynccontextmanager
async def table(
    folder: Path, s3: S3Server | None = None, bucket: str = "", keys: MountedSecret | None = None
) -> AsyncIterator[Table]:
    """Yield a table with the base, support-bot and tone served."""
    root = f"s3://{bucket}" if s3 else (folder / "store").as_uri()
    async with open_site(folder, keys) as site:
        site.routes.serve("tone", TONE, TONE_SHA)
        oracle = Oracle()
        site.engine.handler = oracle
        yield Table(folder, s3, root, site, oracle, Pace(HURRIED, PartSize(lines=10, seconds=5.0), 1.0))


def pace_of(stored: dict[str, Any]) -> Pace:
    """Return what `start` has written."""
    return Pace(Patience(**stored["patience"]), PartSize(**stored["part"]), stored["grace_seconds"])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    from tunery_server.logs import configure_logging

    configure_logging()
    sys.exit(program.main(place / "run.json", pace_of(json.loads((place / "pace.json").read_text()))))
