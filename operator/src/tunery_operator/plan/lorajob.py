"""The plans of a LoRAJob: its preflight Job and its train Job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.placement import SchedulingSpec
from tunery_api.runspec import Purpose, ResolvedAdapter, Task
from tunery_operator.plan import common
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
    own = {
        "lora_job": spec,
        "checkpoint_uri": common.checkpoint_place(place.uri, owner),
        "gpu_memory_bytes": _gpu_memory(spec, platform),
        "adapters": [adapter] if adapter else [],
    }
    run = common.run_spec(spec, owner, platform, place, accesses).model_copy(update=own)
    return common.job_plan(spec, owner, platform, task, run, accesses)


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
