"""`helm test` on the real node: without a bucket, and with one, where it trains to Succeeded."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.conftest import SETTINGS

from kit.environment import images
from kit.installation import NAMESPACE, RELEASE, install
from kit.kubectl import Kubectl, KubectlError
from kit.published import list_keys
from kit.tenant import SECRET

pytestmark = pytest.mark.slow


def helm_test(kubectl: Kubectl) -> str:
    """Run it; return what its pod said."""
    try:
        kubectl.program("helm", "test", RELEASE, "-n", NAMESPACE, "--timeout", "10m", timeout=660)
    except KubectlError as error:
        raise AssertionError(f"{error}\n{said(kubectl)}") from error
    return said(kubectl)


def said(kubectl: Kubectl) -> str:
    return kubectl.run("logs", f"{RELEASE}-test", "-n", NAMESPACE)


def test_an_installation_is_tested_without_a_bucket_and_with_one(
    kubectl: Kubectl, namespace: str, environment: dict[str, str], s3: Any
) -> None:
    told = helm_test(kubectl)
    assert told.count("ok   ") == 4
    assert "FAIL" not in told
    assert "there is no bucket" in told
    place = f"s3://adapters/{namespace}"
    bucket = (f"test.outputUri={place}", f"test.outputSecret={SECRET}", f"test.namespace={namespace}")
    install(kubectl, images(environment), *SETTINGS, *bucket)
    try:
        told = helm_test(kubectl)
        assert f"its adapter is at {place}/adapter" in told
        keys = list_keys(s3, place)
        assert {"adapter_model.safetensors", "manifest.json"} <= {key.rpartition("/")[2] for key in keys}
        assert kubectl.get("lorajob", "helm-test", namespace) is None
    finally:
        install(kubectl, images(environment), *SETTINGS)
