"""Runs that are only numbers: settings, curves with the differences that evaluations log, and who judges them."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunery_trainer.diagnosis.evaluations import BETTER_Z
from tunery_trainer.diagnosis.history import Evaluation, History
from tunery_trainer.diagnosis.judge import Judge, Subject
from tunery_trainer.diagnosis.paired import Difference
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import ModelFacts, RunSettings

from kit.training import CPU, spec_of

SMALL: Final = ModelFacts("LlamaForCausalLM", 10_000_000, 2, 64, 128, 4096, tied_embeddings=True, packable=True)
GRID: Final = Path(__file__).resolve().parents[1] / "data" / "diagnosis" / "grid.jsonl.gz"
"""468 trainings of a tiny model: 13 rates from 1e-4 to 1e-1, ranks 4, 16, 64, alphas 8 to 64, three choices of target
modules. Of each the held-out loss before (base) and at 8 steps (evals), loss and gradient norm of each of its 60 steps
(hist)."""
GRID_STEPS: Final = 60


def settings_of(**blocks: Any) -> RunSettings:
    """Return the settings of a LoRAJob on a small model."""
    spec = spec_of({"method": "LoRA", **blocks})
    return resolve(spec, SMALL, CPU, method_choices(spec, 500, CPU)[0])


def cosine(rate: float, steps: int, warmup: float = 0.1) -> list[float]:
    """Return the rate of each step: linear up, then a cosine down."""
    up = max(1, int(warmup * steps))
    return [
        rate * (step / up if step <= up else 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up))))
        for step in range(1, steps + 1)
    ]


def logged(
    losses: Sequence[float],
    evaluations: Mapping[int, float] | None = None,
    *,
    base: float = 2.0,
    rates: Sequence[float] | None = None,
    error: float = 0.01,
) -> Iterator[dict[str, Any]]:
    """Yield the log of a run; differences have a standard error of `error` times the loss."""
    mark, mark_step = base, 0
    for step, loss in enumerate(losses, 1):
        yield {"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": rates[step - 1] if rates else 1e-4}
        if evaluations and step in evaluations:
            now = evaluations[step]
            against = Difference(now - mark, error * now)
            found = Evaluation(step, now, Difference(now - base, error * now), against, mark_step)
            yield {"step": step, "eval_loss": now, **found.to_log()}
            if against.z < BETTER_Z:
                mark, mark_step = now, step


def judged(entries: Iterator[dict[str, Any]], subject: Subject) -> Judge:
    """Return who has read the whole log; the run has not ended for him."""
    judge = Judge(subject)
    for entry in entries:
        judge.log(entry)
    return judge


def history_of(entries: Iterator[dict[str, Any]], steps: int, base: float = 2.0) -> History:
    """Return the history of a log."""
    history = History(base, steps)
    for entry in entries:
        history.take(entry)
    return history


def subject_of(steps: int, base: float = 2.0, **blocks: Any) -> Subject:
    """Return a run of so many steps, each of which is logged."""
    return Subject(settings_of(**blocks), steps=steps, points=steps, base=base)


def grid() -> list[dict[str, Any]]:
    """Return the 468 runs, the best first."""
    with gzip.open(GRID, "rt") as lines:
        return sorted((json.loads(line) for line in lines), key=lambda run: run["final"])


def grid_log(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the log of one of them."""
    evaluations = dict(run["evals"])
    losses = [loss for loss, _ in run["hist"]]
    return logged(losses, evaluations, base=run["base"], rates=cosine(run["lr"], GRID_STEPS))


def noisy(draw: random.Random, steps: int, rows: int, spread: float) -> list[float]:
    """Return the training loss of a healthy run: it falls, and each step sees rows of other lengths and losses."""
    losses = []
    for step in range(steps):
        level = 1.6 + 0.8 * math.exp(-step / (steps * 0.15))
        drawn = [(draw.lognormvariate(0, 0.6), draw.lognormvariate(-spread * spread / 2, spread)) for _ in range(rows)]
        losses.append(level * sum(length * loss for length, loss in drawn) / sum(length for length, _ in drawn))
    return losses
