"""Rights: what the operator may is what its code uses, and roles for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunery_operator.client.permissions import (
    CERTIFICATE_PERMISSIONS,
    CLUSTER_PERMISSIONS,
    NAMESPACED_PERMISSIONS,
    OWN_NAMESPACE_PERMISSIONS,
    PERMISSIONS,
    Call,
)

from kit.chart.rendering import NAMESPACE, Helm, Rendered


def rights(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Return what a role grants: API group, resource and verb."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(calls: Iterable[Call]) -> set[tuple[str, str, str]]:
    """Return what the operator's code uses, in the same form."""
    return {(call.group, call.rbac_resource, call.verb) for call in calls}


def named(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (document,) = [document for document in documents if document["metadata"]["name"] == name]
    return document


def test_the_role_of_the_operator_is_what_its_code_uses(rendered: Rendered) -> None:
    assert rights(named(rendered.of("ClusterRole"), "tunery")) == used(PERMISSIONS)
    assert {role["metadata"]["name"] for role in rendered.of("Role")} == {"tunery-leader", "tunery-certificate"}


def test_the_lease_is_the_only_right_in_its_own_namespace(rendered: Rendered) -> None:
    role = named(rendered.of("Role"), "tunery-leader")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert rights(role) == used(OWN_NAMESPACE_PERMISSIONS)
    by_verbs = {tuple(rule["verbs"]): rule.get("resourceNames") for rule in role["rules"]}
    lease = rendered.settings().lease
    assert by_verbs == {("create",): None, ("get", "update"): [lease.name]}
    assert lease.namespace == NAMESPACE


def test_only_the_job_of_the_certificate_has_access_to_a_secret_and_only_to_one_by_name(rendered: Rendered) -> None:
    role = named(rendered.of("Role"), "tunery-certificate")
    assert rights(role) == used(CERTIFICATE_PERMISSIONS)
    secret = rendered.settings().progress.tls_secret
    assert [(rule["resourceNames"], rule["verbs"]) for rule in role["rules"]] == [
        ([secret], ["get", "create", "patch"])
    ]
    binding = named(rendered.of("RoleBinding"), "tunery-certificate")
    account = rendered.one("Job")["spec"]["template"]["spec"]["serviceAccountName"]
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    others = [each for each in [*rendered.of("Role"), *rendered.of("ClusterRole")] if each != role]
    assert [right for each in others for right in rights(each) if right[1] == "secrets"] == []


def test_in_namespaced_mode_nothing_but_token_reviews_is_cluster_wide(helm: Helm) -> None:
    rendered = helm.render("watchNamespaces={team-a,team-b}", "rbac.aggregateRoles=false")
    assert rights(rendered.one("ClusterRole")) == used(CLUSTER_PERMISSIONS)
    served = {
        role["metadata"]["namespace"]: role for role in rendered.of("Role") if role["metadata"]["name"] == "tunery"
    }
    assert set(served) == {"team-a", "team-b"}
    for role in served.values():
        assert rights(role) == used(NAMESPACED_PERMISSIONS)
    bindings = [binding for binding in rendered.of("RoleBinding") if binding["metadata"]["name"] == "tunery"]
    assert {binding["metadata"]["namespace"] for binding in bindings} == {"team-a", "team-b"}
    account = {"kind": "ServiceAccount", "name": "tunery", "namespace": NAMESPACE}
    for binding in [*bindings, rendered.one("ClusterRoleBinding")]:
        assert binding["subjects"] == [account]
    assert rendered.settings().watch_namespaces == ("team-a", "team-b")
    off = ("rbac.aggregateRoles=false", "admissionPolicy.enabled=false", "crds.install=false")
    least = helm.render("watchNamespaces={team-a}", *off)
    wide = [each["kind"] for each in least.documents if "namespace" not in each["metadata"]]
    assert sorted(wide) == ["ClusterRole", "ClusterRoleBinding"], "as install.md says"


def test_roles_for_people_aggregate_and_leave_status_to_the_operator(rendered: Rendered) -> None:
    roles = {role["metadata"]["name"]: role for role in rendered.of("ClusterRole")}
    view, edit = roles["tunery-view"], roles["tunery-edit"]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in view["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{who}" for who in ("view", "edit", "admin")
    }
    assert {key for key in edit["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{who}" for who in ("edit", "admin")
    }
    assert verbs(view) == {"get", "list", "watch"}
    assert {resource for rule in edit["rules"] for resource in rule["resources"]} == {
        "lorajobs",
        "adaptermerges",
        "adapterservers",
        "adapterservers/scale",
        "batchinferences",
        "lorasweeps",
    }


def verbs(role: dict[str, Any]) -> set[str]:
    return {verb for rule in role["rules"] for verb in rule["verbs"]}


def test_roles_for_people_can_be_left_out(helm: Helm) -> None:
    names = [role["metadata"]["name"] for role in helm.render("rbac.aggregateRoles=false").of("ClusterRole")]
    assert names == ["tunery"]
