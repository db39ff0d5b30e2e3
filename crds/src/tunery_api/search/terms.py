"""How trials run: checked on a CPU first where that tells anything new, and with nothing published that was ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tunery_api.lorajob import OnStop, PreflightPolicy
from tunery_api.lorasweep import PrunerSpec, PrunerType, SweepPreflight
from tunery_api.measured import EVALUATIONS_KEPT
from tunery_api.search.dimensions import Values
from tunery_api.search.rows import Trial
from tunery_api.sweepstatus import TrialState
from tunery_api.training import DiagnosisAction

HARMLESS: Final = frozenset(
    {
        "lora.alpha",
        "lora.dropout",
        "lora.useRslora",
        "training.learningRate",
        "training.maxGradNorm",
        "training.neftuneNoiseAlpha",
        "training.scaleLearningRateWithRank",
        "training.scheduler",
        "training.warmup",
        "training.weightDecay",
    }
)
"""Parameters that change neither what the data become nor what memory they take."""


def preflight_of(policy: SweepPreflight, trials: Iterable[Trial], values: Values) -> PreflightPolicy:
    """Return whether a trial with these values is checked on a CPU first."""
    if policy is SweepPreflight.EVERY:
        return PreflightPolicy.REQUIRED
    own = _grave(values)
    known = any(was_checked(trial) and _grave(trial.row.parameters) == own for trial in trials)
    return PreflightPolicy.SKIP if known else PreflightPolicy.REQUIRED


def on_terms(job_spec: Mapping[str, Any], preflight: PreflightPolicy, pruner: PrunerSpec) -> dict[str, Any]:
    """Return the spec of a trial's LoRAJob as trials run: nothing is published of one that is stopped; unless the
    template says otherwise, what finds out that it is of no use ends, and it is measured before it is compared."""
    diagnosis = {"action": DiagnosisAction.STOP.value, **(job_spec.get("diagnosis") or {})}
    terms: dict[str, Any] = {"diagnosis": diagnosis, "onStop": OnStop.DISCARD.value, "preflight": preflight.value}
    evaluation = job_spec.get("evaluation") or {}
    if pruner.type is not PrunerType.NONE and not evaluation.keys() & {"times", "everySteps"}:
        # Left to the trainer it may be once, at the end: no trial would ever be compared.
        terms["evaluation"] = {**evaluation, "times": _times(pruner)}
    return {**job_spec, **terms}


def _times(pruner: PrunerSpec) -> int:
    """Return how often trials are measured so that each is before the first rung, as far as a status tells of it."""
    return min(EVALUATIONS_KEPT, math.ceil(1 / min(float(rung) for rung in pruner.rungs)))


def was_checked(trial: Trial) -> bool:
    """Tell whether a trial passed its preflight: those that trained have, or one like them did."""
    if trial.live is not None and trial.live.checked:
        return True
    return trial.row.state == TrialState.COMPLETE or bool(trial.row.run_seconds) or bool(trial.row.evaluations)


def _grave(values: Values) -> dict[str, str]:
    return {path: value for path, value in values.items() if path not in HARMLESS}
