"""The plans of a LoRAJob: its preflight Job and its train Job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunery_api.fields import parse_quantity
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import child_name
from tunery_api.placement import SchedulingSpec
from tunery_api.runspec import Purpose, ResolvedAdapter, RunSpec, Task
from tunery_operator.plan import common, mounts
from tunery_operator.plan.common import Place, Platform
from tunery_operator.plan.model import JobPlan, Owner
from tunery_operator.plan.mounts import Access

MAX_PREFLIGHT_RETRIES = 3
TRAIN_GRACE_SECONDS = 120
"""Long enough to finish a step and to write a checkpoint after SIGTERM."""


def plan_preflight(spec: LoRAJobSpec, owner: Owner, platform: Platform, adapter: ResolvedAdapter | None) -> JobPlan:
    """Return the plan of the preflight Job: CPU only, and placed like any pod of the namespace.

    Raises InvalidSpec when the platform cannot run the spec.
    """
    base = _plan(spec, owner, platform, adapter, Task.PREFLIGHT)
    service_account = SchedulingSpec(service_account_name=spec.scheduling.service_account_name)
    return replace(
        base,
        resources=common.preflight_resources(platform.settings),
        scheduling=service_account,
        retries=min(spec.retries, MAX_PREFLIGHT_RETRIES),
        kueue_labels={},
        progress=None,
    )


def plan_train(
    spec: LoRAJobSpec, owner: Owner, platform: Platform, adapter: ResolvedAdapter | None, revision: str | None
) -> JobPlan:
    """Return the plan of the train Job; `revision` is the model's commit that preflight resolved."""
    base = _plan(spec, owner, platform, adapter, Task.TRAIN)
    run = base.run.model_copy(update={"model_revision": revision}) if revision else base.run
    return replace(base, run=run, grace_seconds=TRAIN_GRACE_SECONDS)


def _plan(spec: LoRAJobSpec, owner: Owner, platform: Platform, adapter: ResolvedAdapter | None, task: Task) -> JobPlan:
    place = common.output_place(spec.output, owner, platform.settings)
    accesses = list(_accesses(spec, place))
    run = _run(spec, owner, platform, accesses, place)
    name = child_name(owner.key.name, task.value)
    return JobPlan(
        owner=owner,
        task=task,
        name=name,
        config_name=common.config_name(name, owner),
        run=run.model_copy(update={"adapters": [adapter]}) if adapter else run,
        image=common.image(platform.settings),
        resources=common.resources(spec.resources),
        secrets=mounts.secret_mounts(accesses),
        volumes=mounts.volume_mounts(accesses),
        scheduling=spec.scheduling,
        retries=spec.retries,
        active_deadline_seconds=spec.active_deadline_seconds,
        suspend=spec.suspend,
        kueue_labels=common.kueue_labels(owner),
        progress=platform.progress,
    )


def _run(
    spec: LoRAJobSpec,
    owner: Owner,
    platform: Platform,
    accesses: list[Access],
    place: Place,
) -> RunSpec:
    return RunSpec(
        identity=common.identity(owner),
        lora_job=spec,
        output_uri=place.uri,
        checkpoint_uri=common.checkpoint_place(place.uri, owner),
        secrets=mounts.run_secrets(accesses),
        volumes=mounts.run_volumes(mounts.volume_mounts(accesses)),
        gpu_memory_bytes=_gpu_memory(spec, platform),
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        image=platform.settings.trainer_image,
    )


def _gpu_memory(spec: LoRAJobSpec, platform: Platform) -> int | None:
    if spec.resources.gpus == 0:
        return None
    return platform.settings.gpu_memory_bytes(spec.resources.gpu_resource)


def _accesses(spec: LoRAJobSpec, place: Place) -> Iterator[Access]:
    """Yield every place that the containers open."""
    yield Access(Purpose.MODEL, spec.model.uri, spec.model.secret_ref, "spec.model.secretRef")
    yield Access(Purpose.DATASET, spec.dataset.uri, spec.dataset.secret_ref, "spec.dataset.secretRef")
    if spec.dataset.evaluation is not None and spec.dataset.evaluation.uri is not None:
        yield Access(Purpose.EVALUATION, spec.dataset.evaluation.uri, None, "spec.dataset.secretRef")
    yield Access(Purpose.OUTPUT, place.uri, place.secret, place.field)
    if spec.continue_from is not None:
        own = spec.continue_from.secret_ref
        field = "spec.continueFrom.secretRef" if own else place.field
        yield Access(Purpose.CONTINUE_FROM, spec.continue_from.uri, own or place.secret, field)
    if spec.tracking is not None and spec.tracking.wandb is not None:
        yield Access(Purpose.WANDB, None, spec.tracking.wandb.secret_ref, "spec.tracking.wandb.secretRef")
    if spec.tracking is not None and spec.tracking.mlflow is not None:
        yield Access(Purpose.MLFLOW, None, spec.tracking.mlflow.secret_ref, "spec.tracking.mlflow.secretRef")
