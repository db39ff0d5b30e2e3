"""An AdapterServer: what it is to serve, its children, and what its replicas say of themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.serving import Desired
from tunery_api.validation import parse_adapterserver
from tunery_operator.client.status import status_change
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.managed_object import ManagedObject, chart_values, find_object
from tunery_operator.controllers.rejections import ambiguous_rejection, field_of, rejection_of
from tunery_operator.controllers.server_children import (
    LOOK_SECONDS,
    ensure_children,
    look_anew_if_due,
    mounted_keys,
    prove_pods,
    renumbered,
    served_before,
)
from tunery_operator.controllers.warnings import said_of_servers
from tunery_operator.controllers.writing import seconds_to_wait, write_down
from tunery_operator.errors import ApiFailure, AwaitingDeletion, FieldContested, NameTaken, OperatorError, Rejected
from tunery_operator.observed.owner import Key
from tunery_operator.planning.adapterserver import plan_server
from tunery_operator.planning.desired import resolve
from tunery_operator.planning.server_names import server_name
from tunery_operator.runtime.workqueue import DONE, Requeue, earliest
from tunery_operator.status.server.compute import compute_server_status
from tunery_operator.status.server.snapshot import Heard, ServerSnapshot

_FREQUENT: Final = frozenset({"adapters", "adapterCounts", "adaptersText", "replicaStatuses", "lastChangeTime"})
"""Fields that replicas change as they load one adapter after the other: written at most every few seconds."""


def reconcile_server(services: ReconcileContext, key: Key) -> Requeue:
    """Bring one server a step further; gives the same answer however often it is asked."""
    obj = find_object(services, key)
    if obj is None:
        services.retries.reset(key)
        return DONE
    look_anew_if_due(services, obj.owner)
    snapshot, retry_in = _take_step(services, obj)
    services.cache.mark_fresh(key)
    return _report(services, obj, _with_replicas(services, snapshot), retry_in)


def _take_step(services: ReconcileContext, obj: ManagedObject) -> tuple[ServerSnapshot, float | None]:
    """Return the snapshot after as many steps as went well, and what stood in the way of the next.

    And when to try that again, in seconds; None: nothing did, or trying again would not help.
    """
    key = obj.owner.key
    snapshot = ServerSnapshot(
        obj.owner,
        replicas=obj.replicas,
        watching_since=services.acting_since,
        distrust=services.distrust(),
        platform=chart_values(services, obj),
    )
    try:
        for step in (_prove, _judge, _resolve, _make):
            snapshot = step(services, obj, snapshot)
    except InvalidSpec as error:
        services.retries.reset(key)
        return _invalid(obj, snapshot, error), None
    except Rejected as error:
        services.retries.reset(key)
        return _rejected(obj, snapshot, error), None
    except (ApiFailure, FieldContested, NameTaken, AwaitingDeletion) as error:
        wait = services.retries.next(key)
        return _hampered(snapshot, error), max(wait, error.retry_after or 0.0)
    services.retries.reset(key)
    return snapshot, None


def _prove(services: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Find out whose the pods are that say they are this server's: also of one whose spec is not valid."""
    prove_pods(services, obj.owner)
    return snapshot


def _judge(services: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    return replace(snapshot, spec=parse_adapterserver(obj.body))


def _resolve(services: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Find out what is to be served."""
    spec, owner = _spec(snapshot), obj.owner
    before = served_before(services, owner)
    resolution = resolve(spec, services.cache.servers.offers(owner.key), before, mounted_keys(services, owner))
    desired = renumbered(services, owner, before, resolution.desired)
    return replace(snapshot, resolution=resolution._replace(desired=desired))


def _make(services: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Bring the children to what the spec says."""
    plan = plan_server(_spec(snapshot), obj.owner, services.platform)
    desired = snapshot.resolution.desired if snapshot.resolution is not None else Desired()
    return replace(snapshot, deployment=ensure_children(services, plan, desired))


def _spec(snapshot: ServerSnapshot) -> AdapterServerSpec:
    assert snapshot.spec is not None, "it was judged before"  # noqa: S101 - a fact of this file, for the type checker
    return snapshot.spec


def _invalid(obj: ManagedObject, snapshot: ServerSnapshot, error: InvalidSpec) -> ServerSnapshot:
    """Tell what is wrong with a spec, and what only today's settings find wrong with one that was good before."""
    if snapshot.spec is not None and obj.judged():
        return replace(snapshot, unplannable=error.errors)
    return replace(snapshot, errors=error.errors)


def _rejected(obj: ManagedObject, snapshot: ServerSnapshot, error: Rejected) -> ServerSnapshot:
    field = field_of(obj, error)
    if field is not None:
        return replace(snapshot, errors=(FieldError(field, str(error)),))
    return replace(snapshot, rejection=ambiguous_rejection(obj, snapshot.platform, error))


def _hampered(snapshot: ServerSnapshot, error: OperatorError) -> ServerSnapshot:
    if isinstance(error, ApiFailure):
        return replace(snapshot, rejection=rejection_of(error))
    if isinstance(error, FieldContested):
        return replace(snapshot, rejection=Failure(reason=FailureReason.FIELD_CONTESTED, message=str(error)))
    if isinstance(error, NameTaken):
        return replace(snapshot, conflict=str(error))
    return replace(snapshot, waiting_for=str(error))


def _with_replicas(services: ReconcileContext, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Return the snapshot with the Deployment, its pods, and what they reported."""
    servers, owner = services.cache.servers, snapshot.owner
    deployment = snapshot.deployment or servers.deployment(owner.key.namespace, server_name(owner.key.name))
    if deployment is not None and deployment.owner_uid != owner.uid:
        deployment = None
    pods = servers.pods(owner.key, owner.uid, deployment)
    said = servers.said(owner.key)
    reports = {pod.uid: Heard(said[pod.uid].state, said[pod.uid].at) for pod in pods if pod.uid in said}
    warnings = said_of_servers(services.warnings, services.client, owner.key.namespace, pods, services.now())
    return replace(snapshot, deployment=deployment, pods=pods, reports=reports, warnings=warnings)


def _report(
    services: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot, retry_in: float | None
) -> Requeue:
    """Bring the status up to date; `retry_in` is when to try again what could not be done."""
    outcome = compute_server_status(snapshot, obj.status, services.now())
    change = status_change(obj.body, outcome.status)
    later = earliest(retry_in, outcome.requeue_after, LOOK_SECONDS)
    wait = seconds_to_wait(services, obj, change, _FREQUENT) if change else 0.0
    if not change or wait > 0:
        return Requeue(earliest(later, wait if change else None))
    woken = write_down(services, obj, change)
    services.events.record(obj.owner, outcome.events)
    return Requeue(later, woken)
