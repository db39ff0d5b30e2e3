"""Check, ask and keep a file of many lines in a process of its own; print what it took. The server answers at once."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.runspec import RunIdentity, RunSpec
from tunery_common.inputs.mounts import Mounts
from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient
from tunery_server.batch.answers import Answer, Reply, answered
from tunery_server.batch.check import Problems, check
from tunery_server.batch.keeping import Kept
from tunery_server.batch.lines import InputLines, Line
from tunery_server.batch.parts import Parts
from tunery_server.batch.progress import Progress
from tunery_server.batch.publishing import Ended, publish
from tunery_server.batch.requests import Request
from tunery_server.batch.run import Batch, Pace, Stops, Target, _keep_asking
from tunery_server.batch.stopping import StopSignal


class Instant:
    """A server that answers each line with a kilobyte."""

    async def ask(self, line: Line, request: Request) -> Answer:
        await asyncio.sleep(0)
        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        return answered(line, request, Reply(200, f"r-{line.index}", {"text": "x" * 1000, "usage": usage}, "tone"))

    def words(self, seconds: float) -> None:
        """Nothing is waited for."""


def write(path: Path, count: int) -> None:
    """Write requests of some 300 bytes."""
    body = {"model": "tone", "messages": [{"role": "user", "content": "y" * 180}]}
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def main(folder: Path, count: int) -> None:
    """Do it, and print seconds, memory and what came of it as JSON."""
    write(folder / "in.jsonl", count)
    run = RunSpec(
        identity=RunIdentity(kind="BatchInference", namespace="n", name="b", uid="u"),
        batch_inference=BatchInferenceSpec.model_validate({"serverRef": {"name": "s"}, "input": {"uri": "pvc://c/in"}}),
        output_uri=(folder / "store" / "out").as_uri(),
        work_dir=str(folder / "work"),
    )
    work, lines, took = Mounts(run), InputLines(folder / "in.jsonl", "pvc://c/in"), {"start": _peak()}
    began = time.monotonic()
    problems = Problems(folder)
    checked = check(lines, None, folder, problems)
    took |= {"check_s": time.monotonic() - began, "checked": _peak()}
    parts = Parts(open_store((folder / "store" / "parts").as_uri(), ambient(), "x"), "b")
    batch = Batch(work, run.batch_inference, lines, checked, problems, parts, Pace(), Progress())
    kept = Kept.of(parts, parts.load())
    began = time.monotonic()
    stops = asyncio.run(_stops())
    marks, whole = asyncio.run(_keep_asking(batch, kept, Instant(), stops))
    took |= {"ask_s": time.monotonic() - began, "asked": _peak()}
    ended = Ended(run, batch.spec, checked, parts, sorted(marks.values(), key=lambda mark: mark.first), kept.tally)
    published = publish(ended, Target(work.output, run.identity), work.folder("result"))
    took |= {"published": _peak(), "whole": whole, "lines": kept.tally.answered, "bytes": published.size_bytes}
    print(json.dumps(took))


async def _stops() -> Stops:
    return Stops(asyncio.Event(), asyncio.Event(), StopSignal())


def _peak() -> int:
    """Return the largest memory so far, in MiB; what getrusage tells is the parent's until it is exceeded."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
