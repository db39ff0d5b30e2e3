"""The step of two processes beside torchrun, DDP and TRL: SmolLM2-135M, the same packed rows, seed and type.

    OMP_NUM_THREADS=1 python -m bench.together [--lengths 512] [--methods LoRA QLoRA] [--precisions Float32] [--steps 4]

Each variant in processes of its own, in turn, `--rounds` times: ours on two processes, TRL's SFTTrainer under torchrun
on two, and ours on one, whose step has the same two rows. Tokens of all processes per second of the clock: leave the
machine alone meanwhile. Prints a table in Markdown, ratios within a round; ends with an error where ours is slower than
0.95 of TRL's, or losses in float32 differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tools.cluster.ports import free_port

Json = dict[str, Any]

WORLD: Final = 2
VARIANTS: Final = ("ours on two", "TRL on two", "ours on one")
GOAL: Final = 0.95
TOLERANCES: Final = (1e-5, 1e-3)
"""Of the losses in float32: after one update, which only the same gradients make; and to the end. AdamW's first steps
go by the sign of a gradient, whose last digits differ where sums have another order, and more from step to step."""
_ANSWER: Final = "answer: "


def main() -> None:
    options = _options()
    if options.variant:
        answer = _run(options)
        if os.environ.get("RANK", "0") == "0":  # torchrun's; of one process's output both lines would come
            print(_ANSWER + json.dumps(answer), flush=True)
        return
    failed = False
    print(
        "| L | method | type | ours on two, tokens/s | of torchrun, DDP, TRL | of ours on one | losses, ours and TRL |"
    )
    print("|---|---|---|---|---|---|---|")
    for length in options.lengths:
        for method in options.methods:
            for precision in options.precisions:
                found = [_round(length, method, precision, options.steps) for _ in range(options.rounds)]
                failed |= _tell((length, method, precision), found)
    sys.exit(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", nargs="*", type=int, default=[512])
    parser.add_argument("--methods", nargs="*", default=["LoRA", "QLoRA"])
    parser.add_argument("--precisions", nargs="*", default=["Float32"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    return parser.parse_args()


def _tell(case: tuple[int, str, str], rounds: list[dict[str, Json]]) -> bool:
    """Print the row of a case; return whether it misses what is asked for."""
    ours, trl, one = ([found[name]["speed"] for found in rounds] for name in VARIANTS)
    beside, gain = (statistics.median(a / b for a, b in zip(ours, other, strict=True)) for other in (trl, one))
    mine, theirs = (rounds[0][name]["losses"] for name in VARIANTS[:2])
    apart = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    losses = f"{mine[-1]:.4f}, {theirs[-1]:.4f}"
    print(
        f"| {' | '.join(map(str, case))} | {statistics.median(ours):.0f} | {beside:.2f} × | {gain:.2f} × | {losses} |"
    )
    sys.stdout.flush()
    differ = any(each > limit for each, limit in zip((apart[1], max(apart)), TOLERANCES, strict=True))
    return beside < GOAL or (case[2] == "Float32" and differ)


def _round(length: int, method: str, precision: str, steps: int) -> dict[str, Json]:
    common = ["--lengths", str(length), "--methods", method, "--precisions", precision, "--steps", str(steps)]
    return {variant: _answer(variant, ["bench.together", *common, "--variant", variant]) for variant in VARIANTS}


def _answer(variant: str, module: list[str]) -> Json:
    """Return what the first process of a variant says."""
    port = str(free_port())
    alone = [sys.executable, "-m", *module]
    commands = [[*alone, "--port", port, "--rank", str(rank)] for rank in range(WORLD if "two" in variant else 1)]
    if variant.startswith("TRL"):
        commands = [[sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(WORLD), "-m", *module]]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    begun = [subprocess.Popen(each, env=variables, stdout=subprocess.PIPE, text=True) for each in commands]
    said = [each.communicate()[0] for each in begun]
    if any(each.returncode for each in begun):
        raise SystemExit(f"{variant} has failed")
    return dict(json.loads(said[0].split(_ANSWER, 1)[1].splitlines()[0]))


def _run(options: argparse.Namespace) -> Json:
    """Train a few steps by one variant; return tokens per second after the first step, and the losses."""
    import torch

    from tunery_trainer.process.place import Place
    from tunery_trainer.team.team import join

    from bench.training_variants import ours, prepared, trl_packed

    steps = options.steps + 1
    case = prepared(options.methods[0], options.precisions[0], options.lengths[0], WORLD * steps)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.variant == "TRL on two":
            times, tokens, losses = trl_packed(case, folder, steps, time.perf_counter)
        else:
            devices = WORLD if options.variant == "ours on two" else 1
            team = join(Place(device=options.rank, devices=devices, port=options.port), sharded=False)
            times, tokens, losses = ours(case, folder, steps, time.perf_counter, (team, WORLD))
    return {"speed": WORLD * sum(tokens[1:]) / (times[-1] - times[0]), "losses": losses}


if __name__ == "__main__":
    main()
