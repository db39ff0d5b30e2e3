"""Python and the API server reject the same BatchInferences, and the same changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.validation import parse_batchinference

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

BASE: dict[str, Any] = {"serverRef": {"name": "support"}, "input": {"uri": "s3://data/in.jsonl"}}

REFUSED = [
    pytest.param(
        {"input": {"uri": "s3://data/*.jsonl"}},
        r"spec\.input\.uri: (Invalid value: .*)?has \*, \? or \[",
        id="several-files",
    ),
    pytest.param(
        {"input": {"uri": "s3://data/in.csv"}},
        r"spec\.input\.uri: (Invalid value: .*)?is not a file of JSON lines",
        id="no-lines-of-json",
    ),
    pytest.param(
        {"input": {"uri": "s3://data/"}},
        r"spec\.input\.uri: (Invalid value: .*)?is not a file of JSON lines",
        id="folder",
    ),
]
REFUSED_BY_THE_SCHEMA = [
    pytest.param({"concurrency": 0}, "spec.concurrency", id="nothing-in-flight"),
    pytest.param({"concurrency": 1025}, "spec.concurrency", id="too-much-in-flight"),
    pytest.param({"maxErrors": -1}, "spec.maxErrors", id="less-than-no-error"),
    pytest.param({"resources": {"memory": "1"}}, "memory:? must be at least 64Mi", id="memory-without-unit"),
    pytest.param({"resources": {"gpus": 1}}, "gpus", id="gpu"),
    pytest.param({"apiKeySecretRef": {"name": "keys"}}, "key", id="key-without-a-name"),
    *(
        pytest.param({"apiKeySecretRef": {"name": "keys", "key": key}}, "cannot be a key of a Secret", id=key)
        for key in (".", "..", "..data")
    ),
    *(
        pytest.param({"input": {"uri": uri}}, r"spec.input.uri", id=uri)
        for uri in (
            "pvc:///in.jsonl",
            "pvc://../in.jsonl",
            "configmap:///a",
            "configmap://../a",
            "pvc://Claim/in.jsonl",
        )
    ),
    pytest.param({"defaultModel": "a@b"}, "spec.defaultModel", id="version"),
]
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"input": {"uri": "s3://data/in.jsonl.gz", "secretRef": {"name": "s3"}}},
    {"input": {"uri": "hf://a/b/in.jsonl.zst"}},
    {"input": {"uri": "pvc://claim/rows/in.jsonl"}},
    {"input": {"uri": "configmap://questions/requests"}},
    {"apiKeySecretRef": {"name": "keys", "key": "nightly"}, "defaultModel": "bot:prod", "concurrency": 1024},
    {"apiKeySecretRef": {"name": "keys", "key": "a..b"}},
    {"apiKeySecretRef": {"name": "keys", "key": ".a"}},
    {"resources": {"cpu": "2", "memory": "2Gi", "ephemeralStorage": "1Gi"}, "maxErrors": 5},
]


@pytest.mark.parametrize(("blocks", "message"), [*REFUSED, *REFUSED_BY_THE_SCHEMA])
def test_a_refused_batch_says_what_to_do(blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_batchinference({"spec": {**BASE, **blocks}})
    [error] = caught.value.errors
    assert re.search(message, str(error))


@pytest.mark.parametrize("missing", BASE)
def test_what_it_needs_is_named(missing: str) -> None:
    with pytest.raises(InvalidSpec, match=rf"spec\.{missing}: is required"):
        parse_batchinference({"spec": {name: value for name, value in BASE.items() if name != missing}})


@pytest.mark.parametrize("blocks", ACCEPTED)
def test_what_works_is_accepted(blocks: dict[str, Any]) -> None:
    assert parse_batchinference({"spec": {**BASE, **blocks}})


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "batches")
    yield "batches"
    api_server.delete("namespace", "batches", wait=False)


def manifest(name: str, **blocks: Any) -> dict[str, Any]:
    spec = {**BASE, **blocks}
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "BatchInference", "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(("blocks", "message"), [*REFUSED, *REFUSED_BY_THE_SCHEMA])
def test_the_api_server_refuses_it_too(
    api_server: ApiServer, namespace: str, blocks: dict[str, Any], message: str
) -> None:
    with pytest.raises(KubectlError, match=message):
        api_server.apply(manifest("refused", **blocks), namespace=namespace)


def test_the_api_server_accepts_what_works(api_server: ApiServer, namespace: str) -> None:
    for number, blocks in enumerate(ACCEPTED):
        api_server.apply(manifest(f"accepted-{number}", **blocks), namespace=namespace)


def patched(kubectl: ApiServer, namespace: str, spec: dict[str, Any]) -> None:
    kubectl.patch("BatchInference", "changes", {"spec": spec}, namespace)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"suspend": True}, None),
        ({"activeDeadlineSeconds": 60}, None),
        ({"retries": 1}, None),
        ({"resources": {"memory": "4Gi"}}, None),
        ({"resources": {"cpu": "4"}}, "resources.cpu cannot be changed"),
        ({"input": {"uri": "s3://data/other.jsonl"}}, "input cannot be changed"),
        ({"serverRef": {"name": "other"}}, "serverRef cannot be changed"),
        ({"maxErrors": 7}, "maxErrors cannot be changed"),
    ],
)
def test_what_may_change(api_server: ApiServer, namespace: str, change: dict[str, Any], refused: str | None) -> None:
    api_server.apply(manifest("changes"), namespace=namespace)
    if refused is None:
        patched(api_server, namespace, change)
        return
    with pytest.raises(KubectlError, match=refused):
        patched(api_server, namespace, change)


def test_the_columns_show_how_far_it_is(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(manifest("columns"), namespace=namespace)
    status = {"phase": "Answering", "errors": 3, "progress": {"percent": 42, "percentText": "42%", "eta": "3m"}}
    body = json.dumps({"status": status})
    api_server.run("patch", "bi", "columns", "-n", namespace, "--subresource=status", "--type=merge", "-p", body)
    row = api_server.run("get", "batchinference", "columns", "-n", namespace, "--no-headers").split()
    assert row[1:5] == ["Answering", "42%", "3", "support"]
    listed = api_server.run("get", "bi", "-n", namespace, "--field-selector", "status.phase=Answering", "-o", "name")
    assert listed.split() == ["batchinference.tunery.dev/columns"]
