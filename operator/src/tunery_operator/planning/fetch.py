"""Plan the Job that serves the results of an object to the client that requested it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fetching import MAX_FETCH_SECONDS, FetchRequest
from tunery_api.inputs import OutputSpec
from tunery_api.jobs import SchedulingSpec
from tunery_api.kinds import Kind
from tunery_api.names import KUEUE_LABELS
from tunery_api.runspec import FetchRun, Task
from tunery_operator.config import PlatformResources, Settings
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import job, pod
from tunery_operator.planning.job import SERVER, JobPlan, Platform, PublishSpec

RESOURCES: Final = PlatformResources(cpu="250m", memory="256Mi", ephemeral_storage="256Mi")
_RETRIES: Final = 1
_GRACE_SECONDS: Final = 5
_RESULTS: Final = ("adapter", "output", "rejectedAdapter")
"""The fields of a status with a published result; the first one that is set counts."""


def plan_fetch(
    body: Mapping[str, Any], owner: Owner, platform: Platform, request: FetchRequest, seconds: float
) -> JobPlan:
    """Return the plan of the Job that serves the results of an object for so many seconds.

    The pod has access to the object's output only, with its own Secret. `request` is the Job's digest of settings: a
    Job of another request is replaced. Raises InvalidSpec if the object has no valid output, or the platform has no
    server image.
    """
    spec, settings = _spec(body), platform.settings
    place = job.output_location(spec.output, owner, settings)
    result = _result(body.get("status") or {})
    served = FetchRun(
        token_sha256=request.token_sha256,
        result_uri=result.get("uri"),
        manifest_sha256=result.get("manifestSha256"),
    )
    fields: dict[str, Any] = {"fetch": served, "report_uri": job.report_uri(place.uri, owner)}
    if owner.key.kind is Kind.BATCHINFERENCE:
        # The list of invalid lines is stored next to the answered parts.
        fields["checkpoint_uri"] = job.checkpoints_uri(place.uri, owner)
    image = pod.server_image(settings)
    base = job.job_plan(spec, owner, platform, Task.FETCH, [job.output_access(place)], **fields, image=image.name)
    return replace(
        base,
        image=image,
        program=SERVER,
        resources=pod.platform_resources(RESOURCES),
        scheduling=pod.check_scheduling(spec.scheduling, settings),
        retries=_RETRIES,
        kueue_labels=_queue(settings),
        progress=None,
        settings=str(request),
        grace_seconds=_GRACE_SECONDS,
        deadline_seconds=max(1, math.ceil(seconds)),
        # It isn't deleted before the request expires: the operator would create it again.
        ttl_seconds=MAX_FETCH_SECONDS,
    )


def _spec(body: Mapping[str, Any]) -> PublishSpec:
    """Return output and scheduling of a spec of any kind: the rest of a spec that was accepted once may be invalid."""
    spec = body.get("spec") or {}
    scheduling = (spec.get("template") or spec).get("scheduling") or {}
    try:
        output = OutputSpec.model_validate(spec.get("output") or {})
        return PublishSpec(output, SchedulingSpec.model_validate(scheduling), suspend=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec([FieldError(".".join(("spec", *map(str, first["loc"]))), first["msg"])]) from error


def _result(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((status[name] for name in _RESULTS if status.get(name)), {})


def _queue(settings: Settings) -> dict[str, str]:
    """Return the label of the queue of preflights, if the platform has one; never that of the object's own queue."""
    queue = settings.preflight.queue_name
    return {KUEUE_LABELS[0]: queue} if queue else {}
