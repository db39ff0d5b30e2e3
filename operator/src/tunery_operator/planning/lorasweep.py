"""Plan a LoRASweep: its trials, the Job that publishes the best one, and the report of what it has published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from tunery_api.fields import parse_quantity
from tunery_api.lorajob import PreflightPolicy
from tunery_api.lorasweep import LoRASweepSpec, PrunerType
from tunery_api.measured import parse_finite
from tunery_api.names import child_name, trials_uri
from tunery_api.reasons import FailureReason
from tunery_api.runspec import DiskLimit, LoRASweepRun, Task
from tunery_api.sweepstatus import ParameterImportance, TrialInputs, TrialStatus
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import job
from tunery_operator.planning.job import JobPlan, OutputLocation, Platform, PublishSpec
from tunery_search.history import Suggestion
from tunery_search.space import Space, final_spec, trial_spec
from tunery_search.summary import searched_parameters
from tunery_search.trial_spec import has_passed_preflight, pin_inputs, preflight_policy, with_trial_settings
from tunery_search.trials import FINAL_ORIGIN, Trial

MOST_BYTES: Final = 220_000
"""Bytes of the rows in run.json."""


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """The plan of a trial's LoRAJob."""

    owner: Owner
    number: int
    name: str
    origin: str
    spec: Mapping[str, Any]
    result_to_check: str | None = None
    """The location of the sweep's result, which the preflight of this trial checks."""


class SweepResult(NamedTuple):
    """The result of a search that has ended."""

    trials: Sequence[TrialStatus]
    best: int
    importance: Sequence[ParameterImportance]
    end_reason: str | None
    saved: int | None


def plan_trial(
    spec: LoRASweepSpec, owner: Owner, place: OutputLocation, trials: Sequence[Trial], suggestion: Suggestion
) -> TrialPlan:
    """Return the plan of a trial; `place` is the location of the sweep's result."""
    number, values = suggestion.number, suggestion.values
    final = suggestion.origin == FINAL_ORIGIN
    body = final_spec(spec, values) if final else trial_spec(spec, values)
    # What `final` puts on top may change data and memory.
    preflight = PreflightPolicy.REQUIRED if final else preflight_policy(spec.preflight, trials, values)
    output: dict[str, Any] = {"uri": f"{trials_uri(place.uri, owner.uid)}/{number:03d}"}
    if spec.output.secret_ref is not None:
        output["secretRef"] = spec.output.secret_ref.to_json_dict()
    first = not spec.output.overwrite and not any(map(has_passed_preflight, trials))
    return TrialPlan(
        owner=owner,
        number=number,
        name=trial_name(owner.key.name, number, final=final),
        origin=suggestion.origin,
        spec={**with_trial_settings(body, preflight, spec.pruner), "output": output},
        result_to_check=place.uri if first else None,
    )


def with_inputs(plan: TrialPlan, read: TrialInputs | None, *, again: bool) -> TrialPlan:
    """Return the plan of a trial with the inputs of the first trial; None: no trial has resolved them yet."""
    if read is not None:
        return replace(plan, spec=pin_inputs(plan.spec, read))
    # What was checked before the retry may have been put in order since.
    return replace(plan, spec={**plan.spec, "preflight": PreflightPolicy.REQUIRED.value}) if again else plan


def trial_name(sweep: str, number: int, *, final: bool = False) -> str:
    """Return the name of a trial's LoRAJob."""
    return child_name(sweep, "final" if final else f"{number:03d}")


def plan_publish_best(
    spec: LoRASweepSpec, owner: Owner, platform: Platform, found: SweepResult, space: Space
) -> JobPlan:
    """Return the plan of the Job that publishes the best trial's adapter; raises InvalidSpec when it has no place."""
    place = job.output_location(spec.output, owner, platform.settings)
    work = PublishSpec(spec.output, spec.template.scheduling, spec.suspend)
    run = sweep_run(spec, owner, place, found, space)
    base = job.job_plan(work, owner, platform, Task.PUBLISH_BEST, [job.output_access(place)], lora_sweep=run)
    return _with_the_trials_disk(job.check_plan(base, work, platform.settings), spec)


def _with_the_trials_disk(plan: JobPlan, spec: LoRASweepSpec) -> JobPlan:
    """Return the plan with the disk of a trial, as the Job downloads the complete adapter."""
    disk = spec.template.resources.ephemeral_storage
    limit = DiskLimit(bytes=int(parse_quantity(disk)), field="spec.template.resources.ephemeralStorage")
    sized = replace(plan.resources, ephemeral_storage=disk)
    return replace(plan, resources=sized, run=plan.run.model_copy(update={"disk": limit}))


def plan_report(spec: LoRASweepSpec, owner: Owner, platform: Platform, found: SweepResult, space: Space) -> JobPlan:
    """Return the plan of the Job that reads back what the sweep published; raises as `plan_publish_best`."""
    place = job.output_location(spec.output, owner, platform.settings)
    work = PublishSpec(spec.output, spec.template.scheduling, spec.suspend)
    return job.report_plan(work, owner, platform, lora_sweep=sweep_run(spec, owner, place, found, space))


def sweep_run(
    spec: LoRASweepSpec, owner: Owner, place: OutputLocation, found: SweepResult, space: Space
) -> LoRASweepRun:
    """Return the sweep's part of run.json for the Job that publishes."""
    return LoRASweepRun(
        trials=limit_rows([row.without_advice() for row in found.trials]),
        best=found.best,
        trials_uri=trials_uri(place.uri, owner.uid),
        keep_adapters=spec.keep_adapters,
        overwrite=spec.output.overwrite,
        seed=spec.seed,
        sampler=spec.sampler.type.value,
        space=searched_parameters(space.dimensions),
        rungs=[] if spec.pruner.type is PrunerType.NONE else list(spec.pruner.rungs),
        importance=list(found.importance),
        end_reason=found.end_reason,
        gpu_seconds_saved=found.saved,
    )


def limit_rows(rows: Sequence[TrialStatus], most: int = MOST_BYTES) -> list[TrialStatus]:
    """Return the rows in so many bytes of JSON: run.json goes into an annotation, and all of those have 256 KiB.

    Only a sweep of very many trials and parameters has more. What is left out first is why trials would not fit into
    memory, then the curves of the trials with the highest losses, then the values of those that would not fit, then
    why trials were ended.
    """
    sizes = {row.number: _size(row) for row in rows}
    by_number = {row.number: row for row in rows}
    too_large = [row.number for row in rows if row.reason == FailureReason.WONT_FIT]
    measured = sorted((row for row in rows if row.evaluations), key=_loss, reverse=True)
    changes: list[tuple[int, dict[str, Any]]] = [(number, {"why": None}) for number in too_large]
    changes += [(row.number, {"evaluations": None}) for row in measured]
    changes += [(number, {"parameters": {}}) for number in too_large]
    changes += [(row.number, {"why": None}) for row in rows if row.why is not None]
    for number, change in changes:
        if sum(sizes.values()) <= most:
            break
        by_number[number] = by_number[number].model_copy(update=change)
        sizes[number] = _size(by_number[number])
    return list(by_number.values())


def _loss(row: TrialStatus) -> float:
    loss = parse_finite(row.value)
    return math.inf if loss is None else loss


def _size(row: TrialStatus) -> int:
    # As the annotation is written: of other scripts each character is escaped.
    return len(json.dumps(row.to_json_dict(), separators=(",", ":"))) + 1
