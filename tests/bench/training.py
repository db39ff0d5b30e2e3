"""The step of training beside TRL's and beside the bare model: SmolLM2-135M, the same rows, seed and type.

    python -m bench.training [--lengths 1024 2048] [--methods LoRA QLoRA] [--precisions Float32 BFloat16] [--steps 3]

Each variant runs in a process of its own, in turn, the whole set `--rounds` times: ours and TRL's SFTTrainer on the
same packed rows (`bfd`), TRL's on the same examples padded, and the bare model with the adapter, forward, backward and
AdamW on one unpadded example as long as a row. Tokens are those of examples, without padding. Prints a table in
Markdown, ratios within a round; ends with an error where ours and TRL's packed loss differ by 1e-4 in float32.
The clock counts the process's CPU time, so that what runs beside it on the machine does not count; set
OMP_NUM_THREADS=1, since threads that wait for each other burn it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

VARIANTS: Final = ("ours", "TRL packed", "TRL padded", "bare")
TOLERANCE: Final = 1e-4


def main() -> None:
    options = _options()
    if options.variant:
        print(json.dumps(_run(options)))
        return
    failed = False
    print("| L | method | type | | tokens/CPU second | of TRL packed | of bare | peak, MB | loss of the last step |")
    print("|---|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        for method in options.methods:
            for precision in options.precisions:
                rounds = [_round(length, method, precision, options.steps) for _ in range(options.rounds)]
                print("\n".join(_lines((length, method, precision), rounds)), flush=True)
                ours, trl = (rounds[0][name]["losses"] for name in ("ours", "TRL packed"))
                apart = max(abs(a - b) for a, b in zip(ours, trl, strict=True))
                if precision == "Float32" and apart > TOLERANCE:
                    failed = True
                    print(f"ours and TRL's losses differ by {apart:.1e}: {ours} {trl}", file=sys.stderr)
    sys.exit(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", nargs="*", type=int, default=[1024, 2048])
    parser.add_argument("--methods", nargs="*", default=["LoRA", "QLoRA"])
    parser.add_argument("--precisions", nargs="*", default=["Float32", "BFloat16"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS)
    return parser.parse_args()


def _round(length: int, method: str, precision: str, steps: int) -> dict[str, Json]:
    common = ["--lengths", str(length), "--methods", method, "--precisions", precision, "--steps", str(steps)]
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "bench.training", *common, "--variant", variant]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
        if done.returncode:
            raise RuntimeError(f"{variant}: {done.stderr[-2000:]}")
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    return found


def _lines(case: tuple[int, str, str], rounds: list[dict[str, Json]]) -> Iterator[str]:
    for variant in VARIANTS:
        speeds = [found[variant]["speed"] for found in rounds]
        ratios = [
            statistics.median(found[variant]["speed"] / found[other]["speed"] for found in rounds)
            for other in ("TRL packed", "bare")
        ]
        peak, loss = rounds[0][variant]["peak"], rounds[0][variant]["losses"][-1]
        numbers = f"{statistics.median(speeds):.0f} | {ratios[0]:.2f} × | {ratios[1]:.2f} × | {peak:.0f} | {loss:.4f}"
        yield f"| {case[0]} | {case[1]} | {case[2]} | {variant} | {numbers} |"


def _run(options: argparse.Namespace) -> Json:
    """Train a few steps by one variant; return tokens per CPU second after the first step, peak memory, losses."""
    import torch

    from bench.training_variants import bare, ours, prepared, trl_packed, trl_padded

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = prepared(options.methods[0], options.precisions[0], options.lengths[0], options.steps + 1)
    torch.manual_seed(0)
    train = {"ours": ours, "TRL packed": trl_packed, "TRL padded": trl_padded, "bare": bare}[options.variant]
    with tempfile.TemporaryDirectory() as folder:
        times, tokens, losses = train(case, Path(folder), options.steps + 1, time.process_time)
    seconds = times[-1] - times[0]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"speed": sum(tokens[1:]) / seconds, "peak": peak, "losses": losses}


if __name__ == "__main__":
    main()
