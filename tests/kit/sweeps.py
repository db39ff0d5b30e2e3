"""Sweeps for tests: specs, LoRAJobs of trials as the API server has them, and trials as they are read from those."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.measured import EvaluationStatus
from tunery_api.sweepstatus import FINAL_TRIAL_STATES, EndReason, TrialAdapter, TrialState, TrialStatus
from tunery_search.decision import DecisionContext
from tunery_search.trials import Live, Trial

START = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
STEPS = 80
_CURVES = Path(__file__).resolve().parents[1] / "data" / "sweep" / "curves.tsv"
_TEMPLATE = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
_RATE = {"path": "training.learningRate", "range": {"min": 1e-5, "max": 1e-2, "log": True}}


def sweep(**fields: Any) -> LoRASweepSpec:
    """Return the spec of a sweep of the learning rate; `fields` are as in YAML."""
    return LoRASweepSpec.model_validate({"template": _TEMPLATE, "parameters": [_RATE], **fields})


def moment(
    seconds: float = 0.0, *, recorded: EndReason | None = None, publishing: bool = False, started: datetime = START
) -> DecisionContext:
    """Return the moment so many seconds after the start."""
    return DecisionContext(started + timedelta(seconds=seconds), started, recorded, publishing)


def trial(number: int, state: TrialState = TrialState.COMPLETE, value: float | None = None, **fields: Any) -> Trial:
    """Return a trial with a held-out loss; of one that is under way `live` may be given, of one that is not `losses`.

    A complete one has an adapter, unless `adapter` is None.
    """
    live, losses = fields.pop("live", None), fields.pop("losses", ())
    complete = state is TrialState.COMPLETE
    known = {
        "adapter": TrialAdapter(uri=f"s3://out/{number}", manifest_sha256="0" * 64) if complete else None,
        "steps": STEPS,
        "gpu_seconds": 100 if complete else None,
        "run_seconds": 100 if complete else None,
        "evaluations": evaluations(losses) or None,
        **fields,
    }
    text = None if value is None and not complete else f"{number + 1.0 if value is None else value:.6g}"
    row = TrialStatus(number=number, name=f"support-{number:03}", state=state.value, value=text, **known)
    return Trial(row, None if state in FINAL_TRIAL_STATES else live or Live())


def running(number: int, *losses: float, **live: Any) -> Trial:
    """Return a trial that runs and was checked, with its losses after each eighth of its steps."""
    eval_losses = tuple(((index + 1) / 8, loss) for index, loss in enumerate(losses))
    origin = live.pop("origin", None)
    return trial(
        number, TrialState.RUNNING, live=Live(**{"eval_losses": eval_losses, "checked": True, **live}), origin=origin
    )


def evaluations(losses: Sequence[float]) -> list[EvaluationStatus]:
    """Return losses after each eighth of the steps, as a status shows them."""
    return [EvaluationStatus(step=math.ceil((i + 1) * STEPS / 8), loss=f"{loss:.6g}") for i, loss in enumerate(losses)]


def lorajob(number: int, status: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """Return the LoRAJob of a trial."""
    metadata = {
        "name": f"support-{number:03}",
        "labels": {"tunery.dev/sweep": "support", "tunery.dev/trial": f"{number:03}"},
        "annotations": {"tunery.dev/origin": "TPE"},
    }
    rate = {"training": {"learningRate": float(f"0.000{number + 1}")}}
    return {"metadata": metadata, "spec": {**rate, "diagnosis": {"action": "Stop"}, **spec}, "status": dict(status)}


def read(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of such a LoRAJob."""
    return {"training.learningRate": str(spec["training"]["learningRate"])}


class Curve(NamedTuple):
    """One of the real trainings of tests/data/sweep: of a tiny model, with its losses after each eighth."""

    base: float
    losses: tuple[float, ...]


class Setting(NamedTuple):
    """What two of them differ in."""

    rate: str
    rank: str
    alpha: str
    modules: str


@cache
def table() -> Mapping[Setting, Curve]:
    """Return all of them."""
    lines = [line.split("\t") for line in _CURVES.read_text().splitlines() if not line.startswith("#")]
    return {Setting(*line[:4]): Curve(float(line[4]), tuple(map(float, line[5:]))) for line in lines}


def curves() -> tuple[Curve, ...]:
    """Return the curves of all of them."""
    return tuple(table().values())
