"""Python and the API server reject the same AdapterServers, and the same changes; scale."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.validation import parse_adapterserver

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

BASE = {"model": {"uri": "s3://models/tiny"}}
ONE = {"name": "one", "uri": "s3://adapters/one"}
SELECTOR = {"matchLabels": {"team": "support"}}

REFUSED_BY_RULES: list[Any] = [
    pytest.param(
        {"adapters": [{"name": "one"}]},
        "spec.adapters[0]: needs exactly one of loraJobRef, adapterMergeRef and uri. Fix: set one of them",
        id="no-source",
    ),
    pytest.param(
        {"adapters": [{**ONE, "loraJobRef": {"name": "x"}}]},
        "spec.adapters[0]: needs exactly one of loraJobRef, adapterMergeRef and uri. Fix: set one of them",
        id="two-sources",
    ),
    pytest.param(
        {"adapters": [{"name": "one", "loraJobRef": {"name": "x"}, "manifestSha256": "a" * 64}]},
        "spec.adapters[0].manifestSha256: needs uri. Fix: remove it, because a LoRAJob's adapter is pinned without it",
        id="pin-of-a-job",
    ),
    pytest.param(
        {"adapters": [{**ONE, "name": "a..b"}]},
        "spec.adapters[0].name: has two dots in a row. Fix: use another name",
        id="dots",
    ),
    pytest.param(
        {"model": {**BASE["model"], "servedName": "base"}, "adapters": [{**ONE, "name": "base"}]},
        "spec.adapters: has the name of the base model. Fix: use another name, or another model.servedName",
        id="name-of-the-base",
    ),
    pytest.param(
        {"adapterSelector": {}},
        "spec.adapterSelector: names no label and would select everything. Fix: set matchLabels or matchExpressions",
        id="empty-selector",
    ),
    pytest.param(
        {"adapterSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "spec.adapterSelector.matchExpressions[0].values: is required for operator: In and NotIn. Fix: list values",
        id="in-without-values",
    ),
    pytest.param(
        {"adapterSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
        "spec.adapterSelector.matchExpressions[0].values: is for operator: In or NotIn only. Fix: remove it",
        id="exists-with-values",
    ),
    pytest.param(
        {"engine": {"maxRank": 24}},
        "spec.engine.maxRank: is not a rank of vLLM. Fix: set one of 8, 16, 32, 64, 128, 256, 320, 512",
        id="rank",
    ),
    pytest.param(
        {"engine": {"maxLoadedAdapters": 4}},
        "spec.engine.maxLoadedAdapters: is less than maxAdaptersInBatch, 8 by default. Fix: raise it",
        id="fewer-than-a-batch",
    ),
    pytest.param(
        {"rollout": {"maxSurge": 0}},
        "spec.rollout: has maxSurge: 0 and maxUnavailable: 0, so that no replica could be replaced. Fix: raise one "
        "of the two",
        id="no-rollout",
    ),
    pytest.param(
        {"adapters": [ONE], "aliases": [{"name": "one", "targets": [{"adapter": "tiny"}]}]},
        "spec.aliases: has the name of an adapter. Fix: use another name",
        id="alias-of-an-adapters-name",
    ),
    pytest.param(
        {"aliases": [{"name": "a", "targets": [{"adapter": "b"}]}, {"name": "b", "targets": [{"adapter": "tiny"}]}]},
        "spec.aliases: has an alias as its target. Fix: name the adapter itself",
        id="alias-of-an-alias",
    ),
    pytest.param(
        {"aliases": [{"name": "a", "targets": [{"adapter": "one", "weight": 0}]}]},
        "spec.aliases[0].targets: all have weight 0, so that no request could be answered. Fix: raise one of the "
        "weights",
        id="alias-to-nowhere",
    ),
    pytest.param(
        {"access": {"clients": [{"name": "alice", "models": ["one"]}]}},
        "spec.access.clients: needs apiKeysSecretRef. Fix: set it, because clients are known by their keys",
        id="clients-without-keys",
    ),
    pytest.param(
        {"access": {"apiKeysSecretRef": {"name": "k"}, "clients": [{"name": "..", "models": ["one"]}]}},
        "spec.access.clients[0].name: cannot be a key of a Secret: no key is a dot or starts with two. Fix: use the "
        "name of a key",
        id="client-that-is-no-key",
    ),
]
"""By a rule of the table; test_rule_table.py compares the API server with Python."""
REFUSED_BY_SCHEMA: list[Any] = [
    pytest.param(
        {"adapters": [ONE, ONE]},
        "spec.adapters[1].name: one is in the list already. Fix: remove one of the two",
        "Duplicate value",
        id="same-name",
    ),
    pytest.param(
        {"resources": {"memory": "24"}},
        "spec.resources.memory: must be at least 64Mi, is '24', which are bytes; did you mean 24Gi?",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="memory-without-unit",
    ),
    pytest.param(
        {"engine": {"gpuMemoryFraction": 0}},
        "spec.engine.gpuMemoryFraction: must be above 0, is 0",
        "gpuMemoryFraction in body should be greater than 0",
        id="no-memory",
    ),
]
"""By the schema, which words it in its own way."""
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"adapters": [ONE, {"name": "b:prod/v1.2", "adapterMergeRef": {"name": "m"}}]},
    {"adapters": [{**ONE, "manifestSha256": "a" * 64}]},
    {"adapterSelector": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}},
    {"adapterSelector": SELECTOR, "replicas": 0},
    {"engine": {"maxRank": 320, "maxAdaptersInBatch": 1, "maxLoadedAdapters": 1, "args": ["--seed=1"]}},
    {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
    {"adapters": [{**ONE, "keepLoaded": True}], "aliases": [{"name": "one:prod", "targets": [{"adapter": "one"}]}]},
    {"access": {"apiKeysSecretRef": {"name": "k"}, "clients": [{"name": "alice", "models": ["one", "one:prod"]}]}},
]
FORBIDDEN = [
    "--trust-remote-code",
    "--middleware=evil.Gate",
    "--uds=/tmp/x",
    "--host=0.0.0.0",
    "--port=80",
    "--api-key=k",
    "--lora-modules=a=b",
    "--load-format=pt",
    "--chat-template=/etc/passwd",
    "--kv-transfer-config={}",
    "--seedy",
    "seed=1",
]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [*REFUSED_BY_RULES, *(pytest.param(*each.values[:2], id=each.id) for each in REFUSED_BY_SCHEMA)],
)
def test_a_refused_server_says_what_to_do(blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_adapterserver({"spec": {**BASE, **blocks}})
    assert [str(error) for error in caught.value.errors] == [message]


PATH = "--generation-config=/etc"


def test_a_flag_that_is_allowed_leads_to_no_path() -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.engine\.args: names a path"):
        parse_adapterserver({"spec": {**BASE, "engine": {"args": [PATH]}}})


@pytest.mark.parametrize("argument", FORBIDDEN)
def test_flags_that_open_something_are_refused(argument: str) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.engine\.args: has a flag that a manifest cannot set"):
        parse_adapterserver({"spec": {**BASE, "engine": {"args": [argument]}}})


def test_what_clients_may_ask_for_has_room_beside_what_is_served() -> None:
    """All of it goes into one ConfigMap; each list by itself is within its limits."""
    models = [f"{number:03}{'m' * 125}" for number in range(64)]
    clients = [{"name": f"c{number}", "models": models} for number in range(25)]
    access = {"apiKeysSecretRef": {"name": "k"}, "clients": clients}
    with pytest.raises(InvalidSpec, match=r"spec\.access\.clients: has 204,8\d\d characters of names, at most 200,000"):
        parse_adapterserver({"spec": {**BASE, "access": access}})
    assert parse_adapterserver({"spec": {**BASE, "access": {**access, "clients": clients[:24]}}})


def test_the_name_of_the_base_is_told_where_it_follows_from_the_uri() -> None:
    with pytest.raises(InvalidSpec, match="tiny is the name of the base model"):
        parse_adapterserver({"spec": {**BASE, "adapters": [{**ONE, "name": "tiny"}]}})


@pytest.mark.parametrize("blocks", ACCEPTED)
def test_what_works_is_accepted(blocks: dict[str, Any]) -> None:
    assert parse_adapterserver({"spec": {**BASE, **blocks}})


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "servers")
    yield "servers"
    api_server.delete("namespace", "servers", wait=False)


def manifest(name: str, **blocks: Any) -> dict[str, Any]:
    spec = {**BASE, **blocks}
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterServer", "metadata": {"name": name}, "spec": spec}


def refusal(kubectl: ApiServer, namespace: str, body: dict[str, Any]) -> str:
    with pytest.raises(KubectlError) as caught:
        kubectl.apply(body, namespace=namespace)
    return str(caught.value)


@pytest.mark.parametrize(("blocks", "message", "server"), REFUSED_BY_SCHEMA)
def test_the_api_server_refuses_it_too(
    api_server: ApiServer, namespace: str, blocks: dict[str, Any], message: str, server: str
) -> None:
    assert server in refusal(api_server, namespace, manifest("refused", **blocks))


def test_the_api_server_refuses_flags_and_accepts_what_works(api_server: ApiServer, namespace: str) -> None:
    for argument in (*FORBIDDEN, PATH):
        told = refusal(api_server, namespace, manifest("refused", engine={"args": [argument]}))
        assert re.search(
            r"spec\.engine\.args: Invalid value: .*(has a flag that a manifest cannot set|names a path)", told
        )
    for number, blocks in enumerate(ACCEPTED):
        api_server.apply(manifest(f"accepted-{number}", **blocks), namespace=namespace)


@pytest.mark.parametrize("name", ["a.b", "1st", "n" * 49])
def test_a_name_that_can_be_no_host_name_is_refused(api_server: ApiServer, namespace: str, name: str) -> None:
    assert "the name becomes part of a host name" in refusal(api_server, namespace, manifest(name))
    api_server.apply(manifest("n" * 48), namespace=namespace)


def patched(kubectl: ApiServer, namespace: str, name: str, spec: dict[str, Any]) -> None:
    kubectl.patch("AdapterServer", name, {"spec": spec}, namespace)


def test_all_but_the_model_may_change(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(manifest("changes"), namespace=namespace)
    for change in [*ACCEPTED, {"resources": {"gpus": 0}}, {"access": {"apiKeysSecretRef": {"name": "k"}}}]:
        patched(api_server, namespace, "changes", change)
    for model in ({"uri": "s3://models/other"}, {"servedName": "other"}):
        with pytest.raises(KubectlError, match=r"model cannot be changed\. Fix: delete"):
            patched(api_server, namespace, "changes", {"model": model})


def test_a_server_is_scaled_by_its_own_subresource(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(manifest("scales"), namespace=namespace)
    stored = api_server.get("adapterserver", "scales", namespace)
    assert stored is not None
    assert stored["spec"] == {**BASE, "replicas": 1}
    api_server.run("scale", "adapterserver", "scales", "--replicas=3", "-n", namespace)
    status = {"replicas": 2, "selector": "tunery.dev/kind=adapterserver,tunery.dev/owner=scales", "phase": "Ready"}
    body = json.dumps({"status": status})
    api_server.run("patch", "asrv", "scales", "-n", namespace, "--subresource=status", "--type=merge", "-p", body)
    path = f"/apis/tunery.dev/v1alpha1/namespaces/{namespace}/adapterservers/scales/scale"
    scale = json.loads(api_server.run("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]) == (
        3,
        {"replicas": 2, "selector": status["selector"]},
    )
    with pytest.raises(KubectlError, match=r"spec\.replicas"):
        patched(api_server, namespace, "scales", {"replicas": 65})
    listed = api_server.run("get", "asrv", "-n", namespace, "--field-selector", "status.phase=Ready", "-o", "name")
    assert listed.split() == ["adapterserver.tunery.dev/scales"]


def test_the_columns_show_what_is_served(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(manifest("columns"), namespace=namespace)
    status = {
        "phase": "Degraded",
        "readyText": "2/3",
        "adaptersText": "12/13",
        "url": "http://columns-server.servers.svc:8000/v1",
        "failure": {"reason": "RankTooHigh", "message": "m"},
    }
    body = json.dumps({"status": status})
    api_server.run("patch", "asrv", "columns", "-n", namespace, "--subresource=status", "--type=merge", "-p", body)
    row = api_server.run("get", "adapterserver", "columns", "-n", namespace, "--no-headers", "-o", "wide").split()
    assert row[1:5] == ["Degraded", "2/3", "12/13", "RankTooHigh"]
    assert row[6:] == ["s3://models/tiny", "http://columns-server.servers.svc:8000/v1"]
