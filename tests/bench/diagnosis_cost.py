"""What the detectors take at one entry of the log of a run that has 1,000 points already."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from tunery_trainer.diagnosis.judge import Judge, Subject
from tunery_trainer.diagnosis.speed import Memory, Step

from kit.diagnosed import cosine, logged, settings_of

EVERY = 50
"""Points from one evaluation to the next."""


def main() -> None:
    """Print one JSON line: milliseconds for a point and for an evaluation, median and slowest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--measured", type=int, default=200)
    arguments = parser.parse_args()
    found = {name: measured(arguments.points, arguments.measured, wild=name == "spikes") for name in ("calm", "spikes")}
    print(json.dumps({"points": arguments.points} | found))


def measured(points: int, more: int, *, wild: bool) -> dict[str, Any]:
    """Return what the entries after so many points take: as DiagnosisCallback hands them on, steps and all."""
    entries = list(curve(points + more, wild=wild))
    settings = settings_of(training={"maxSteps": points + more, "batchSize": 4})
    judge = Judge(Subject(settings, points + more, points + more, 2.5, held_out=100))
    taken: dict[str, list[float]] = {"point_ms": [], "evaluation_ms": []}
    for entry in entries:
        seconds = timed(lambda entry=entry: take(judge, entry))
        if entry["step"] > points:
            taken["evaluation_ms" if "eval_loss" in entry else "point_ms"].append(1e3 * seconds)
    return {
        name: {"median": round(statistics.median(values), 3), "slowest": round(max(values), 3)}
        for name, values in taken.items()
    }


def curve(points: int, *, wild: bool) -> Iterable[dict[str, Any]]:
    """Yield the log of a run that learns, with evaluations, and with a bad batch now and then where it is `wild`."""
    draw = random.Random(4)
    losses = [
        0.8 + 1.6 / (1 + number / 150) + draw.gauss(0, 0.05) + (3 if wild and number % 97 == 0 else 0)
        for number in range(1, points + 1)
    ]
    evaluations = {step: 0.9 + 1.6 / (1 + step / 150) for step in range(EVERY, points + 1, EVERY)}
    return logged(losses, evaluations, base=2.5, rates=cosine(2e-4, points))


def take(judge: Judge, entry: dict[str, Any]) -> None:
    """Hand on an entry, and ask what holds."""
    if "loss" in entry:
        judge.step(Step(0.8, 0.01, 8192, 200), entry["step"])
        judge.memory(Memory(10 << 30, 24 << 30), entry["step"])
    judge.log(entry)
    _ = judge.findings
    _ = judge.problem


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of CPU that `work` takes: what others do meanwhile is not its own."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
