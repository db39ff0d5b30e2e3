"""Provide the spec of a trial's LoRAJob: its preflight policy, its trial settings, and its pinned inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tunery_api.lorajob import OnStop, PreflightPolicy
from tunery_api.lorasweep import PrunerSpec, PrunerType, SweepPreflight
from tunery_api.measured import MAX_EVALUATIONS
from tunery_api.methods import LoraSpec
from tunery_api.sweepstatus import TrialInputs, TrialState
from tunery_api.training import DiagnosisAction, TrainingSpec
from tunery_search.dimensions import Values
from tunery_search.trial_rows import Body, is_checked
from tunery_search.trials import Trial

PREFLIGHT_NEUTRAL: Final = frozenset(
    f"{block}.{model.model_fields[name].alias}"
    for block, model in (("lora", LoraSpec), ("training", TrainingSpec))
    for name in model.PREFLIGHT_NEUTRAL
)
"""Parameters that change neither the prepared data nor the memory use."""


def preflight_policy(policy: SweepPreflight, trials: Iterable[Trial], values: Values) -> PreflightPolicy:
    """Return whether a trial with these values needs a preflight."""
    if policy is SweepPreflight.EVERY:
        return PreflightPolicy.REQUIRED
    own = _preflight_values(values)
    known = any(has_passed_preflight(trial) and _preflight_values(trial.row.parameters) == own for trial in trials)
    return PreflightPolicy.SKIP if known else PreflightPolicy.REQUIRED


def with_trial_settings(job_spec: Mapping[str, Any], preflight: PreflightPolicy, pruner: PrunerSpec) -> dict[str, Any]:
    """Return the spec with the settings of a trial: a stopped trial publishes nothing.

    Unless the template sets these fields, a trial with a problem stops, and trials are evaluated before the first rung.
    """
    diagnosis = {"action": DiagnosisAction.STOP.value, **(job_spec.get("diagnosis") or {})}
    terms: dict[str, Any] = {"diagnosis": diagnosis, "onStop": OnStop.DISCARD.value, "preflight": preflight.value}
    evaluation = job_spec.get("evaluation") or {}
    if pruner.type is not PrunerType.NONE and not evaluation.keys() & {"times", "everySteps"}:
        # By default the trainer may evaluate only at the end, and no trial would be compared.
        terms["evaluation"] = {**evaluation, "times": _times(pruner)}
    return {**job_spec, **terms}


def resolved_inputs(child: Body) -> TrialInputs | None:
    """Return the inputs that the LoRAJob of a trial has resolved. Return None without a preflight."""
    status = child.get("status") or {}
    data, resolved = status.get("dataset") or {}, status.get("resolved") or {}
    if not is_checked(status) or data.get("sha256") is None:
        return None
    adapter = resolved.get("continuedFrom") or {}
    return TrialInputs(
        revision=resolved.get("revision"),
        dataset_sha256=data["sha256"],
        evaluation_sha256=data.get("evaluationSha256"),
        adapter_sha256=adapter.get("sha256"),
        adapter_revision=adapter.get("revision"),
    )


def pin_inputs(job_spec: Mapping[str, Any], read: TrialInputs) -> dict[str, Any]:
    """Return the spec of a LoRAJob pinned to the inputs `read`. Other content is rejected before training starts."""
    model, data, source = (job_spec.get(name) or {} for name in ("model", "dataset", "continueFrom"))
    held = data.get("evaluation") or {}
    pinned: dict[str, dict[str, Any]] = {
        "model": _with(model, _of_hub(model, read.revision)),
        "dataset": _with(data, {"sha256": read.dataset_sha256}),
        "continueFrom": source,
    }
    if held.get("uri") or held.get("split"):
        pinned["dataset"]["evaluation"] = _with(held, {"sha256": read.evaluation_sha256})
    if source.get("uri"):
        pinned["continueFrom"] = _with(
            source, {"sha256": read.adapter_sha256, **_of_hub(source, read.adapter_revision)}
        )
    return {**job_spec, **{name: block for name, block in pinned.items() if block}}


def _of_hub(block: Mapping[str, Any], revision: str | None) -> dict[str, Any]:
    return {"revision": revision} if str(block.get("uri")).startswith("hf://") else {}


def _with(block: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {**block, **{name: value for name, value in known.items() if value is not None}}


def _times(pruner: PrunerSpec) -> int:
    """Return how often to evaluate, so that a trial has a loss before the first rung, up to the status limit."""
    return min(MAX_EVALUATIONS, math.ceil(1 / min(pruner.rungs)))


def has_passed_preflight(trial: Trial) -> bool:
    """Return whether the trial, or one like it, passed its preflight. Every trial that trained has."""
    if trial.live is not None and trial.live.checked:
        return True
    return trial.row.state == TrialState.COMPLETE or bool(trial.row.run_seconds) or bool(trial.row.evaluations)


def _preflight_values(values: Values) -> dict[str, str]:
    return {path: value for path, value in values.items() if path not in PREFLIGHT_NEUTRAL}
