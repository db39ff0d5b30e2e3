"""What is watched: a resource, where, and which of its objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tunery_api.kinds import Kind
from tunery_api.names import DONE_LABEL, GROUP, KIND_LABEL, MANAGED_BY, MANAGED_BY_LABEL, VERSION

_OURS: Final = f"{MANAGED_BY_LABEL}={MANAGED_BY}"


@dataclass(frozen=True, slots=True)
class Target:
    """One resource, in one namespace or in all."""

    resource: str
    """Its plural."""
    api: str
    """The path of its group and version."""
    namespace: str | None = None
    selectors: tuple[tuple[str, str], ...] = field(default=())
    """Query parameters that say which objects."""

    @property
    def path(self) -> str:
        """The path that lists and watches it."""
        namespaces = "" if self.namespace is None else f"/namespaces/{self.namespace}"
        return f"{self.api}{namespaces}/{self.resource}"

    def __str__(self) -> str:
        return self.resource if self.namespace is None else f"{self.resource} in {self.namespace}"


def owners(kind: Kind, namespace: str | None) -> Target:
    """Return all objects of one of our kinds: of those that have ended a few words are kept."""
    return Target(kind.plural, f"/apis/{GROUP}/{VERSION}", namespace)


def jobs(namespace: str | None) -> Target:
    """Return our Jobs whose verdict has not been taken over."""
    return Target("jobs", "/apis/batch/v1", namespace, (("labelSelector", f"{_OURS},!{DONE_LABEL}"),))


def deployments(namespace: str | None) -> Target:
    """Return the Deployments of servers."""
    ours = f"{_OURS},{KIND_LABEL}={Kind.ADAPTERSERVER.singular}"
    return Target("deployments", "/apis/apps/v1", namespace, (("labelSelector", ours),))


def pods(namespace: str | None) -> Target:
    """Return the pods of our Jobs and servers that have not ended."""
    unfinished = "status.phase!=Succeeded,status.phase!=Failed"
    return Target("pods", "/api/v1", namespace, (("labelSelector", _OURS), ("fieldSelector", unfinished)))


def namespaces_to_watch(chosen: Iterable[str]) -> list[str | None]:
    """Return the namespaces that are watched each for itself; [None]: all of them at once."""
    return list(dict.fromkeys(chosen)) or [None]
