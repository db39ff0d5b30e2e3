"""Plan the Jobs of an AdapterMerge: the merge, and the report of what it has published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunery_api.adaptermerge import AdapterMergeSpec, MergeInput, MergeTarget
from tunery_api.methods import PROMPT_LEARNING, Method
from tunery_api.names import adapter_purpose
from tunery_api.runspec import Purpose, Task
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import job
from tunery_operator.planning.inputs import ReadyInput
from tunery_operator.planning.job import JobPlan, OutputLocation, Platform
from tunery_operator.planning.pod import Access, SecretSource, adapter_access


def plan_merge(spec: AdapterMergeSpec, owner: Owner, platform: Platform, inputs: Sequence[ReadyInput]) -> JobPlan:
    """Return the plan of the merge Job; `inputs` are the resolved spec.adapters, in order.

    Raises InvalidSpec when the platform cannot run the spec.
    """
    place = job.output_location(spec.output, owner, platform.settings)
    accesses = list(_accesses(spec, place, inputs))
    adapters = [item.adapter for item in inputs]
    return job.job_plan(spec, owner, platform, Task.MERGE, accesses, adapter_merge=spec, adapters=adapters)


def unmergeable_methods(spec: AdapterMergeSpec) -> dict[str, str]:
    """Return the methods whose adapters the spec cannot merge, each with the reason; the pod checks everything else."""
    found = dict.fromkeys((method.value for method in PROMPT_LEARNING), "cannot be merged")
    if len(spec.adapters) > 1 or spec.into is MergeTarget.ADAPTER:
        dora = "can only be merged alone, with into: Model"
        found |= {Method.DORA.value: dora, Method.QDORA.value: dora}
    return found


def plan_report(spec: AdapterMergeSpec, owner: Owner, platform: Platform) -> JobPlan:
    """Return the plan of the Job that reads back what the merge published; raises InvalidSpec as `plan_merge`."""
    return job.report_plan(spec, owner, platform, adapter_merge=spec)


def _accesses(spec: AdapterMergeSpec, place: OutputLocation, inputs: Sequence[ReadyInput]) -> Iterator[Access]:
    yield job.output_access(place)
    if spec.model is not None:
        yield Access(Purpose.MODEL, spec.model.uri, spec.model.secret_ref, "spec.model.secretRef")
    elif base := next((item for item in inputs if item.model_uri), None):
        yield Access(Purpose.MODEL, base.model_uri, base.model_secret, f"spec.model.secretRef of LoRAJob {base.name}")
    if spec.evaluation is not None:
        dataset = spec.evaluation.dataset
        yield Access(Purpose.DATASET, dataset.uri, dataset.secret_ref, "spec.evaluation.dataset.secretRef")
    for index, (item, ready) in enumerate(zip(spec.adapters, inputs, strict=True)):
        yield _adapter_access(index, item, ready, place)


def _adapter_access(index: int, item: MergeInput, ready: ReadyInput, place: OutputLocation) -> Access:
    own = SecretSource(item.secret_ref, f"spec.adapters[{index}].secretRef")
    inherited = SecretSource(place.secret, place.field)
    if ready.output_secret is not None:
        inherited = SecretSource(ready.output_secret, f"spec.output.secretRef of LoRAJob {ready.name}")
    return adapter_access(adapter_purpose(index), ready.adapter.uri, own, inherited)
