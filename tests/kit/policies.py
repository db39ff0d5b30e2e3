"""What a platform's own policies do to Jobs and pods: change them, or refuse them."""

from __future__ import annotations

import json
from typing import Any

GROUP = "admissionregistration.k8s.io"
RULES = {
    "pods": {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
    "jobs": {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]},
}


def changing_pods(name: str, namespace: str, owner: str, patch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a policy that changes the pods of one LoRAJob as they are created, by one operation of a JSON patch."""
    fields = ", ".join(f"{field}: {_cel(value)}" for field, value in patch.items())
    mutation = {"patchType": "JSONPatch", "jsonPatch": {"expression": f"[JSONPatch{{{fields}}}]"}}
    spec = {
        "matchConstraints": _match(namespace, "pods"),
        "matchConditions": [_of(owner)],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [mutation],
    }
    return _with_binding("Mutating", "v1beta1", name, spec)


def refusing_jobs(name: str, namespace: str, owner: str, message: str) -> list[dict[str, Any]]:
    """Return a policy that refuses the batch Jobs of one LoRAJob, with `message`."""
    spec = {
        "matchConstraints": _match(namespace, "jobs"),
        "matchConditions": [_of(owner)],
        "failurePolicy": "Fail",
        "validations": [{"expression": "false", "message": message}],
    }
    return _with_binding("Validating", "v1", name, spec, validationActions=["Deny"])


def giving_ids(name: str, namespace: str, first: int) -> list[dict[str, Any]]:
    """Return policies that do to a namespace's pods what OpenShift's restricted-v2 does: an imitation of its SCC.

    A pod without ids gets `first` as user and group of its files; one that names another user is refused.
    """
    user = "object.spec.?securityContext.?runAsUser.orValue(0)"
    patches = ", ".join(
        f'JSONPatch{{op: "add", path: "/spec/securityContext/{field}", value: {first}}}'
        for field in ("runAsUser", "fsGroup")
    )
    constraints = {"matchConstraints": _match(namespace, "pods"), "failurePolicy": "Fail"}
    given = {"patchType": "JSONPatch", "jsonPatch": {"expression": f"{user} != 0 ? [] : [{patches}]"}}
    said = (
        "'unable to validate against any security context constraint: .spec.securityContext.runAsUser: Invalid value: '"
        f" + string({user}) + ': must be in the ranges: [{first}, {first + 9999}]'"
    )
    in_range = {"expression": f"{user} >= {first} && {user} < {first + 10000}", "messageExpression": said}
    return [
        *_with_binding(
            "Mutating", "v1beta1", name, constraints | {"reinvocationPolicy": "Never", "mutations": [given]}
        ),
        *_with_binding("Validating", "v1", name, constraints | {"validations": [in_range]}, validationActions=["Deny"]),
    ]


def _match(namespace: str, resource: str) -> dict[str, Any]:
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {"namespaceSelector": selector, "resourceRules": [RULES[resource]]}


def _of(owner: str) -> dict[str, str]:
    label = "object.metadata.?labels['tunery.dev/owner'].orValue('')"
    return {"name": "of-one-job", "expression": f"{label} == '{owner}'"}


def _with_binding(prefix: str, version: str, name: str, spec: dict[str, Any], **bound: Any) -> list[dict[str, Any]]:
    kind = f"{prefix}AdmissionPolicy"
    api = f"{GROUP}/{version}"
    return [
        {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec},
        {
            "apiVersion": api,
            "kind": f"{kind}Binding",
            "metadata": {"name": name},
            "spec": {"policyName": name, **bound},
        },
    ]


def _cel(value: Any) -> str:
    """Return a value as CEL: JSON, but for members of several types, which CEL takes only where none is known."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: dyn({_cel(item)})" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({_cel(item)})" for item in value) + "]"
    return json.dumps(value)
