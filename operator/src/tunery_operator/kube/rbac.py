"""Every right that the operator uses, once: the chart's roles hold these and no other."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.kinds import Kind
from tunery_api.names import GROUP


class Call(NamedTuple):
    """One kind of request: what RBAC calls a rule."""

    group: str
    resource: str
    verb: str
    subresource: str = ""

    @property
    def rbac_resource(self) -> str:
        """The resource as a ClusterRole writes it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


OWNERS: Final = tuple(kind.plural for kind in Kind)

GET_JOB: Final = Call("batch", "jobs", "get")
CREATE_JOB: Final = Call("batch", "jobs", "create")
PATCH_JOB: Final = Call("batch", "jobs", "patch")
DELETE_JOB: Final = Call("batch", "jobs", "delete")
LIST_PODS: Final = Call("", "pods", "list")
CREATE_EVENT: Final = Call("", "events", "create")
LIST_EVENTS: Final = Call("", "events", "list")
"""Why a pod cannot be made or its volumes not be mounted is told nowhere else."""
REVIEW_TOKEN: Final = Call("authentication.k8s.io", "tokenreviews", "create")
GET_LEASE: Final = Call("coordination.k8s.io", "leases", "get")
CREATE_LEASE: Final = Call("coordination.k8s.io", "leases", "create")
UPDATE_LEASE: Final = Call("coordination.k8s.io", "leases", "update")


def get_owner(plural: str) -> Call:
    """Return the call that reads one of our objects."""
    return Call(GROUP, plural, "get")


def delete_owner(plural: str) -> Call:
    """Return the call that deletes one of our objects, when its time to live is over."""
    return Call(GROUP, plural, "delete")


def patch_status(plural: str) -> Call:
    """Return the call that writes the status of one of our objects."""
    return Call(GROUP, plural, "patch", "status")


_WATCHED: Final = (*((GROUP, plural) for plural in OWNERS), ("batch", "jobs"), ("", "pods"))

NAMESPACED_PERMISSIONS: Final = frozenset(
    {
        GET_JOB,
        CREATE_JOB,
        PATCH_JOB,
        DELETE_JOB,
        LIST_PODS,
        CREATE_EVENT,
        LIST_EVENTS,
    }
    | {make(plural) for plural in OWNERS for make in (get_owner, delete_owner, patch_status)}
    | {Call(group, resource, verb) for group, resource in _WATCHED for verb in ("list", "watch")}
    # An owner reference that blocks deletion needs the right to set the owner's finalizers.
    | {Call(GROUP, plural, "update", "finalizers") for plural in OWNERS}
)
"""Rights in every namespace that is served: a Role in each, or one ClusterRole for all."""

CLUSTER_PERMISSIONS: Final = frozenset({REVIEW_TOKEN})
"""Rights that belong to no namespace: always a ClusterRole."""

PERMISSIONS: Final = NAMESPACED_PERMISSIONS | CLUSTER_PERMISSIONS
"""What serving tenants takes, wherever it is granted."""

OWN_NAMESPACE_PERMISSIONS: Final = frozenset({GET_LEASE, CREATE_LEASE, UPDATE_LEASE})
"""Rights in the operator's own namespace: a Role, where `get` and `update` name the one Lease."""
