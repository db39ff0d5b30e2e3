"""Put bodies of the API server into the operator's cache, and delete them there, as a watch does."""

from __future__ import annotations

from dataclasses import replace

from tunery_operator.observed.deployment import is_server_pod, parse_server_pod
from tunery_operator.observed.job import parse_job
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.pod import parse_pod
from tunery_operator.runtime.cache import Cache

from kit.operator.api import Json


def active_keys(cache: Cache) -> list[Key]:
    """Return the keys of the active objects."""
    return [view.key for view in cache.all_objects() if view.active]


def delete_object(cache: Cache, key: Key, uid: str | None = None) -> set[Key]:
    """Delete an object, if it has this uid; None: whichever it has."""
    view = cache.get(key)
    return set() if view is None else cache.objects[key.kind].delete(replace(view, uid=uid or view.uid))


def put_job(cache: Cache, body: Json) -> set[Key]:
    """Add or update a Job."""
    return cache.jobs.put(parse_job(body))


def delete_job(cache: Cache, name: str, uid: str) -> set[Key]:
    """Delete a Job of the namespace `team`, if it has this uid."""
    job = cache.jobs.get("team", name)
    return set() if job is None else cache.jobs.delete(replace(job, uid=uid))


def put_pod(cache: Cache, body: Json) -> set[Key]:
    """Add or update a pod of a Job or a server."""
    if is_server_pod(body):
        return cache.server_pods.put(parse_server_pod(body))
    return cache.pods.put(parse_pod(body, cache.now()))


def delete_pod(cache: Cache, body: Json) -> set[Key]:
    """Delete a pod that left the watch."""
    if is_server_pod(body):
        return cache.server_pods.delete(parse_server_pod(body))
    return cache.pods.delete(parse_pod(body, cache.now()))


def list_pods(cache: Cache, job_name: str, version: int, *bodies: Json) -> None:
    """Put a live list of the pods of a known Job of the namespace `team`."""
    job = cache.jobs.get("team", job_name)
    assert job is not None
    cache.put_pod_list(job, [parse_pod(body, cache.now()) for body in bodies], str(version))
