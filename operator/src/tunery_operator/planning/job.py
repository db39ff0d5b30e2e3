"""What every kind decides alike: the place of the result, identity, image, and the Job as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference, OutputSpec
from tunery_api.names import CHECKPOINTS_PREFIX, KUEUE_LABELS, REPORTS_PREFIX, child_name, folder_in_bucket
from tunery_api.placement import ResourcesSpec
from tunery_api.runspec import DiskLimit, Purpose, RunIdentity, RunSpec, Task
from tunery_operator.config import Settings
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import mounts, placing
from tunery_operator.planning.mounts import Access
from tunery_operator.planning.types import AskedResources, Image, JobPlan, JobSpec, Progress, Resources

MAX_CHECK_RETRIES: Final = 3


class Platform(NamedTuple):
    """What the operator process knows apart from the object: its settings and its certificate authority."""

    settings: Settings
    progress: Progress | None = None


class Place(NamedTuple):
    """Where the result goes, and the Secret that opens it."""

    uri: str
    secret: LocalReference | None
    field: str


def output_place(output: OutputSpec, owner: Owner, settings: Settings) -> Place:
    """Return the place of the result.

    Raises InvalidSpec when neither the manifest nor the platform names one.
    """
    uri = output.uri.rstrip("/") if output.uri else _default_uri(owner, settings)
    if output.secret_ref is not None:
        return Place(uri, output.secret_ref, "spec.output.secretRef")
    if settings.default_output.secret_name:
        return Place(
            uri, LocalReference(name=settings.default_output.secret_name), "the platform's default output secret"
        )
    return Place(uri, None, "spec.output.secretRef")


def _default_uri(owner: Owner, settings: Settings) -> str:
    if not settings.default_output.uri:
        raise InvalidSpec([FieldError("spec.output.uri", "is required: the platform has no default output")])
    return f"{settings.default_output.uri}/{owner.key.namespace}/{owner.key.name}/{owner.uid}"


def checkpoint_place(output_uri: str, owner: Owner, newest: str | None) -> str:
    """Return the prefix of the checkpoints: of this very object only, and named by one rule in each bucket.

    `newest` is the URI of the newest checkpoint: whatever place an earlier version gave it, it goes on there.
    """
    before = (newest or "").rstrip("/").rpartition("/")[0]
    if owner.uid in before:
        return before
    return folder_in_bucket(output_uri, CHECKPOINTS_PREFIX, owner.key.namespace, owner.key.name, owner.uid)


def report_place(output_uri: str, owner: Owner) -> str:
    """Return the folder for an object's data report, in the output's bucket: of this very object only."""
    return folder_in_bucket(output_uri, REPORTS_PREFIX, owner.key.namespace, owner.key.name, owner.uid)


def identity(owner: Owner) -> RunIdentity:
    """Return whose run it is, for run.json."""
    key = owner.key
    return RunIdentity(kind=key.kind.value, namespace=key.namespace, name=key.name, uid=owner.uid, sweep=owner.sweep)


def image(settings: Settings) -> Image:
    """Return the trainer image."""
    return _image(settings.trainer.image, settings)


def server_image(settings: Settings) -> Image:
    """Return the image of gateway and batches; raises InvalidSpec if the platform names none."""
    name = settings.serving.server.image
    if not name:
        raise InvalidSpec([FieldError("spec", "the platform serves nothing: its serving.server.image is empty")])
    return _image(name, settings)


def _image(name: str, settings: Settings) -> Image:
    return Image(name, settings.image.pull_policy, settings.image.pull_secrets)


def resources(spec: AskedResources) -> Resources:
    """Return the resources of the container that does the work."""
    return Resources(spec.cpu, spec.memory, spec.ephemeral_storage, spec.gpus, spec.gpu_resource)


def with_disk(spec: ResourcesSpec, needed: int | None) -> ResourcesSpec:
    """Return the resources with a disk of `needed` bytes at least, unless the manifest itself says how large it is."""
    if needed is None or "ephemeral_storage" in spec.model_fields_set:
        return spec
    if needed <= parse_quantity(spec.ephemeral_storage):
        return spec
    return spec.model_copy(update={"ephemeral_storage": f"{-(-needed // 2**30)}Gi"})


def check_resources(settings: Settings) -> Resources:
    """Return the resources of a container that checks or reports: no GPU."""
    resources = settings.preflight.resources
    return Resources(resources.cpu, resources.memory, resources.ephemeral_storage)


def kueue_labels(owner: Owner) -> dict[str, str]:
    """Return the owner's Kueue labels, which the Job that does the work carries on."""
    return {name: owner.labels[name] for name in KUEUE_LABELS if owner.labels.get(name)}


def run_spec(spec: JobSpec, owner: Owner, platform: Platform, place: Place, accesses: Sequence[Access]) -> RunSpec:
    """Return what run.json says for every kind; the spec itself and the adapters come on top."""
    return RunSpec(
        identity=identity(owner),
        output_uri=place.uri,
        secrets=mounts.run_secrets(accesses),
        volumes=mounts.run_volumes(mounts.volume_mounts(accesses)),
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        disk=_disk(spec.resources.ephemeral_storage, "spec.resources.ephemeralStorage"),
        image=platform.settings.trainer.image,
    )


def _disk(quantity: str, field: str) -> DiskLimit:
    return DiskLimit(bytes=int(parse_quantity(quantity)), field=field)


@dataclass(frozen=True, slots=True)
class Errand:
    """What a Job's container is to do, and what it must get at for that."""

    task: Task
    run: RunSpec
    accesses: Sequence[Access]


def job_plan(spec: JobSpec, owner: Owner, platform: Platform, errand: Errand) -> JobPlan:
    """Return the plan of a Job that runs as the spec's own resources, scheduling and retries say."""
    settings = platform.settings
    return JobPlan(
        owner=owner,
        task=errand.task,
        name=child_name(owner.key.name, errand.task.value),
        run=errand.run,
        image=image(settings),
        resources=resources(spec.resources),
        secrets=mounts.secret_mounts(errand.accesses),
        volumes=mounts.volume_mounts(errand.accesses),
        scheduling=placing.work_scheduling(spec.scheduling, settings, spec.resources.gpus),
        retries=spec.retries,
        suspend=spec.suspend,
        kueue_labels=kueue_labels(owner),
        progress=platform.progress,
        settings=owner.settings,
        pod=placing.pod_extras(owner, settings),
    )


def check_plan(base: JobPlan, spec: JobSpec, settings: Settings) -> JobPlan:
    """Return the plan of a Job that only looks at things: on CPU, with the platform's own resources and placement."""
    disk = _disk(settings.preflight.resources.ephemeral_storage, "the platform's preflight.resources.ephemeralStorage")
    return replace(
        base,
        run=base.run.model_copy(update={"disk": disk}),
        resources=check_resources(settings),
        scheduling=placing.check_scheduling(spec.scheduling, settings),
        retries=min(spec.retries, MAX_CHECK_RETRIES),
        kueue_labels=_check_labels(base.owner, settings),
        progress=None,
    )


def report_plan(spec: JobSpec, owner: Owner, platform: Platform, own: Mapping[str, Any]) -> JobPlan:
    """Return the plan of a Job that says again what was published; `own` is what its kind adds to run.json.

    It opens the output and nothing else. Raises InvalidSpec when no place for the output is known.
    """
    place = output_place(spec.output, owner, platform.settings)
    accesses = [Access(Purpose.OUTPUT, place.uri, place.secret, place.field)]
    run = run_spec(spec, owner, platform, place, accesses).model_copy(update=own)
    base = job_plan(spec, owner, platform, Errand(Task.REPORT, run, accesses))
    return check_plan(base, spec, platform.settings)


def _check_labels(owner: Owner, settings: Settings) -> dict[str, str]:
    if settings.preflight.queue_from_owner:
        return kueue_labels(owner)
    queue = settings.preflight.queue_name
    return {KUEUE_LABELS[0]: queue} if queue else {}
