"""Memory and time of the real preflight over generated chat rows of a chosen size, packed or not, cached or not."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from bench.sentences import sentences
from tools.cluster.model import ensure as ensure_model

MODES: Final = ("packed", "plain", "cached")
"""Packed and not, as a scan; and packed into the namespace's cache, as preflight does it where there is one."""
SAMPLED_SECONDS: Final = 0.5
TOLD_SECONDS: Final = 60.0
_TEXTS: Final = 4096
_REPEATED: Final = 1000
"""Every so many rows one stands there again."""


def main() -> None:
    """Print one JSON line for each mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.2, help="10^9 bytes of JSON lines")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--folder", type=Path, help="where the file lies while this runs; it is removed at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunery-large-", dir=arguments.folder) as name:
        folder = Path(name)
        write_model(folder / "model")
        rows = write_rows(folder / "data.jsonl", int(arguments.gigabytes * 1e9))
        for mode in arguments.modes:
            print(json.dumps({"mode": mode, "rows": rows} | measure(folder, mode)), flush=True)


def write_model(folder: Path) -> None:
    """Write a model of next to no weights with SmolLM2's tokenizer and chat template."""
    source = ensure_model()
    folder.mkdir()
    for path in source.iterdir():
        if "token" in path.name or path.suffix in (".jinja", ".txt"):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=config["vocab_size"], num_key_value_heads=1, **size)).save_pretrained(
        folder
    )


def write_rows(path: Path, size: int) -> int:
    """Write conversations of one to four questions with answers until the file has `size` bytes; return how many.

    Each holds its number, so all are different, but for every thousandth one, which repeats the one before.
    """
    drawn, texts = random.Random(42), _texts()
    count = written = 0
    line = b""
    with path.open("wb", buffering=1 << 20) as file:
        while written < size:
            count += 1
            if count % _REPEATED:
                line = _row(count, drawn, texts)
            file.write(line)
            written += len(line)
    return count


def _texts() -> list[str]:
    """Return texts of one to twelve sentences, as they stand within JSON."""
    drawn, known = random.Random(7), sentences()
    return [json.dumps(" ".join(drawn.choices(known, k=drawn.randint(1, 12))))[1:-1] for _ in range(_TEXTS)]


def _row(number: int, drawn: random.Random, texts: list[str]) -> bytes:
    turns = []
    for turn in range(drawn.randint(1, 4)):
        asked, answered = drawn.choice(texts), drawn.choice(texts)
        turns.append(
            f'{{"role": "user", "content": "{number}.{turn} {asked}"}}, '
            f'{{"role": "assistant", "content": "{answered}"}}'
        )
    return f'{{"messages": [{", ".join(turns)}]}}\n'.encode()


def measure(folder: Path, mode: str) -> dict[str, Any]:
    """Run preflight by its command line, as a pod does; return what it took."""
    work = folder / mode
    work.mkdir()
    run = work / "run.json"
    run.write_text(json.dumps(run_spec(folder, work, packing=mode != "plain", cached=mode == "cached")))
    read_bytes = (folder / "data.jsonl").stat().st_size
    with (work / "out.txt").open("w") as out:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "tunery_trainer", "preflight", str(run)],
            env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        samples = list(sampled(process, start))
    said = (work / "out.txt").read_text()
    if process.returncode:
        raise SystemExit(f"preflight ended with {process.returncode}: {said[-2000:]}")
    print(said, file=sys.stderr)
    shutil.rmtree(work)
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 1), "MB_per_second": round(read_bytes / 1e6 / seconds, 2)} | figures(
        samples, read_bytes / 1e9
    )


def run_spec(folder: Path, work: Path, *, packing: bool, cached: bool) -> dict[str, Any]:
    """Return the run.json that the operator would write, with files in place of S3."""
    spec = {
        "model": {"uri": f"file://{folder}/model"},
        "dataset": {"uri": f"file://{folder}/data.jsonl"},
        "method": "LoRA",
        "training": {"maxSteps": 1000, "maxLength": 2048, "packing": packing},
        "output": {"uri": f"file://{work}/out"},
        "resources": {"gpus": 0},
    }
    content: dict[str, Any] = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "large", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": f"file://{work}/out",
        "reportUri": f"file://{work}/report",
        "memoryBytes": 8 * 2**30,
        "workDir": f"{work}/work",
        "local": True,
    }
    return content | ({"cache": {"path": f"{work}/cache"}} if cached else {})


@dataclass(frozen=True)
class Sample:
    """What a process and its children took at one moment."""

    seconds: float
    resident_mb: float
    """10^6 bytes, pages of mapped files included."""
    anonymous_mb: float
    """Of those, what is no page of a file: what only swap could take away."""
    read_share: float
    """Of the data set, what was read: by how far the file is open."""


def sampled(process: subprocess.Popen[bytes], start: float) -> Iterator[Sample]:
    """Look at a process and its children until it ends, and say now and then how it goes."""
    told = 0.0
    while process.poll() is None:
        pids = [process.pid, *children(process.pid)]
        taken = [memory(pid) for pid in pids]
        position = max((position_of(pid) for pid in pids), default=0.0)
        resident, anonymous = (sum(each[kind] for each in taken) for kind in (0, 1))
        sample = Sample(time.monotonic() - start, resident, anonymous, position)
        if sample.seconds >= told + TOLD_SECONDS:
            told = sample.seconds
            print(f"{told:.0f} s: {position:.1%} read, {resident:.0f} MB", file=sys.stderr, flush=True)
        yield sample
        time.sleep(SAMPLED_SECONDS)


def children(pid: int) -> list[int]:
    """Return the processes below one, at any depth."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*found, *(below for child in found for below in children(child))]


def memory(pid: int) -> list[float]:
    """Return a process's resident memory and the anonymous part of it, in MB; zeros where it has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return [int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon")]
    except (OSError, KeyError):
        return [0.0, 0.0]


def position_of(pid: int) -> float:
    """Return how far into data.jsonl a process has read, as a share of it; 0 where it has it not open."""
    share = 0.0
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.endswith("/data.jsonl"):
                told = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                share = max(share, int(told.split("pos:")[1].split()[0]) / Path(target).stat().st_size)
    except OSError:
        pass
    return share


def figures(samples: list[Sample], gigabytes: float) -> dict[str, Any]:
    """Return peaks in MB, also of what comes after the last row, and how memory grows in MB a GB of data.

    Growth is the slope of a straight line through the samples of the second half of the rows: 0 is flat.
    """
    reading = reading_pass(samples)
    after = [sample for sample in samples if sample.seconds > reading[-1].seconds] or reading[-1:]
    second = [sample for sample in reading if sample.read_share >= 0.5]
    read = np.array([sample.read_share * gigabytes for sample in second])
    found: dict[str, Any] = {"seconds_reading": round(reading[-1].seconds - reading[0].seconds, 1)}
    for name in ("resident_mb", "anonymous_mb"):
        values = [getattr(sample, name) for sample in second]
        found[name] = {
            "peak": round(max(getattr(sample, name) for sample in samples)),
            "after_the_last_row": round(max(getattr(sample, name) for sample in after)),
            "MB_per_GB": round(float(np.polyfit(read, values, 1)[0]), 1) if len(second) > 3 else None,
        }
    return found


def reading_pass(samples: list[Sample]) -> list[Sample]:
    """Return the samples of the longest pass over the file: the one that tokenises, not the one that hashes."""
    passes: list[list[Sample]] = [[]]
    for before, sample in pairwise(samples):
        if sample.read_share < before.read_share or not sample.read_share:
            passes.append([])
        if sample.read_share:
            passes[-1].append(sample)
    return max(passes, key=len)


if __name__ == "__main__":
    main()
