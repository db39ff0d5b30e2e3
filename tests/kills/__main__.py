"""Kill training runs at random instants, and compare their weights with those of a run that was left alone.

    python -m kills [--kills 30] [--terms 10] [--seed 1] [--rate 1000000] [--cut 0.5]

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file

from tunery_api.exitcodes import ExitCode

from bench.meter import cpu_seconds
from cluster.s3 import S3Server
from kills.bad_network import BadNetwork
from kit.story import command, environment, make_rows, manifest, write_rows
from kit.tiny_models import write_chat_model

BUCKET: Final = "adapters"
_LONGEST: Final = 1200.0
"""Seconds that one attempt may take before something hangs."""
_INSTANT: Final = (5.0, 40.0)
"""CPU seconds after which an attempt is killed: counted so, a busy machine kills no earlier (a start takes some 8)."""
_WAITED: Final = 4.0
"""Seconds of the clock for each of them at most: the process may be waiting for the network."""
STEPS_A_SIGNAL: Final = 600
"""Optimizer steps for each signal that is to come: more than an attempt takes before it is sent."""
TRAINING: Final = {
    "learningRate": "2e-3",
    "batchSize": 2,
    "gradientAccumulation": 2,
    "maxLength": 128,
    "precision": "Float32",
}
CASES: Final[dict[str, dict[str, Any]]] = {
    "LoRA, packed": {"lora": {"rank": 8, "dropout": "0.1"}, "training": {**TRAINING, "packing": True}},
    "QLoRA": {"method": "QLoRA", "lora": {"rank": 8, "dropout": "0.1"}, "training": {**TRAINING, "packing": False}},
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


def write_case(folder: Path, changes: dict[str, Any], output: str) -> Path:
    """Write a manifest beside model and data, and return its path."""
    folder.mkdir(parents=True)
    write_chat_model(folder / "model")
    write_rows(folder / "data.jsonl", make_rows(160))
    checkpoint, output_block = {"everySteps": 15}, {"uri": output}
    text = yaml.safe_dump(manifest(folder, checkpoint=checkpoint, output=output_block, **changes))
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


def attempt(path: Path, variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run, or start it again."""
    with log.open("ab") as out:
        words = command("run", path, "--work-dir", path.parent / "work")
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
    if waiting:
        raise SystemExit(f"the run was over before {len(waiting)} of its signals: make it longer")
    if 3 * toll.resumed < len(signals):
        raise SystemExit(f"after {len(signals)} signals it resumed {toll.resumed} times: they came before a checkpoint")
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e6)
    parser.add_argument("--cut", type=float, default=0.5)
    options = parser.parse_args()
    draw, wrong = random.Random(options.seed), []
    signals = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
    draw.shuffle(signals)
    print("| run | SIGKILL | SIGTERM | resumed | failed attempts | cut connections | largest difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        server = S3Server(Path(place) / "s3")
        server.start()
        try:
            for index, (name, changes) in enumerate(CASES.items()):
                network = BadNetwork(("127.0.0.1", server.ports["s3"]), options.rate, options.cut, options.seed + index)
                network.start()
                waiting = signals[index :: len(CASES)]
                changes["training"]["maxSteps"] = STEPS_A_SIGNAL * (len(waiting) + 1)
                alone = left_alone(Path(place) / f"alone-{index}", changes)
                path = write_case(Path(place) / f"killed-{index}", changes, f"s3://{BUCKET}/run-{index}")
                variables = server.environment() | {"AWS_ENDPOINT_URL": network.endpoint}
                toll = disturbed(path, variables, waiting, draw)
                network.stop()
                found = published(server, f"run-{index}", Path(place) / f"found-{index}")
                apart = difference(alone, found)
                same = apart == 0.0 and evaluations(alone) == evaluations(found)
                wrong += [] if same else [name]
                print(
                    f"| {name} | {toll.kills} | {toll.terms} | {toll.resumed} | {toll.failed} | {network.cuts} | "
                    f"{apart:g} |",
                    flush=True,
                )
        finally:
            server.stop()
    if wrong:
        raise SystemExit(f"not the weights or evaluations of the run that was left alone: {', '.join(wrong)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
