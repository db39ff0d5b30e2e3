"""Plan the Jobs of a LoRAJob: preflight, training, report, and publishing after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from tunery_api.fields import parse_quantity
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import SWEEP_OUTPUT_ANNOTATION, TRAIN_GRACE_SECONDS, VOLUMES_DIR, child_name, trials_uri
from tunery_api.runspec import CacheMount, Purpose, ResolvedAdapter, Task
from tunery_api.sweepstatus import TrialInputs
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import job
from tunery_operator.planning.job import JobPlan, OutputLocation, Platform
from tunery_operator.planning.pod import (
    Access,
    SecretSource,
    TenantVolume,
    adapter_access,
    with_devices,
    with_disk,
    work_scheduling,
)
from tunery_search.trial_spec import pin_inputs


class ResolvedInputs(NamedTuple):
    """The inputs of a LoRAJob that were resolved before its Job is planned."""

    adapter: ResolvedAdapter | None = None
    """The adapter of continueFrom."""
    resume: str | None = None
    """The location of the checkpoints of resumeFrom."""
    revision: str | None = None
    """The model's commit that preflight resolved."""
    disk_bytes: int | None = None
    """The disk that training needs, as preflight computed."""
    inputs: TrialInputs | None = None
    """For a trial, the inputs that its preflight resolved: its training reads exactly these."""


def plan_preflight(spec: LoRAJobSpec, owner: Owner, platform: Platform, known: ResolvedInputs) -> JobPlan:
    """Return the plan of the preflight Job; raises InvalidSpec when the platform cannot run the spec."""
    base = _plan(spec, owner, platform, known, Task.PREFLIGHT)
    looking = base.run.model_copy(update={"also_free": _sweep_output(owner, base.run.output_uri)})
    return job.check_plan(replace(base, run=looking), spec, platform.settings)


def _sweep_output(owner: Owner, output_uri: str) -> str | None:
    """Return the location of the sweep's result, which the preflight of a trial checks, next to the trial's own."""
    place = owner.annotations.get(SWEEP_OUTPUT_ANNOTATION, "")
    return place if place and output_uri.startswith(trials_uri(place, "")) else None


def plan_train(spec: LoRAJobSpec, owner: Owner, platform: Platform, known: ResolvedInputs) -> JobPlan:
    """Return the plan of the train Job; raises InvalidSpec when the platform cannot run the spec."""
    if known.inputs is not None:
        spec = LoRAJobSpec.model_validate(pin_inputs(spec.to_json_dict(), known.inputs))
    sized = spec.model_copy(update={"resources": with_disk(spec.resources, known.disk_bytes)})
    base = _with_revision(_plan(sized, owner, platform, known, Task.TRAIN), known)
    nodes = spec.resources.nodes
    return replace(
        base,
        name=child_name(owner.key.name, Task.TRAIN.value, nodes),
        nodes=nodes,
        pod=with_devices(base.pod, spec.resources, owner, platform.settings),
        grace_seconds=TRAIN_GRACE_SECONDS,
    )


def plan_report(spec: LoRAJobSpec, owner: Owner, platform: Platform, known: ResolvedInputs) -> JobPlan:
    """Return the plan of the Job that reads back what training has published, after its pod is gone."""
    place = job.output_location(spec.output, owner, platform.settings)
    checkpoints = job.checkpoints_uri(place.uri, owner)
    return job.report_plan(spec, owner, platform, lora_job=spec, checkpoint_uri=checkpoints)


def plan_publish(spec: LoRAJobSpec, owner: Owner, platform: Platform, known: ResolvedInputs, why: str) -> JobPlan:
    """Return the plan of the Job that publishes the checkpoint of a stopped job: on CPU, without base weights."""
    place = job.output_location(spec.output, owner, platform.settings)
    accesses = [access for access in _accesses(spec, place) if access.purpose in (Purpose.MODEL, Purpose.OUTPUT)]
    fields = {**_fields(spec, owner, place, known), "stop": why}
    base = _with_cache(job.job_plan(spec, owner, platform, Task.PUBLISH, accesses, **fields), spec, platform)
    # Independent of spec.retries: a lost node must not lose the trained weights.
    return replace(job.check_plan(_with_revision(base, known), spec, platform.settings), retries=job.MAX_CHECK_RETRIES)


def _with_revision(plan: JobPlan, known: ResolvedInputs) -> JobPlan:
    if known.revision is None:
        return plan
    return replace(plan, run=plan.run.model_copy(update={"model_revision": known.revision}))


def _plan(spec: LoRAJobSpec, owner: Owner, platform: Platform, known: ResolvedInputs, task: Task) -> JobPlan:
    place = job.output_location(spec.output, owner, platform.settings)
    accesses = list(_accesses(spec, place))
    fields = {
        **_fields(spec, owner, place, known),
        "gpu_memory_bytes": _gpu_memory(spec, platform),
        "resume_uri": known.resume,
    }
    return _with_cache(job.job_plan(spec, owner, platform, task, accesses, **fields), spec, platform)


def _fields(spec: LoRAJobSpec, owner: Owner, place: OutputLocation, known: ResolvedInputs) -> dict[str, Any]:
    """Return the fields of run.json that training and publishing share."""
    return {
        "lora_job": spec,
        "checkpoint_uri": job.checkpoints_uri(place.uri, owner),
        "report_uri": job.report_uri(place.uri, owner),
        "adapters": [known.adapter] if known.adapter else [],
    }


def _with_cache(plan: JobPlan, spec: LoRAJobSpec, platform: Platform) -> JobPlan:
    """Return the plan with the claim of the cache: preflight fills it, and nothing else may write there."""
    settings = platform.settings
    claim = spec.cache.claim_name if spec.cache else settings.cache.claim_name
    if not claim:
        return plan
    path, largest = f"{VOLUMES_DIR}/{Purpose.CACHE}", settings.cache.max_size
    mount = TenantVolume(Purpose.CACHE, path, claim=claim, read_only=plan.task is not Task.PREFLIGHT)
    cache = CacheMount(path=path, max_bytes=int(parse_quantity(largest)) if largest else None)
    return replace(plan, run=plan.run.model_copy(update={"cache": cache}), volumes=(*plan.volumes, mount))


def _gpu_memory(spec: LoRAJobSpec, platform: Platform) -> int | None:
    if spec.resources.gpus == 0:
        return None
    settings = platform.settings
    nodes = work_scheduling(spec.scheduling, settings, spec.resources.gpus).node_selector
    return settings.gpu_memory_bytes(spec.resources.gpu_resource, nodes or {})


def _accesses(spec: LoRAJobSpec, place: OutputLocation) -> Iterator[Access]:
    """Yield every location that the containers access."""
    yield Access(Purpose.MODEL, spec.model.uri, spec.model.secret_ref, "spec.model.secretRef")
    yield Access(Purpose.DATASET, spec.dataset.uri, spec.dataset.secret_ref, "spec.dataset.secretRef")
    if spec.dataset.evaluation is not None and spec.dataset.evaluation.uri is not None:
        yield Access(Purpose.EVALUATION, spec.dataset.evaluation.uri, None, "spec.dataset.secretRef")
    yield job.output_access(place)
    for purpose, name, source in (
        (Purpose.CONTINUE_FROM, "continueFrom", spec.continue_from),
        (Purpose.RESUME_FROM, "resumeFrom", spec.resume_from),
    ):
        if source is not None:
            own = SecretSource(source.secret_ref, f"spec.{name}.secretRef")
            yield adapter_access(purpose, source.uri, own, SecretSource(place.secret, place.field))
    if spec.tracking is not None and spec.tracking.wandb is not None:
        yield Access(Purpose.WANDB, None, spec.tracking.wandb.secret_ref, "spec.tracking.wandb.secretRef")
    if spec.tracking is not None and spec.tracking.mlflow is not None:
        yield Access(Purpose.MLFLOW, None, spec.tracking.mlflow.secret_ref, "spec.tracking.mlflow.secretRef")
