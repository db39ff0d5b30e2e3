"""Plan the Jobs of a BatchInference: the requests to a server, and the report of what it has published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.inputs import LocalReference
from tunery_api.kinds import Kind
from tunery_api.names import BATCH_GRACE_SECONDS
from tunery_api.runspec import Purpose, Task
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.planning import job
from tunery_operator.planning.adapterserver import server_url
from tunery_operator.planning.job import SERVER, JobPlan, OutputLocation, Platform
from tunery_operator.planning.pod import Access, server_image


def server_of(spec: BatchInferenceSpec, owner: Owner) -> Key:
    """Return the server of a batch."""
    return Key(Kind.ADAPTERSERVER, owner.key.namespace, spec.server_ref.name)


def plan_batch(spec: BatchInferenceSpec, owner: Owner, platform: Platform) -> JobPlan:
    """Return the plan of the Job that sends the requests; raises InvalidSpec when the platform cannot run the spec."""
    place = job.output_location(spec.output, owner, platform.settings)
    accesses = list(_accesses(spec, place))
    plan = job.job_plan(spec, owner, platform, Task.BATCH, accesses, **_fields(spec, owner, place, platform))
    return replace(_by_server(plan, platform), grace_seconds=BATCH_GRACE_SECONDS)


def plan_report(spec: BatchInferenceSpec, owner: Owner, platform: Platform) -> JobPlan:
    """Return the plan of the Job that reads back what was published; raises InvalidSpec as `plan_batch`."""
    place = job.output_location(spec.output, owner, platform.settings)
    return _by_server(job.report_plan(spec, owner, platform, **_fields(spec, owner, place, platform)), platform)


def _fields(spec: BatchInferenceSpec, owner: Owner, place: OutputLocation, platform: Platform) -> dict[str, Any]:
    """Return the fields that a batch adds to run.json; answered parts are stored below the prefix of checkpoints."""
    return {
        "batch_inference": spec,
        "server_url": server_url(server_of(spec, owner)),
        "checkpoint_uri": job.checkpoints_uri(place.uri, owner),
        "image": server_image(platform.settings).name,
    }


def _by_server(plan: JobPlan, platform: Platform) -> JobPlan:
    """Return the plan with the server image, which has the program for batches."""
    return replace(plan, image=server_image(platform.settings), program=SERVER)


def _accesses(spec: BatchInferenceSpec, place: OutputLocation) -> Iterator[Access]:
    yield job.output_access(place)
    yield Access(Purpose.INPUT, spec.input.uri, spec.input.secret_ref, "spec.input.secretRef")
    if spec.api_key_secret_ref is not None:
        secret = LocalReference(name=spec.api_key_secret_ref.name)
        # The keys of the other clients are none of its business.
        yield Access(Purpose.API_KEY, None, secret, "spec.apiKeySecretRef", spec.api_key_secret_ref.key)
