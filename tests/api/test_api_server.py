"""The CRDs on a real API server: what it accepts, refuses, prunes and explains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kit.installation import ROOT
from kit.kubectl import Kubectl, KubectlError

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def namespace(api_server: Kubectl) -> Iterator[str]:
    api_server.run("create", "namespace", "crd")
    yield "crd"
    api_server.delete("namespace", "crd", wait=False)


def lorajob(name: str, **blocks: Any) -> dict[str, Any]:
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "s3://data/rows.jsonl"}} | blocks
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_accepted_strictly(api_server: Kubectl, namespace: str, path: Any) -> None:
    told = api_server.run("apply", "--dry-run=server", "-n", namespace, "-f", str(path))
    assert told.count("created") == len([part for part in yaml.safe_load_all(path.read_text()) if part])


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        pytest.param({"lora": {"rank": 0}}, "spec.lora.rank: Invalid value: 0", id="rank-0"),
        pytest.param({"lora": {"rnk": 8}}, 'rnk"', id="typo"),
        pytest.param({"lora": {"dropout": 0.05}}, "spec.lora.dropout", id="float"),
        pytest.param({"method": "qlora"}, "spec.method: Unsupported value", id="enum"),
        pytest.param({"model": {"uri": "file:///x"}}, "spec.model.uri", id="file"),
        pytest.param({"training": {"epochs": "1", "maxSteps": 5}}, "maxSteps", id="epochs-and-steps"),
        pytest.param({"method": "PromptTuning", "training": {"packing": True}}, "packing", id="packed-prompt"),
    ],
)
def test_what_is_refused_at_the_door(api_server: Kubectl, namespace: str, blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(KubectlError) as caught:
        api_server.apply(lorajob("refused", **blocks), namespace=namespace)
    assert said in str(caught.value)


def test_what_training_depends_on_is_immutable(api_server: Kubectl, namespace: str) -> None:
    api_server.apply(lorajob("fixed", training={"seed": 1}), namespace=namespace)
    for patch, field in [
        ({"training": {"seed": 2}}, "training"),
        ({"training": None}, "training"),
        ({"lora": {"rank": 4}}, "lora"),
    ]:
        with pytest.raises(KubectlError, match=f"{field} cannot be changed"):
            _patch(api_server, namespace, "fixed", patch)
    _patch(api_server, namespace, "fixed", {"suspend": True, "ttlSecondsAfterFinished": 5, "activeDeadlineSeconds": 60})
    stored = api_server.get("lorajob", "fixed", namespace)
    assert stored is not None
    assert stored["spec"]["suspend"] is True


def _patch(kubectl: Kubectl, namespace: str, name: str, spec: dict[str, Any]) -> None:
    kubectl.run("patch", "lorajob", name, "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec}))


def test_explain_reads_well(api_server: Kubectl) -> None:
    text = api_server.run("explain", "lorajob.spec")
    for field in ("model\t<Object> -required-", "retries\t<integer>", "Default: 3.", "The training data."):
        assert field in text


def test_defaults_stay_open_but_for_the_columns(api_server: Kubectl, namespace: str) -> None:
    api_server.apply(lorajob("open"), namespace=namespace)
    stored = api_server.get("lorajob", "open", namespace)
    assert stored is not None
    assert set(stored["spec"]) == {"model", "dataset"}
    merge = {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "AdapterMerge",
        "metadata": {"name": "open"},
        "spec": {"adapters": [{"uri": "s3://a/b"}]},
    }
    api_server.apply(merge, namespace=namespace)
    row = api_server.run("get", "adaptermerge", "open", "-n", namespace, "--no-headers")
    assert row.split()[1:3] == ["Linear", "Adapter"]
