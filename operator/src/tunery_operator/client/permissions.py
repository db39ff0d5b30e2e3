"""Define every permission that the operator uses. The roles of the chart grant exactly these."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.kinds import JOB_KINDS, Kind
from tunery_api.names import GROUP


class Call(NamedTuple):
    """One kind of request, as a rule of RBAC names it."""

    group: str
    resource: str
    verb: str
    subresource: str = ""

    @property
    def rbac_resource(self) -> str:
        """The resource as a ClusterRole writes it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Resource(NamedTuple):
    """The calls for a resource of which children are created."""

    kind: str
    get: Call
    create: Call
    patch: Call

    @property
    def plural(self) -> str:
        """Its name in a URL."""
        return self.get.resource


def _resource(kind: str, group: str, plural: str) -> Resource:
    return Resource(kind, *(Call(group, plural, verb) for verb in ("get", "create", "patch")))


OWNERS: Final = tuple(kind.plural for kind in Kind)

JOBS: Final = _resource("Job", "batch", "jobs")
GET_JOB: Final = JOBS.get
PATCH_JOB: Final = JOBS.patch
DELETE_JOB: Final = Call("batch", "jobs", "delete")
LIST_PODS: Final = Call("", "pods", "list")
CREATE_EVENT: Final = Call("", "events", "create")
LIST_EVENTS: Final = Call("", "events", "list")
"""Only events report why a pod cannot be created or a volume not be mounted."""
REVIEW_TOKEN: Final = Call("authentication.k8s.io", "tokenreviews", "create")
GET_LEASE: Final = Call("coordination.k8s.io", "leases", "get")
CREATE_LEASE: Final = Call("coordination.k8s.io", "leases", "create")
UPDATE_LEASE: Final = Call("coordination.k8s.io", "leases", "update")
GET_SECRET: Final = Call("", "secrets", "get")
CREATE_SECRET: Final = Call("", "secrets", "create")
PATCH_SECRET: Final = Call("", "secrets", "patch")

DEPLOYMENTS: Final = _resource("Deployment", "apps", "deployments")
CONFIG_MAPS: Final = _resource("ConfigMap", "", "configmaps")
SERVICES: Final = _resource("Service", "", "services")
DISRUPTION_BUDGETS: Final = _resource("PodDisruptionBudget", "policy", "poddisruptionbudgets")
LORAJOBS: Final = _resource(Kind.LORAJOB.value, GROUP, Kind.LORAJOB.plural)
"""The trials of a LoRASweep."""
NETWORK_POLICIES: Final = _resource("NetworkPolicy", "networking.k8s.io", "networkpolicies")
GET_REPLICA_SET: Final = Call("apps", "replicasets", "get")
"""It proves the owner of a server's pod: any user can set the labels."""

_CHILDREN: Final = (JOBS, LORAJOBS, DEPLOYMENTS, CONFIG_MAPS, SERVICES, DISRUPTION_BUDGETS, NETWORK_POLICIES)


def get_owner(plural: str) -> Call:
    """Return the call that reads one of our objects."""
    return Call(GROUP, plural, "get")


def delete_owner(plural: str) -> Call:
    """Return the call that deletes one of our objects when its time to live has ended."""
    return Call(GROUP, plural, "delete")


def patch_status(plural: str) -> Call:
    """Return the call that writes the status of one of our objects."""
    return Call(GROUP, plural, "patch", "status")


_WATCHED: Final = (
    *((GROUP, plural) for plural in OWNERS),
    ("batch", "jobs"),
    ("apps", "deployments"),
    ("", "pods"),
)

NAMESPACED_PERMISSIONS: Final = frozenset(
    {
        DELETE_JOB,
        LIST_PODS,
        CREATE_EVENT,
        LIST_EVENTS,
        GET_REPLICA_SET,
    }
    | {call for each in _CHILDREN for call in (each.get, each.create, each.patch)}
    | {make(plural) for plural in OWNERS for make in (get_owner, patch_status)}
    | {delete_owner(kind.plural) for kind in JOB_KINDS}
    | {Call(group, resource, verb) for group, resource in _WATCHED for verb in ("list", "watch")}
    # An owner reference that blocks deletion needs the permission to set the owner's finalizers.
    | {Call(GROUP, plural, "update", "finalizers") for plural in OWNERS}
)
"""Permissions in every namespace that is served: a Role in each, or one ClusterRole for all."""

CLUSTER_PERMISSIONS: Final = frozenset({REVIEW_TOKEN})
"""Permissions for resources without a namespace: always a ClusterRole."""

PERMISSIONS: Final = NAMESPACED_PERMISSIONS | CLUSTER_PERMISSIONS
"""Permissions for the objects of tenants, however they are granted."""

OWN_NAMESPACE_PERMISSIONS: Final = frozenset({GET_LEASE, CREATE_LEASE, UPDATE_LEASE})
"""Permissions in the operator's own namespace: a Role, in which `get` and `update` name the one Lease."""

OPERATOR_PERMISSIONS: Final = PERMISSIONS | OWN_NAMESPACE_PERMISSIONS
"""Every permission of the operator; none is to read a Secret."""

CERTIFICATE_PERMISSIONS: Final = frozenset({GET_SECRET, CREATE_SECRET, PATCH_SECRET})
"""Permissions of the service account of the Job that creates the certificate: on its Secrets, by name."""

TEST_PERMISSIONS: Final = frozenset(
    {Call(GROUP, plural, "list") for plural in OWNERS}
    | {LORAJOBS.get, LORAJOBS.create, delete_owner(Kind.LORAJOB.plural)}
)
"""Permissions of the service account of `helm test`: to read our kinds, and to run one LoRAJob."""
