"""What uploading checkpoints to a slow S3 server costs a training loop: steps beside an upload, and steps beside none.

One run by the trainer's own code against a real S3 server behind a network of `--rate` bytes a second. It saves every
so many steps; while a checkpoint is uploaded, steps are taken, and after it others, until the next one: so both kinds
take turns all along. Told is how long the loop stood still for the uploads, what they took of the CPU, and how much
longer a step is beside one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from tunery_trainer.cli import main as trainer
from tunery_trainer.resuming.checkpoints import CheckpointUploader
from tunery_trainer.training.trl_trainer import AdapterTrainer

from chaos.kills.bad_network import BadNetwork
from kit.story import write_rows
from tools.cluster.s3 import S3Server

VOCABULARY: Final = 8000
RANK: Final = 8
BUCKET: Final = "adapters"


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--every", type=int, default=16, help="steps from one checkpoint to the next")
    parser.add_argument("--rate", type=float, default=1e6, help="bytes a second")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        server = S3Server(Path(name) / "s3")
        server.start()
        try:
            with slow_way_to(server, arguments.rate) as endpoint:
                os.environ.update(server.environment() | {"AWS_ENDPOINT_URL": endpoint, "HF_HUB_OFFLINE": "1"})
                watch = Watch()
                watch.begin()
                run(Path(name), arguments.steps, arguments.every)
        finally:
            server.stop()
    print(json.dumps(watch.figures()), flush=True)


@contextmanager
def slow_way_to(server: S3Server, rate: float) -> Iterator[str]:
    """Yield an endpoint that passes on so many bytes a second; a process of its own, so that none of it is measured."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=pass_on, args=(there, server.ports["s3"], rate), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def pass_on(told: Connection, port: int, rate: float) -> None:
    """Tell the endpoint, and pass on until this process is ended."""
    network = BadNetwork(("127.0.0.1", port), rate, 0.0, 1)
    network.start()
    told.send(network.endpoint)
    threading.Event().wait()


def run(folder: Path, steps: int, every: int) -> None:
    """Train by the command line, in this process: model and data on the disk, checkpoints and output in S3."""
    write_model(folder / "model")
    words = [f"w{number}" for number in range(100, 400)]
    rows = [{"text": " ".join(words[(row * 7 + at) % 300] for at in range(200))} for row in range(64)]
    write_rows(folder / "data.jsonl", rows)
    spec = {
        "model": {"uri": f"file://{folder}/model"},
        "dataset": {"uri": f"file://{folder}/data.jsonl"},
        "method": "LoRA",
        "lora": {"rank": RANK},
        "training": {
            "maxSteps": steps, "batchSize": 1, "gradientAccumulation": 2, "maxLength": 128, "packing": False,
            "precision": "Float32", "gradientCheckpointing": False,
        },
        "evaluation": {"times": 1},
        "checkpoint": {"everySteps": every},
        "output": {"uri": f"s3://{BUCKET}/bench"},
        "resources": {"gpus": 0},
    }  # fmt: skip
    content = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "uploads", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": f"s3://{BUCKET}/bench",
        "checkpointUri": f"s3://{BUCKET}/checkpoints/u-1",
        "workDir": f"{folder}/work",
        "local": True,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(content))
    with redirect_stdout(sys.stderr):
        code = trainer(["train", str(path)])
    if code:
        raise SystemExit(f"the trainer ended with {code}")


def write_model(folder: Path) -> None:
    """Write a Llama of some 20 million random parameters, and a tokenizer of words."""
    torch.manual_seed(0)
    size = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **size)).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


@dataclass
class Step:
    """One optimizer step."""

    wall: float
    cpu: float
    """Of the thread that trains."""
    beside: bool
    """Whether an upload was under way from its beginning to its end."""
    alone: bool
    """Whether none was at either."""


@dataclass
class Upload:
    """One upload of a checkpoint."""

    seconds: float
    cpu: float
    """Seconds of all threads but the one that trains."""
    size: int
    """Bytes."""


@dataclass
class Watch:
    """Measures a run from within."""

    steps: list[Step] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """Seconds between two steps in which a checkpoint was written and handed over; not the last one's."""
    submits: list[float] = field(default_factory=list)
    """Seconds of each handing over."""
    uploads: list[Upload] = field(default_factory=list)
    closing: float = 0.0
    """Seconds that the end of the run waited for the last one."""
    uploading: bool = False

    def begin(self) -> None:
        """Watch every run of this process."""
        watch, make, training = self, AdapterTrainer.__init__, time.pthread_getcpuclockid(threading.get_ident())
        submit, store, close = CheckpointUploader.submit, CheckpointUploader._store_one, CheckpointUploader.close

        def stored(uploader: Any, step: int, snapshot: Path) -> None:
            size = sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())
            watch.uploading, began, cpu = True, time.perf_counter(), cpu_of_others(training)
            try:
                store(uploader, step, snapshot)
            finally:
                watch.uploading = False
                watch.uploads.append(Upload(time.perf_counter() - began, cpu_of_others(training) - cpu, size))

        def closed(uploader: Any, timeout_seconds: float) -> bool:
            began = time.perf_counter()
            done = close(uploader, timeout_seconds)
            watch.closing += time.perf_counter() - began
            return done

        def made(loop: Any, *args: Any, **kwargs: Any) -> None:
            make(loop, *args, **kwargs)
            loop.add_callback(Clock(watch))

        # Each is put round the product's own, which has no door for a clock.
        CheckpointUploader.submit = timed(submit, self.submits)  # type: ignore[method-assign]
        CheckpointUploader._store_one = stored  # type: ignore[method-assign]
        CheckpointUploader.close = closed  # type: ignore[method-assign]
        AdapterTrainer.__init__ = made  # type: ignore[method-assign]

    def figures(self) -> dict[str, Any]:
        """Return what was measured; the first step warms up, and does not count."""
        steps = self.steps[1:]
        beside, alone = ([each for each in steps if getattr(each, kind)] for kind in ("beside", "alone"))
        wall, cpu = (sum(getattr(each, kind) for each in steps) for kind in ("wall", "cpu"))
        return {
            "steps": {"beside": len(beside), "alone": len(alone), "all": len(steps)},
            "step_seconds": {"beside": middle(beside, "wall"), "alone": middle(alone, "wall")},
            "step_cpu_seconds": {"beside": middle(beside, "cpu"), "alone": middle(alone, "cpu")},
            "wall_more_percent": more(beside, alone, "wall"),
            "cpu_more_percent": more(beside, alone, "cpu"),
            "checkpoints": len(self.uploads),
            "checkpoint_mb": round(statistics.median(each.size for each in self.uploads) / 1e6, 2),
            "upload_seconds": round(statistics.median(each.seconds for each in self.uploads), 2),
            "cpu_of_uploads": {
                "ms_each": milliseconds([each.cpu for each in self.uploads]),
                "percent_of_training": share([each.cpu for each in self.uploads], cpu),
            },
            "handing_over": {"ms_each": milliseconds(self.submits), "percent": share(self.submits, wall)},
            "writing_and_handing_over": {"ms_each": milliseconds(self.pauses), "percent": share(self.pauses, wall)},
            "waiting_at_the_end_seconds": round(self.closing, 2),
            "training_cpu_seconds": round(cpu, 1),
        }


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Takes the time of each optimizer step, without what comes between two of them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._ended: tuple[float, int] | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        if self._ended is not None and len(self._watch.submits) > self._ended[1]:
            self._watch.pauses.append(time.perf_counter() - self._ended[0])
        self._began = (time.perf_counter(), time.thread_time(), self._watch.uploading)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        wall, cpu, before = self._began
        now = self._watch.uploading
        self._watch.steps.append(
            Step(time.perf_counter() - wall, time.thread_time() - cpu, before and now, not before and not now)
        )
        self._ended = (time.perf_counter(), len(self._watch.submits))


def cpu_of_others(clock: int) -> float:
    """Return the seconds of CPU of all threads but the one of this clock."""
    return time.process_time() - time.clock_gettime(clock)


def timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return `work` with its time appended to `seconds` each time."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    return measured


def milliseconds(seconds: list[float]) -> float | None:
    """Return the median in milliseconds."""
    return round(1e3 * statistics.median(seconds), 1) if seconds else None


def share(seconds: list[float], of: float) -> float:
    """Return what they add up to in percent of all steps."""
    return round(100 * sum(seconds) / of, 3)


def middle(steps: list[Step], kind: str) -> float | None:
    """Return the median of some steps."""
    return round(statistics.median(getattr(each, kind) for each in steps), 4) if steps else None


def more(steps: list[Step], others: list[Step], kind: str) -> float | None:
    """Return by how many percent the median step takes longer than the median of `others`."""
    one, other = middle(steps, kind), middle(others, kind)
    return round(100 * (one / other - 1), 2) if one and other else None


if __name__ == "__main__":
    main()
