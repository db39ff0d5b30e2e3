"""The plan of an AdapterMerge: one Job on CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunery_api.adaptermerge import AdapterMergeSpec, MergeInput
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference
from tunery_api.names import child_name
from tunery_api.runspec import Purpose, ResolvedAdapter, RunSpec, Task
from tunery_operator.plan import common, mounts
from tunery_operator.plan.common import Place, Platform
from tunery_operator.plan.inputs import ReadyInput
from tunery_operator.plan.model import JobPlan, Owner
from tunery_operator.plan.mounts import Access


def plan_merge(spec: AdapterMergeSpec, owner: Owner, platform: Platform, inputs: Sequence[ReadyInput]) -> JobPlan:
    """Return the plan of the merge Job; `inputs` holds what each of spec.adapters was resolved to, in order.

    Raises InvalidSpec when the platform cannot run the spec.
    """
    place = common.output_place(spec.output, owner, platform.settings)
    accesses = list(_accesses(spec, place, inputs))
    name = child_name(owner.key.name, Task.MERGE.value)
    return JobPlan(
        owner=owner,
        task=Task.MERGE,
        name=name,
        config_name=common.config_name(name, owner),
        run=_run(spec, owner, platform, accesses, place).model_copy(update={"adapters": _resolved(inputs)}),
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


def _resolved(inputs: Sequence[ReadyInput]) -> list[ResolvedAdapter]:
    return [item.adapter for item in inputs]


def _run(spec: AdapterMergeSpec, owner: Owner, platform: Platform, accesses: list[Access], place: Place) -> RunSpec:
    return RunSpec(
        identity=common.identity(owner),
        adapter_merge=spec,
        output_uri=place.uri,
        secrets=mounts.run_secrets(accesses),
        volumes=mounts.run_volumes(mounts.volume_mounts(accesses)),
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        image=platform.settings.trainer_image,
    )


def _accesses(spec: AdapterMergeSpec, place: Place, inputs: Sequence[ReadyInput]) -> Iterator[Access]:
    yield Access(Purpose.OUTPUT, place.uri, place.secret, place.field)
    if spec.model is not None:
        yield Access(Purpose.MODEL, spec.model.uri, spec.model.secret_ref, "spec.model.secretRef")
    elif base := next((item for item in inputs if item.model_uri), None):
        yield Access(Purpose.MODEL, base.model_uri, base.model_secret, f"spec.model.secretRef of LoRAJob {base.name}")
    for index, (item, ready) in enumerate(zip(spec.adapters, inputs, strict=True)):
        yield _adapter_access(index, item, ready, place)


def _adapter_access(index: int, item: MergeInput, ready: ReadyInput, place: Place) -> Access:
    purpose = f"adapter-{index}"
    secret: LocalReference | None
    if item.secret_ref is not None:
        secret, field = item.secret_ref, f"spec.adapters[{index}].secretRef"
    elif ready.output_secret is not None:
        secret, field = ready.output_secret, f"spec.output.secretRef of LoRAJob {ready.name}"
    else:
        secret, field = place.secret, place.field
    return Access(purpose, ready.adapter.uri, secret, field)
