"""Provide reads: from the cache where a watch keeps it current, live where an absence matters."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal

from tunery_operator.client.client import Json, KubeClient
from tunery_operator.client.permissions import GET_JOB, LIST_EVENTS, LIST_PODS, get_owner
from tunery_operator.errors import StaleObject
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.event import ClusterWarning, parse_warning
from tunery_operator.observed.job import JobView, parse_job
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.observed.pod import PodView, parse_pod
from tunery_operator.runtime.cache import Cache

MAX_EVENTS: Final = 100
"""Events of one object that are read: the kubelet and the Job controller count repetitions in one event."""


def read_object(client: KubeClient, cache: Cache, key: Key) -> Json | None:
    """Return one of our objects, or None if it does not exist."""
    body = None if cache.state(key).stale else cache.body(key)
    return body if body is not None else read_live(client, cache, key)


def read_live(client: KubeClient, cache: Cache, key: Key) -> Json | None:
    """Return the live state of one of our objects, or None if it does not exist."""
    known = cache.get(key)
    live = client.get(get_owner(key.kind.plural), key.namespace, key.name)
    if live is not None:
        # The watch reports no change for this version any more, so objects that wait for it are enqueued here.
        cache.defer_keys(cache.put_object(key.kind, live) - {key})
    elif known is not None and known.active:
        # Only the object that was known before: the watch may have added another of its name since the answer.
        cache.defer_keys(cache.objects[key.kind].delete(known) - {key})
    return live


def peek_object(client: KubeClient, cache: Cache, key: Key) -> Json | None:
    """Return an object of ours for the reconcile of another object, or None if it does not exist.

    The cache is not updated: the watch would then report no change of it, and it would not be reconciled.
    Raises StaleObject if the cache has it and the API server does not: one of the two is about to change, and a caller
    that believed the absence would wait for a change that never comes.
    """
    body = cache.body(key)
    live = body if body is not None else client.get(get_owner(key.kind.plural), key.namespace, key.name)
    if live is None and cache.get(key) is not None:
        raise StaleObject(f"{key} was seen, and the API server does not know it")
    return live


def read_attempt(client: KubeClient, cache: Cache, owner: Owner, name: str) -> Attempt | None:
    """Return the owner's Job of that name with its pods, or None if it does not exist.

    Job and pods come over two watches, and a pod that has ended is no longer watched. If the Job has ended, or counts
    pods that the cache does not have, the pods are read live.
    """
    job = _read_job(client, cache, owner, name)
    if job is None or job.owner_uid != owner.uid:
        return None
    if cache.needs_pod_list(job) or job.finished or cache.state(owner.key).stale:
        _list_pods(client, cache, job)
    return Attempt(job, cache.pods_of(job.namespace, job.uid))


def _read_job(client: KubeClient, cache: Cache, owner: Owner, name: str) -> JobView | None:
    namespace = owner.key.namespace
    if cache.state(owner.key).stale:
        live = client.get(GET_JOB, namespace, name)
        known = cache.jobs.get(namespace, name)
        if live is not None:
            cache.jobs.put(parse_job(live))
        elif known is not None:
            cache.jobs.delete(known)
    return cache.jobs.get(namespace, name)


def _list_pods(client: KubeClient, cache: Cache, job: JobView) -> None:
    selector = {"labelSelector": f"batch.kubernetes.io/controller-uid={job.uid}"}
    answer = client.request(LIST_PODS, job.namespace, query=selector)
    pods = [parse_pod(item, cache.now()) for item in answer.get("items") or []]
    cache.put_pod_list(job, pods, answer["metadata"]["resourceVersion"])


def read_ended_pods(
    client: KubeClient, namespace: str, job_name: str, uids: Collection[str], now: datetime
) -> tuple[PodView, ...]:
    """Return those of the named pods that have ended and still exist, with their termination messages.

    The watch does not report the message of a pod that has ended. If its Job is gone, no other read does.
    """
    selector = {"labelSelector": f"batch.kubernetes.io/job-name={job_name}"}
    items = client.request(LIST_PODS, namespace, query=selector).get("items") or []
    pods = [parse_pod(item, now) for item in items if item["metadata"]["uid"] in uids]
    return tuple(pod for pod in pods if pod.finished)


def read_warnings(
    client: KubeClient, namespace: str, uid: str, about: Literal["Job", "Pod"]
) -> tuple[ClusterWarning, ...]:
    """Return the warnings that the cluster's components posted about a Job or a pod, oldest first."""
    query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning", "limit": str(MAX_EVENTS)}
    items = client.request(LIST_EVENTS, namespace, query=query).get("items") or []
    return tuple(sorted((parse_warning(item, about) for item in items), key=lambda warning: warning.time))
