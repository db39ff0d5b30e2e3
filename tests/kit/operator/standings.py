"""Where an object of ours can stand, kind by kind, and how people and tools are to take each of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.runspec import TrainerStatus
from tunery_api.status import Phase
from tunery_operator.observed.attempt import Attempt
from tunery_operator.planning.inputs import UnfinishedInput
from tunery_operator.status.conditions import WAITING_FOR_SLOT
from tunery_operator.status.snapshot import SAMPLER_BUSY, Blocker, Search
from tunery_search.decision import Decision

from kit.operator.objects import REPORT, RESULT
from kit.operator.servers import deployment, heard, reported, server_pod
from kit.operator.serverstatuskit import HEALTHY, compute
from kit.operator.serverstatuskit import snapshot as server
from kit.operator.statuskit import (
    NOW,
    TRAINING,
    at,
    deleting,
    ended,
    job,
    pod,
    queued_job,
    running,
    status_for,
)
from kit.sweeps import sweep, trial

Json = dict[str, Any]
LONG_AGO = NOW.replace(hour=1)
DOWNLOADS = TrainerStatus(phase=Phase.STARTING, doing="downloading", percent=43)
DIVERGED = {"failure": {"reason": "LossDiverged", "message": "loss is NaN at step 7"}}
ANSWERS = {"output": {"uri": "s3://answers/b", "manifestSha256": "cd" * 32, "sizeBytes": 5}}
FAILED = job(failed_reason="BackoffLimitExceeded")
DONE = job(complete=True)
NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
CHECKED = Attempt(DONE, (ended(says=REPORT),))


class Standing(NamedTuple):
    """A status that the operator writes, and what is to be read from it."""

    status: Json
    phase: str
    reason: str | None
    """status.reason, beside the phase in a list."""
    kstatus: str
    argo: str
    kind: Kind = Kind.LORAJOB


def none(**changes: Any) -> Json:
    """Return the status of a LoRAJob without a Job."""
    return status_for(main=None, **changes)


def of(kind: Kind, *pods: Any, **changes: Any) -> Json:
    """Return the status of another kind's object."""
    return status_for(*pods, kind=kind, **changes)


def searching(blocker: Blocker | None = None) -> Json:
    """Return the status of a sweep that makes trials, or would."""
    search = Search(sweep(maxTrials=4), (trial(0, value=2.0),), Decision(), blocker=blocker)
    return of(Kind.LORASWEEP, main=None, search=search)


WORKS, FAILS, FINE = ("InProgress", "Progressing"), ("Failed", "Degraded"), ("Current", "Healthy")
ENDS = ("Current", "Suspended")

STANDINGS: dict[str, Standing] = {
    "waits for a job": Standing(
        none(inputs=(UnfinishedInput("y", "is Training"),)), "Waiting", "WaitingForInputs", *WORKS
    ),
    "waits for a job that is not there": Standing(
        none(inputs=(UnfinishedInput("y", "does not exist", exists=False),)), "Waiting", "InputMissing", *WORKS
    ),
    "waits for its turn": Standing(
        none(preflight_needed=True, waiting_for="one of 2", waiting_reason=WAITING_FOR_SLOT),
        "Waiting",
        "WaitingForPreflightSlot",
        *WORKS,
    ),
    "waits for a pod of that name": Standing(
        none(waiting_for="Job x-train of an earlier object"), "Waiting", "WaitingForPredecessor", *WORKS
    ),
    "a client suspended its Job": Standing(status_for(train=job(suspend=True)), "Waiting", "JobSuspended", *WORKS),
    "is checked": Standing(
        none(preflight_needed=True, preflight=Attempt(job(), (running(),))), "Preflight", None, *WORKS
    ),
    "no quota": Standing(
        none(rejection=Failure(reason=FailureReason.QUOTA_EXCEEDED, message="exceeded quota: gpus")),
        "Starting",
        "QuotaExceeded",
        *WORKS,
    ),
    "no turn in the queue": Standing(status_for(train=queued_job(suspend=True)), "Queued", "WaitingForQuota", *WORKS),
    "no node": Standing(status_for(pod(conditions=[NO_NODE])), "Starting", "Unschedulable", *WORKS),
    "starts": Standing(status_for(), "Starting", None, *WORKS),
    "imports": Standing(status_for(running(started=-3)), "Starting", None, *WORKS),
    "downloads": Standing(status_for(running(), progress=DOWNLOADS), "Downloading", None, *WORKS),
    "trains": Standing(status_for(running(), progress=TRAINING), "Training", None, *WORKS),
    "does not report": Standing(
        status_for(running(started=-121), taking_reports_since=LONG_AGO), "Starting", "NotReporting", *WORKS
    ),
    "is tried again": Standing(status_for(ended(code=75)), "Starting", "AttemptFailed", *WORKS),
    "is being stopped": Standing(status_for(running(meta=deleting(60)), stop="enough"), "Stopping", None, *WORKS),
    "is being suspended": Standing(status_for(running(meta=deleting(60)), suspend=True), "Suspending", None, *WORKS),
    "rests": Standing(none(suspend=True), "Suspended", None, "Current", "Suspended"),
    "was stopped": Standing(none(stop="enough"), "Stopped", "StopRequested", *ENDS),
    "has failed": Standing(status_for(ended(code=64, says=DIVERGED), train=FAILED), "Failed", "LossDiverged", *FAILS),
    "is no job": Standing(
        none(errors=(FieldError("spec.lora.rank", "must be at least 1"),)), "Failed", "InvalidSpec", *FAILS
    ),
    "has succeeded": Standing(status_for(ended(says=RESULT), train=DONE), "Succeeded", None, *FINE),
    "was to be checked only": Standing(
        none(preflight_needed=True, preflight=CHECKED, preflight_only=True), "Succeeded", "PreflightOnly", *FINE
    ),
    "a merge": Standing(
        of(Kind.ADAPTERMERGE, running(), progress=TrainerStatus(phase=Phase.MERGING)),
        "Merging",
        None,
        *WORKS,
        Kind.ADAPTERMERGE,
    ),
    "a merge that brings its base": Standing(
        of(Kind.ADAPTERMERGE, running(), progress=DOWNLOADS), "Downloading", None, *WORKS, Kind.ADAPTERMERGE
    ),
    "a batch that is answered": Standing(
        of(Kind.BATCHINFERENCE, ended(says=ANSWERS), train=DONE),
        "Succeeded",
        None,
        *FINE,
        Kind.BATCHINFERENCE,
    ),
    "a sweep": Standing(searching(), "Searching", None, *WORKS, Kind.LORASWEEP),
    "a sweep whose sampler is busy": Standing(
        searching(Blocker(SAMPLER_BUSY, "waits for Optuna", 2.0)),
        "Searching",
        "SamplerBusy",
        *WORKS,
        Kind.LORASWEEP,
    ),
    "a server that serves": Standing(compute(HEALTHY).status, "Ready", None, *FINE, Kind.ADAPTERSERVER),
    "a server that starts": Standing(
        compute(server(rollout=deployment(1))).status, "Starting", None, *WORKS, Kind.ADAPTERSERVER
    ),
    "a server without replicas": Standing(
        compute(server(replicas=0, rollout=deployment(0))).status, "Stopped", None, *FINE, Kind.ADAPTERSERVER
    ),
    "a server in trouble": Standing(
        compute(
            server(server_pod("a"), reports={"a": heard(reported("bot"))}, conflict="Deployment x is not ours")
        ).status,
        "Degraded",
        "NameConflict",
        "InProgress",
        "Degraded",
        Kind.ADAPTERSERVER,
    ),
    "no server": Standing(
        compute(server(errors=(FieldError("spec.engine", "is wrong"),), served=None)).status,
        "Invalid",
        "InvalidSpec",
        *FAILS,
        Kind.ADAPTERSERVER,
    ),
}


def as_object(standing: Standing, **metadata: Any) -> Json:
    """Return an object of that status, as the API server has it."""
    meta = {"name": "x", "namespace": "ns", "generation": standing.status["observedGeneration"], "uid": "uid-1"}
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": standing.kind.value,
        "metadata": {**meta, "creationTimestamp": at(-900), **metadata},
        "status": standing.status,
    }
