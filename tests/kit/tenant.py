"""A tenant: a namespace that enforces restricted Pod Security, and the Secret that opens its bucket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit.kubectl import Kubectl

SECRET = "s3"
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")


def create_tenant(kubectl: Kubectl, namespace: str, credentials: Mapping[str, str]) -> None:
    """Create the namespace and its Secret `s3`; it is no error when they exist."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
        s3_secret(namespace, credentials),
    )


def s3_secret(namespace: str, credentials: Mapping[str, str], name: str = SECRET) -> dict[str, Any]:
    """Return the manifest of a Secret with the AWS names as keys."""
    data = {key: credentials[key] for key in AWS_KEYS if key in credentials}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    }
