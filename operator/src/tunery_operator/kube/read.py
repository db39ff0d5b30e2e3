"""Gather: from memory where a watch told, live where an absence matters."""

from __future__ import annotations

from tunery_operator.kube.cache import Cache
from tunery_operator.kube.client import Json, KubeClient
from tunery_operator.kube.rbac import GET_JOB, LIST_PODS, get_owner
from tunery_operator.plan.model import Key, Owner
from tunery_operator.status.jobview import JobView
from tunery_operator.status.snapshot import Attempt


def read_object(client: KubeClient, cache: Cache, key: Key) -> Json | None:
    """Return one of our objects, or None where there is none."""
    body = None if key in cache.stale else cache.bodies.get(key)
    if body is not None:
        return body
    live = client.get(get_owner(key.kind.plural), key.namespace, key.name)
    if live is None:
        cache.forget_owner(key)
    else:
        cache.see_owner(key.kind, live)
    return live


def read_attempt(client: KubeClient, cache: Cache, owner: Owner, name: str) -> Attempt | None:
    """Return the owner's Job of that name with its pods, or None where it has none.

    Job and pods come over two watches: once the Job has ended, its pods are read live.
    """
    job = _read_job(client, cache, owner, name)
    if job is None or job.owner_uid != owner.uid:
        return None
    if job.finished or owner.key in cache.stale:
        cache.replace_pods(job.uid, _live_pods(client, owner.key.namespace, job))
    return Attempt(job, cache.pods(job.uid))


def _read_job(client: KubeClient, cache: Cache, owner: Owner, name: str) -> JobView | None:
    namespace = owner.key.namespace
    if owner.key in cache.stale:
        live = client.get(GET_JOB, namespace, name)
        known = cache.job(namespace, name)
        if live is not None:
            cache.see_job(live)
        elif known is not None:
            cache.forget_job(namespace, name, known.uid)
    return cache.job(namespace, name)


def _live_pods(client: KubeClient, namespace: str, job: JobView) -> list[Json]:
    selector = {"labelSelector": f"batch.kubernetes.io/controller-uid={job.uid}"}
    items = client.request(LIST_PODS, namespace, query=selector).get("items") or []
    return list(items)
