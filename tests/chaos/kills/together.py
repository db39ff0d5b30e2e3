"""Kill processes that train one adapter together, at random instants, and compare with a run that was left alone.

    python -m chaos.kills.together [--signals 20] [--seed 1] [--runs "two nodes" "two devices" "two of two"]

One run of each layout is left to its end; another one gets its share of the signals (SIGKILL and SIGTERM in turn), each
to any of its processes, and is started again as a Job would start it, on fresh disks: a node alone where the others
still wait for it. It ends with an error unless what is published is equal bit for bit, is published once, and every
process has ended within the seconds that the docs promise. Prints a table in Markdown: counts, the seconds from a
signal until all processes have ended, the difference.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tunery_api.reasons import ExitCode

from chaos.kills.__main__ import difference, evaluations, published, storage
from kit.nodes import Node, Nodes, finish, logs
from kit.run_files import RunFiles
from kit.story import make_rows, write_rows
from kit.tiny_models import write_chat_model
from tools.cluster.s3 import S3Server

LAYOUTS: Final = {"two nodes": (2, 1), "two devices": (1, 2), "two of two": (2, 2)}
"""Nodes, and the processes of each."""
ENDED_WITHIN: Final = 30.0
"""Seconds after a SIGKILL or SIGTERM of one process, in which all have to have ended."""
_TRAINS: Final = "Loading    the base model"
"""What a node prints once all have begun."""
_LONGEST: Final = 600.0
_STEPS_A_SIGNAL: Final = 150
_INSTANT: Final = (0.0, 20.0)
"""Seconds after the first step at which an attempt is disturbed; every fifth one while it starts."""
_SPEC: Final[dict[str, Any]] = {
    "lora": {"rank": 8, "dropout": 0.1},
    "training": {"gradientAccumulation": 4, "batchSize": 1, "learningRate": 2e-3, "precision": "Float32"},
    "checkpoint": {"everySteps": 10},
}


@dataclass
class Toll:
    """What was done to a run, and how it took it."""

    kills: int = 0
    terms: int = 0
    resumed: int = 0
    replaced: int = 0
    """Nodes that ended while the others waited for them."""
    seconds: list[float] = field(default_factory=list)
    """From each signal until every process had ended."""
    codes: list[list[int]] = field(default_factory=list)


def cluster_of(folder: Path, server: S3Server, layout: str, steps: int) -> Nodes:
    """Return the nodes of a run of so many steps, whose inputs are written and uploaded."""
    folder.mkdir(parents=True)
    write_chat_model(folder / "model")
    write_rows(folder / "data.jsonl", make_rows(160))
    nodes, devices = LAYOUTS[layout]
    spec = _SPEC | {"training": _SPEC["training"] | {"maxSteps": steps}}
    return Nodes(folder, RunFiles(folder, server).write, spec, nodes=nodes, devices=devices, cold=True)


def disturbed(cluster: Nodes, signals: list[signal.Signals], draw: random.Random) -> Toll:
    """Run to the end, with these signals to processes and at instants drawn at random."""
    toll, waiting = Toll(), list(signals)
    while True:
        begun = cluster.start()
        while waiting and reached(begun, starting=len(waiting) % 5 == 0, instant=draw.uniform(*_INSTANT)):
            sent, at = waiting.pop(), time.monotonic()
            toll.kills += sent is signal.SIGKILL
            toll.terms += sent is signal.SIGTERM
            hit = strike(begun, sent, draw)
            if is_waited_for(begun, hit):
                print(f"  {sent.name}: [{hit.process.returncode}], the others wait for it", file=sys.stderr, flush=True)
                toll.replaced += 1
                cluster.again(begun, hit)
                continue
            codes = finish(begun, _LONGEST)
            toll.seconds.append(time.monotonic() - at)
            print(f"  {sent.name}: {codes} after {toll.seconds[-1]:.1f} s", file=sys.stderr, flush=True)
            break
        else:
            codes = finish(begun, _LONGEST)
        toll.codes.append(codes)
        toll.resumed += "Resuming from the checkpoint of step" in begun[0].log.read_text()
        if codes[0] == ExitCode.OK:  # published: what becomes of the others is nothing to the Job
            return toll
        if set(codes) & {ExitCode.USER_ERROR, ExitCode.OK} or set(codes) == {ExitCode.PEER_LOST}:
            # No retry, another node's success without the first one's, or an end that nobody would count.
            raise SystemExit(f"exit codes {codes}:\n{logs(begun)[-4000:]}")


def strike(begun: list[Node], sent: signal.Signals, draw: random.Random) -> Node:
    """Send a signal to any of the processes that train, and return its node."""
    victim, hit = draw.choice([(rank, node) for node in begun for rank in node.ranks()])
    with suppress(ProcessLookupError):
        os.kill(victim, sent)
    return hit


def is_waited_for(begun: list[Node], hit: Node) -> bool:
    """Tell, once a node has ended, whether that was before all had begun: the others wait, and the Job replaces it."""
    hit.process.wait(ENDED_WITHIN)
    return len(begun) > 1 and not any(_TRAINS in node.log.read_text() for node in begun)


def reached(begun: list[Node], *, starting: bool, instant: float) -> bool:
    """Wait for the instant of a signal: after the first step, or in the start; False where the run is over before."""
    until = time.monotonic() + _LONGEST
    while time.monotonic() < until and all(node.process.poll() is None for node in begun):
        if (starting and all(node.ranks() for node in begun)) or "step " in begun[0].log.read_text():
            break
        time.sleep(0.05)
    until = time.monotonic() + instant
    while time.monotonic() < until and all(node.process.poll() is None for node in begun):
        time.sleep(0.02)
    return all(node.process.poll() is None and node.ranks() for node in begun)


def one_run(server: S3Server, place: Path, layout: str, signals: list[signal.Signals], seed: int) -> list[str]:
    """Disturb a run, print its row, and return what is wrong with it."""
    steps, name = _STEPS_A_SIGNAL * (len(signals) + 1), layout.replace(" ", "-")
    alone = cluster_of(place / f"alone-{name}", server, layout, steps).start()
    if any(finish(alone, _LONGEST)):
        raise SystemExit(f"the run that was left alone has failed:\n{logs(alone)[-4000:]}")
    toll = disturbed(cluster_of(place / f"killed-{name}", server, layout, steps), signals, random.Random(seed))
    found = [published(server, f"{run}-{name}/out", place / f"found-{run}-{name}") for run in ("alone", "killed")]
    apart, slowest = difference(*found), max(toll.seconds, default=0.0)
    middle = statistics.median(toll.seconds or [0.0])
    counts = f"{toll.kills} | {toll.terms} | {toll.resumed} | {toll.replaced} | {middle:.1f} | {slowest:.1f}"
    print(f"| {layout} | {counts} | {apart:g} |", flush=True)
    wrong = [] if apart == 0.0 and evaluations(found[0]) == evaluations(found[1]) else ["other weights or evaluations"]
    late = [f"a process was there {slowest:.0f} s after a signal"] if slowest > ENDED_WITHIN else []
    few = toll.kills + toll.terms < len(signals) or 2 * toll.resumed < len(signals)
    return wrong + late + (["it was over too early, or resumed too seldom, to show anything"] if few else [])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="each with its share")
    options = parser.parse_args()
    signals = [signal.SIGKILL if number % 2 else signal.SIGTERM for number in range(options.signals)]
    random.Random(options.seed).shuffle(signals)
    print("| run | SIGKILL | SIGTERM | resumed | replaced | seconds until all have ended, median | most | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    wrong: list[str] = []
    with storage() as (server, place):
        for index, layout in enumerate(options.runs):
            share = signals[index :: len(options.runs)]
            wrong += [f"{layout}: {each}" for each in one_run(server, place, layout, share, options.seed + index)]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
