"""What both kinds decide alike: the place of the result, identity, image, and the Job as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference, OutputSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import KUEUE_LABELS, child_name
from tunery_api.placement import ResourcesSpec
from tunery_api.runspec import RunIdentity, RunSpec, Task
from tunery_operator.plan import mounts
from tunery_operator.plan.model import Image, JobPlan, Owner, Progress, Resources
from tunery_operator.plan.mounts import Access
from tunery_operator.settings import Settings


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
    if settings.default_output_secret:
        return Place(uri, LocalReference(name=settings.default_output_secret), "the platform's default output secret")
    return Place(uri, None, "spec.output.secretRef")


def _default_uri(owner: Owner, settings: Settings) -> str:
    if not settings.default_output_uri:
        raise InvalidSpec([FieldError("spec.output.uri", "is required: the platform has no default output")])
    return f"{settings.default_output_uri}/{owner.key.namespace}/{owner.key.name}/{owner.uid}"


def checkpoint_place(output_uri: str, owner: Owner) -> str:
    """Return the prefix of the checkpoints: beside the output, and of this very object only."""
    return f"{output_uri}-checkpoints/{owner.uid}"


def identity(owner: Owner) -> RunIdentity:
    """Return whose run it is, for run.json."""
    key = owner.key
    return RunIdentity(kind=key.kind.value, namespace=key.namespace, name=key.name, uid=owner.uid)


def config_name(job_name: str, owner: Owner) -> str:
    """Return the name of the ConfigMap of a Job: a predecessor's can never be mistaken for it."""
    return f"{job_name}-{owner.uid[:8]}"


def image(settings: Settings) -> Image:
    """Return the trainer image."""
    return Image(settings.trainer_image, settings.trainer_pull_policy, tuple(settings.trainer_pull_secrets))


def resources(spec: ResourcesSpec) -> Resources:
    """Return the resources of the container that trains or merges."""
    return Resources(spec.cpu, spec.memory, spec.ephemeral_storage, spec.gpus, spec.gpu_resource)


def preflight_resources(settings: Settings) -> Resources:
    """Return the resources of a preflight container: no GPU."""
    return Resources(settings.preflight_cpu, settings.preflight_memory, settings.preflight_ephemeral_storage)


def kueue_labels(owner: Owner) -> dict[str, str]:
    """Return the owner's Kueue labels, which the Job that does the work carries on."""
    return {name: owner.labels[name] for name in KUEUE_LABELS if name in owner.labels}


def run_spec(
    spec: LoRAJobSpec | AdapterMergeSpec, owner: Owner, platform: Platform, place: Place, accesses: Sequence[Access]
) -> RunSpec:
    """Return what run.json says for both kinds; the spec itself and the adapters come on top."""
    return RunSpec(
        identity=identity(owner),
        output_uri=place.uri,
        secrets=mounts.run_secrets(accesses),
        volumes=mounts.run_volumes(mounts.volume_mounts(accesses)),
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        image=platform.settings.trainer_image,
    )


def job_plan(
    spec: LoRAJobSpec | AdapterMergeSpec,
    owner: Owner,
    platform: Platform,
    task: Task,
    run: RunSpec,
    accesses: Sequence[Access],
) -> JobPlan:
    """Return the plan of a Job that runs as the spec's own resources, scheduling and retries say."""
    name = child_name(owner.key.name, task.value)
    return JobPlan(
        owner=owner,
        task=task,
        name=name,
        config_name=config_name(name, owner),
        run=run,
        image=image(platform.settings),
        resources=resources(spec.resources),
        secrets=mounts.secret_mounts(accesses),
        volumes=mounts.volume_mounts(accesses),
        scheduling=spec.scheduling,
        retries=spec.retries,
        active_deadline_seconds=spec.active_deadline_seconds,
        suspend=spec.suspend,
        kueue_labels=kueue_labels(owner),
        progress=platform.progress,
    )
