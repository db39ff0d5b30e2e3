"""Kill training runs at random instants, and compare their weights with those of a run that was left alone.

    python -m chaos.kills [--kills 30] [--terms 10] [--seed 1] [--rate 1000000] [--cut 0.5] [--runs QLoRA AdaLoRA]

For each of LoRA, QLoRA and AdaLoRA (with dropout, several passes a step, LoRA packed): one run to the end with a
local disk for a store, then the same run with a real S3 server behind a network of `--rate` bytes a second that resets
a share of its connections, killed (SIGKILL, SIGTERM) at random instants and started again, as a Job would. It ends with
an error unless every published tensor is equal, bit for bit, and every evaluation, too, and where too few attempts were
killed with a checkpoint to go on from. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from tunery_api.reasons import ExitCode

from bench.meter import cpu_seconds
from chaos.kills.bad_network import BadNetwork
from kit.story import command, environment, make_rows, manifest, write_rows
from kit.tiny_models import write_chat_model
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.s3 import S3Server

BUCKET: Final = "adapters"
_LONGEST: Final = 1200.0
"""Seconds that one attempt may take before something hangs."""
_INSTANT: Final = (5.0, 60.0)
"""CPU seconds after which an attempt is killed: counted so, a busy machine kills no earlier (a start takes 8 to 20)."""
_WAITED: Final = 4.0
"""Seconds of the clock for each of them at most: the process may be waiting for the network."""
STEPS_A_SIGNAL: Final = 600
"""Optimizer steps for each signal that is to come: more than an attempt takes before it is sent."""
TRAINING: Final = {
    "learningRate": 2e-3,
    "batchSize": 2,
    "gradientAccumulation": 2,
    "maxLength": 128,
    "precision": "Float32",
}
CASES: Final[dict[str, dict[str, Any]]] = {
    "LoRA, packed": {"lora": {"rank": 8, "dropout": 0.1}, "training": {**TRAINING, "packing": True}},
    "QLoRA": {"method": "QLoRA", "lora": {"rank": 8, "dropout": 0.1}, "training": {**TRAINING, "packing": False}},
    "AdaLoRA": {"method": "AdaLoRA", "lora": None, "training": {**TRAINING, "packing": False}},
}


@dataclass
class Toll:
    """What was done to a run."""

    kills: int = 0
    terms: int = 0
    failed: int = 0
    """Attempts that ended by themselves, since the network gave them no chance; a Job tries again."""
    resumed: int = 0
    left: int = 0
    """Signals that were still to come as the run ended."""

    def doubts(self) -> list[str]:
        """Return why this shows too little, even of equal weights."""
        signals = self.kills + self.terms
        over = [f"the run was over before {self.left} of its signals: make it longer"] if self.left else []
        few = 3 * self.resumed < signals
        return over + ([f"after {signals} signals it resumed {self.resumed} times only"] if few else [])


def write_case(folder: Path, changes: dict[str, Any], output: str) -> Path:
    """Write a manifest beside model and data, and return its path."""
    folder.mkdir(parents=True)
    write_chat_model(folder / "model")
    write_rows(folder / "data.jsonl", make_rows(160))
    checkpoint, output_block = {"everySteps": 15}, {"uri": output}
    text = json.dumps(manifest(folder, checkpoint=checkpoint, output=output_block, **changes))
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


def attempt(path: Path, variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run, or start it again."""
    with log.open("ab") as out:
        words = [*ENDS_WITH_PARENT, *command("run", path, "--work-dir", path.parent / "work")]
        return subprocess.Popen(words, env=environment(**variables), stdout=out, stderr=subprocess.STDOUT)


def left_alone(folder: Path, changes: dict[str, Any]) -> Path:
    """Run to the end on the local disk, and return what was published."""
    path = write_case(folder, changes, f"file://{folder}/out")
    done = attempt(path, {}, folder / "log").wait(_LONGEST)
    if done != ExitCode.OK:
        raise SystemExit(f"the run that was left alone ended with {done}:\n{(folder / 'log').read_text()[-2000:]}")
    return folder / "out"


def disturbed(path: Path, variables: dict[str, str], signals: list[signal.Signals], draw: random.Random) -> Toll:
    """Run to the end with these signals at random instants, each attempt on the disk that the last one left or not."""
    toll, log, waiting = Toll(), path.parent / "log", list(signals)
    while True:
        process, began = attempt(path, variables, log), time.monotonic()
        if waiting:
            wait_until(process, draw.uniform(*_INSTANT))
        if waiting and process.poll() is None:
            sent = waiting.pop()
            process.send_signal(sent)
            toll.kills += sent is signal.SIGKILL
            toll.terms += sent is signal.SIGTERM
        code = process.wait(_LONGEST)
        print(f"  exit {code} after {time.monotonic() - began:.0f} s, {len(waiting)} signals left", file=sys.stderr)
        if code == ExitCode.OK:
            break
        if code not in (-signal.SIGKILL, ExitCode.TERMINATED):
            toll.failed += 1
        if draw.random() < 0.5:
            # Another node: nothing on its disk.
            shutil.rmtree(path.parent / "work", ignore_errors=True)
    toll.resumed = log.read_text().count("Resuming from the checkpoint of step")
    toll.left = len(waiting)
    return toll


def wait_until(process: subprocess.Popen[bytes], instant: float) -> None:
    """Return once the process has taken `instant` CPU seconds, has waited too long for them, or has ended."""
    until = time.monotonic() + instant * _WAITED
    while process.poll() is None and time.monotonic() < until and cpu_seconds(process.pid) < instant:
        time.sleep(0.02)


def published(server: S3Server, prefix: str, folder: Path) -> Path:
    """Download what was published, and check that nothing else is left below the output."""
    client = server.client()
    folder.mkdir(parents=True)
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]
    for key in keys:
        target = folder / key.removeprefix(prefix).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(BUCKET, key, str(target))
    told = json.loads((folder / "manifest.json").read_text())
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    strangers = there - set(told["files"]) - {"manifest.json"}
    if strangers:
        raise SystemExit(f"below the output lie {sorted(strangers)}, which the manifest does not name")
    return folder


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of a published weight; infinite where they are not of one adapter."""
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return float("inf")
    return max(float((first[name] - second[name]).abs().max()) if first[name].numel() else 0.0 for name in first)


def evaluations(folder: Path) -> Any:
    """Return the evaluations that a manifest tells of."""
    return json.loads((folder / "manifest.json").read_text())["lineage"]["evaluations"]


@dataclass(frozen=True)
class Bench:
    """Where runs publish, and what is done to them."""

    server: S3Server
    folder: Path
    rate: float
    cut: float
    seed: int


def one_run(bench: Bench, name: str, signals: list[signal.Signals]) -> list[str]:
    """Kill a run, print its row, and return what is wrong with it."""
    changes = CASES[name] | {"training": CASES[name]["training"] | {"maxSteps": STEPS_A_SIGNAL * (len(signals) + 1)}}
    prefix = name.lower().replace(", ", "-")
    network = BadNetwork(("127.0.0.1", bench.server.ports["s3"]), bench.rate, bench.cut, bench.seed)
    network.start()
    alone = left_alone(bench.folder / f"alone-{prefix}", changes)
    path = write_case(bench.folder / f"killed-{prefix}", changes, f"s3://{BUCKET}/{prefix}")
    variables = bench.server.environment() | {"AWS_ENDPOINT_URL": network.endpoint}
    toll = disturbed(path, variables, signals, random.Random(bench.seed))
    network.stop()
    found = published(bench.server, prefix, bench.folder / f"found-{prefix}")
    apart = difference(alone, found)
    counts = (toll.kills, toll.terms, toll.resumed, toll.failed, network.cuts)
    print(f"| {name} | {' | '.join(map(str, counts))} | {apart:g} |", flush=True)
    same = apart == 0.0 and evaluations(alone) == evaluations(found)
    return toll.doubts() + ([] if same else ["not the weights or evaluations of the run that was left alone"])


@contextmanager
def storage() -> Iterator[tuple[S3Server, Path]]:
    """A real S3 server, and a folder, for the time of the body."""
    with tempfile.TemporaryDirectory() as place, S3Server(Path(place) / "s3").temporary() as server:
        yield server, Path(place)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e6)
    parser.add_argument("--cut", type=float, default=0.5)
    parser.add_argument(
        "--runs", nargs="+", choices=CASES, default=list(CASES), help="each with its share of the signals"
    )
    options = parser.parse_args()
    signals = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
    random.Random(options.seed).shuffle(signals)
    print("| run | SIGKILL | SIGTERM | resumed | failed attempts | cut connections | largest difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    wrong: list[str] = []
    with storage() as (server, place):
        for index, name in enumerate(CASES):
            if name in options.runs:
                bench = Bench(server, place, options.rate, options.cut, options.seed + index)
                wrong += [f"{name}: {each}" for each in one_run(bench, name, signals[index :: len(CASES)])]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
