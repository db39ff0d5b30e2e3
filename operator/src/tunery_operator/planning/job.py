"""Plan a Job of any kind: where its result goes, its run.json, and the plan of a Job that checks or reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference, OutputSpec
from tunery_api.jobs import ResourcesSpec, SchedulingSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.names import (
    CHECKPOINTS_PREFIX,
    KUEUE_LABELS,
    REPORTS_PREFIX,
    child_name,
    folder_in_bucket,
    nodes_service,
)
from tunery_api.runspec import DiskLimit, Purpose, RunIdentity, RunSpec, Task
from tunery_operator.config import Settings
from tunery_operator.observed.job import ca_digest
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import pod
from tunery_operator.planning.pod import Access, Image, PodExtras, Resources, TenantSecret, TenantVolume

MAX_CHECK_RETRIES: Final = 3
TRAINER: Final = "tunery_trainer"
SERVER: Final = "tunery_server"
"""The programs of the two images."""


@dataclass(frozen=True, slots=True)
class PublishSpec:
    """The fields of a spec for the Job that publishes the best trial of a sweep."""

    output: OutputSpec
    scheduling: SchedulingSpec
    suspend: bool
    retries: int = MAX_CHECK_RETRIES
    resources: ResourcesSpec = field(default_factory=lambda: ResourcesSpec(gpus=0))


JobSpec = LoRAJobSpec | AdapterMergeSpec | BatchInferenceSpec | PublishSpec


@dataclass(frozen=True, slots=True)
class Progress:
    """The URL of the progress endpoint, and the certificate authority that pods trust for it."""

    url: str
    ca_pem: str
    """Empty: unknown, as the certificate is invalid."""

    @property
    def authority(self) -> str:
        """A short name of the certificate authority."""
        return ca_digest(self.ca_pem)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """The plan of a batch Job, its pod, and its run.json."""

    owner: Owner
    task: Task
    name: str
    run: RunSpec
    image: Image
    resources: Resources
    secrets: tuple[TenantSecret, ...]
    volumes: tuple[TenantVolume, ...]
    scheduling: SchedulingSpec
    retries: int
    suspend: bool
    kueue_labels: Mapping[str, str]
    progress: Progress | None
    settings: str
    """Digest of the fields of the spec that may change while no pod runs: a Job of another digest is recreated."""
    pod: PodExtras = field(default_factory=PodExtras)
    grace_seconds: int = 30
    program: str = TRAINER
    """The Python package that the container runs."""
    nodes: int = 1
    """The number of pods; several pods have an index, and find each other by `service`."""
    deadline_seconds: int | None = None
    """activeDeadlineSeconds of the Job; None: the operator adds up the run time of the pods itself."""
    ttl_seconds: int | None = None
    """ttlSecondsAfterFinished of the Job; None: it exists as long as its object."""

    @property
    def service(self) -> str:
        """The name of the headless Service of several pods."""
        return nodes_service(self.owner.uid)

    @property
    def digest(self) -> str:
        """The digest of the platform's settings for the pods and of their scheduling: a waiting Job follows a change.

        The run, the queue, and the certificate authority of the progress endpoint are not part of it.
        """
        pod = self.pod
        # Only if there are any, so that other digests stay the same.
        more = {"extended": dict(pod.resources)} if pod.resources else {}
        return digest_of(
            {
                **more,
                "image": asdict(self.image),
                "resources": asdict(self.resources),
                "scheduling": self.scheduling.to_json_dict(),
                "labels": [dict(pod.labels), dict(pod.annotations)],
                "pod": [dict(pod.env), pod.shm_size, pod.security.model_dump(mode="json")],
                "authorities": pod.ca_bundle.model_dump(mode="json"),
                "progress": self.progress and self.progress.url,
            }
        )


def digest_of(value: Any) -> str:
    """Return the digest of a tree of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Platform(NamedTuple):
    """The settings of the operator and its progress endpoint."""

    settings: Settings
    progress: Progress | None = None


class OutputLocation(NamedTuple):
    """The location of the result, and the Secret with access to it."""

    uri: str
    secret: LocalReference | None
    field: str


def output_location(output: OutputSpec, owner: Owner, settings: Settings) -> OutputLocation:
    """Return the location of the result.

    Raises InvalidSpec when neither the manifest nor the platform names one.
    """
    uri = output.uri.rstrip("/") if output.uri else _default_uri(owner, settings)
    if output.secret_ref is not None:
        return OutputLocation(uri, output.secret_ref, "spec.output.secretRef")
    if settings.default_output.secret_name:
        return OutputLocation(
            uri, LocalReference(name=settings.default_output.secret_name), "the platform's default output secret"
        )
    return OutputLocation(uri, None, "spec.output.secretRef")


def _default_uri(owner: Owner, settings: Settings) -> str:
    if not settings.default_output.uri:
        raise InvalidSpec([FieldError("spec.output.uri", "is required: the platform has no default output")])
    return f"{settings.default_output.uri}/{owner.key.namespace}/{owner.key.name}/{owner.uid}"


def checkpoints_uri(output_uri: str, owner: Owner) -> str:
    """Return the prefix of the checkpoints of this object, in the output's bucket."""
    return folder_in_bucket(output_uri, CHECKPOINTS_PREFIX, owner.key.namespace, owner.key.name, owner.uid)


def report_uri(output_uri: str, owner: Owner) -> str:
    """Return the folder for the data report of this object, in the output's bucket."""
    return folder_in_bucket(output_uri, REPORTS_PREFIX, owner.key.namespace, owner.key.name, owner.uid)


def identity(owner: Owner) -> RunIdentity:
    """Return the owner of the run, for run.json."""
    key = owner.key
    return RunIdentity(kind=key.kind.value, namespace=key.namespace, name=key.name, uid=owner.uid, sweep=owner.sweep)


def kueue_labels(owner: Owner) -> dict[str, str]:
    """Return the owner's Kueue labels, for the main Job."""
    return {name: owner.labels[name] for name in KUEUE_LABELS if owner.labels.get(name)}


def run_spec(
    spec: JobSpec, owner: Owner, platform: Platform, accesses: Sequence[Access], fields: Mapping[str, Any]
) -> RunSpec:
    """Return the common fields of run.json, with the `fields` of one kind."""
    run = RunSpec(
        identity=identity(owner),
        output_uri=next(access.uri or "" for access in accesses if access.purpose == Purpose.OUTPUT),
        secrets=pod.run_secrets(accesses),
        volumes=pod.run_volumes(pod.volume_mounts(accesses)),
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        disk=_disk(spec.resources.ephemeral_storage, "spec.resources.ephemeralStorage"),
        image=platform.settings.trainer.image,
    )
    return run.model_copy(update=dict(fields))


def _disk(quantity: str, field: str) -> DiskLimit:
    return DiskLimit(bytes=int(parse_quantity(quantity)), field=field)


def job_plan(
    spec: JobSpec, owner: Owner, platform: Platform, task: Task, accesses: Sequence[Access], **fields: Any
) -> JobPlan:
    """Return the plan of a Job with the resources, scheduling and retries of the spec.

    `fields` are the fields of run.json that its kind adds.
    """
    settings = platform.settings
    return JobPlan(
        owner=owner,
        task=task,
        name=child_name(owner.key.name, task.value),
        run=run_spec(spec, owner, platform, accesses, fields),
        image=pod.image(settings),
        resources=pod.resources(spec.resources),
        secrets=pod.secret_mounts(accesses),
        volumes=pod.volume_mounts(accesses),
        scheduling=pod.work_scheduling(spec.scheduling, settings, spec.resources.gpus),
        retries=spec.retries,
        suspend=spec.suspend,
        kueue_labels=kueue_labels(owner),
        progress=platform.progress,
        settings=owner.settings,
        pod=pod.pod_extras(owner, settings),
    )


def check_plan(base: JobPlan, spec: JobSpec, settings: Settings) -> JobPlan:
    """Return the plan of a Job that checks or reports: on CPU, with the platform's resources and placement."""
    disk = _disk(settings.preflight.resources.ephemeral_storage, "the platform's preflight.resources.ephemeralStorage")
    return replace(
        base,
        run=base.run.model_copy(update={"disk": disk}),
        resources=pod.platform_resources(settings.preflight.resources),
        scheduling=pod.check_scheduling(spec.scheduling, settings),
        retries=min(spec.retries, MAX_CHECK_RETRIES),
        kueue_labels=_check_labels(base.owner, settings),
        progress=None,
    )


def report_plan(spec: JobSpec, owner: Owner, platform: Platform, **fields: Any) -> JobPlan:
    """Return the plan of a Job that reads back what was published; `fields` are those of its kind in run.json.

    The Job has access to the output only. Raises InvalidSpec if neither the manifest nor the platform names an output.
    """
    accesses = [output_access(output_location(spec.output, owner, platform.settings))]
    base = job_plan(spec, owner, platform, Task.REPORT, accesses, **fields)
    return check_plan(base, spec, platform.settings)


def output_access(place: OutputLocation) -> Access:
    """Return the access to the output."""
    return Access(Purpose.OUTPUT, place.uri, place.secret, place.field)


def _check_labels(owner: Owner, settings: Settings) -> dict[str, str]:
    if settings.preflight.queue_from_owner:
        return kueue_labels(owner)
    queue = settings.preflight.queue_name
    return {KUEUE_LABELS[0]: queue} if queue else {}
