"""The schema of a LoRASweep on a real API server: what CEL refuses, what it accepts, and what may change."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.crd import custom_resource_definition, structural_schema
from tunery_api.kinds import KINDS, Kind
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.sweepstatus import LoRASweepStatus

from kit.kubectl import Kubectl, KubectlError, wait_for

GROUP = "sweeps.tunery.test"
TEMPLATE: dict[str, Any] = {"model": {"uri": "s3://models/m"}, "dataset": {"uri": "s3://data/rows.jsonl"}}


def definition() -> dict[str, Any]:
    """Return the definition of the kind under a group of this test's own, as it is no kind of the API yet."""
    as_job = KINDS[Kind.LORAJOB]._replace(spec=LoRASweepSpec, status=LoRASweepStatus, columns=(), selectable=())
    crd = custom_resource_definition(as_job)
    crd["metadata"]["name"] = f"trysweeps.{GROUP}"
    names = {"kind": "TrySweep", "listKind": "TrySweepList", "plural": "trysweeps", "singular": "trysweep"}
    crd["spec"] |= {"group": GROUP, "names": names}
    del crd["spec"]["versions"][0]["selectableFields"]
    return crd


@pytest.fixture(scope="module")
def namespace(api_server: Kubectl) -> Iterator[str]:
    api_server.run("create", "namespace", "sweeps")
    api_server.apply(definition())
    wait_for("the kind", lambda: "trysweeps" in api_server.run("api-resources", f"--api-group={GROUP}") or None, 30)
    yield "sweeps"
    api_server.delete("crd", f"trysweeps.{GROUP}")
    api_server.delete("namespace", "sweeps", wait=False)


def sweep(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "TrySweep",
        "metadata": {"name": name},
        "spec": {"template": TEMPLATE, **spec},
    }


RANK = {"path": "lora.rank", "choices": ["4", "8"]}


def ranged(**given: Any) -> dict[str, Any]:
    return {"parameters": [{"path": "training.learningRate", "range": given}]}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param({}, "names nothing to search", id="nothing"),
        pytest.param({"parameters": [RANK, RANK]}, "a path is a parameter twice", id="twice"),
        pytest.param({"parameters": [{"path": "lora.rank"}]}, "takes exactly one of range and choices", id="neither"),
        pytest.param(ranged(min="1", max="1"), "max must be above min, 1, is 1", id="empty"),
        pytest.param(ranged(min="1e-3", max="1e-4"), "max must be above min, 1e-3, is 1e-4", id="upside-down"),
        pytest.param(ranged(min="0", max="1", log=True), "min must be above 0 with log: true", id="log-of-0"),
        pytest.param(ranged(min="1", max="2", log=True, step="1"), "cannot be set together with log", id="log-step"),
        pytest.param(ranged(min="1", max="2", step="0"), "step must be above 0", id="step-0"),
        pytest.param(
            {"preset": "Guide", "output": {"uri": TEMPLATE["model"]["uri"]}},
            "output.uri is the model's own place",
            id="onto-the-model",
        ),
        pytest.param(
            {"preset": "Guide", "warmStartFrom": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
            "spec.warmStartFrom[2]: Duplicate value",
            id="warm-start-from-one-twice",
        ),
        pytest.param(
            {"preset": "Guide", "warmStartFrom": [{"name": "a"}, {"name": "refused"}]},
            "warmStartFrom names this sweep itself",
            id="warm-start-from-itself",
        ),
        pytest.param(
            {
                "preset": "Guide",
                "template": {**TEMPLATE, "resources": {"gpus": 0}},
                "budget": {"gpuSeconds": 5},
            },
            "budget counts the seconds of GPUs, and template.resources.gpus is 0; use activeDeadlineSeconds instead",
            id="a-budget-of-no-gpus",
        ),
        pytest.param(
            {"preset": "Guide", "template": {**TEMPLATE, "training": {"epochs": "1", "maxSteps": 5}}},
            "maxSteps cannot be set together with epochs",
            id="rule-of-a-block",
        ),
    ],
)
def test_the_api_server_refuses_it(api_server: Kubectl, namespace: str, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(KubectlError) as caught:
        api_server.apply(sweep("refused", spec), namespace=namespace)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"preset": "Guide"}, id="guide"),
        pytest.param(ranged(min="1e-5", max="1e-3", log=True), id="range"),
        pytest.param(
            {
                "template": {**TEMPLATE, "adalora": {"targetRank": 4}, "lora": {"alpha": 8}},
                "parameters": [{"path": "method", "choices": ["AdaLoRA"]}],
            },
            id="a-block-of-the-method-that-is-a-parameter",
        ),
        pytest.param({"preset": "Guide", "budget": {"gpuSeconds": 5}}, id="budget"),
        pytest.param({"preset": "Guide", "parallelTrials": 2, "maxTrials": 1}, id="one-of-two-at-a-time"),
        pytest.param({"preset": "Guide", "initial": [{"lora.rank": "8", "lora.alpha": "16"}]}, id="initial"),
        pytest.param(
            {"preset": "Guide", "warmStartFrom": [{"name": f"{n}" * 253} for n in range(8)]}, id="as-many-to-start-from"
        ),
        pytest.param(
            {"parameters": [{"path": f"a.b{i}", "choices": [f"{n}" * 64 for n in range(64)]} for i in range(16)]},
            id="as-large-as-can-be",
        ),
    ],
)
def test_the_api_server_accepts_it(
    api_server: Kubectl, namespace: str, spec: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.lower()
    api_server.apply(sweep(name, spec), namespace=namespace)
    stored = api_server.get(f"trysweeps.{GROUP}", name, namespace)
    assert stored is not None
    assert stored["spec"] == sweep(name, spec)["spec"], "nothing is filled in, nothing pruned"


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"suspend": True}, None),
        ({"maxTrials": 40, "parallelTrials": 4, "maxFailedTrials": 9, "stopAfterTrialsWithoutImprovement": 5}, None),
        ({"maxTrials": 1}, None),
        ({"budget": {"gpuSeconds": 5}, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 60}, None),
        ({"seed": 1}, "seed cannot be changed"),
        ({"parameters": [RANK]}, "parameters cannot be changed"),
        ({"template": {"method": "DoRA"}}, "template cannot be changed"),
        ({"pruner": {"type": "None"}}, "pruner cannot be changed"),
        ({"output": {"uri": "s3://adapters/other"}}, "output cannot be changed"),
    ],
)
def test_what_may_change(api_server: Kubectl, namespace: str, change: dict[str, Any], refused: str | None) -> None:
    api_server.apply(sweep("changes", {"preset": "Guide", "parallelTrials": 4}), namespace=namespace)
    patch = ("patch", f"trysweeps.{GROUP}", "changes", "-n", namespace, "--type=merge", "-p")
    if refused is None:
        api_server.run(*patch, json.dumps({"spec": change}))
        return
    with pytest.raises(KubectlError, match=refused):
        api_server.run(*patch, json.dumps({"spec": change}))


def older() -> dict[str, Any]:
    """Return a kind of its own, as it was before there was a rule about what a sweep learns from."""
    crd = definition()
    crd["metadata"]["name"] = f"oldsweeps.{GROUP}"
    crd["spec"]["names"] = {
        "kind": "OldSweep",
        "listKind": "OldSweepList",
        "plural": "oldsweeps",
        "singular": "oldsweep",
    }
    crd["spec"]["names"]["shortNames"] = []
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["x-kubernetes-validations"] = [r for r in root["x-kubernetes-validations"] if "itself" not in r["message"]]
    return crd


def test_a_sweep_that_is_older_than_a_rule_about_its_name_can_be_written(api_server: Kubectl, namespace: str) -> None:
    kind = f"oldsweeps.{GROUP}"

    def of(name: str) -> dict[str, Any]:
        return {**sweep(name, {"preset": "Guide", "warmStartFrom": [{"name": name}]}), "kind": "OldSweep"}

    def is_refused() -> bool:
        try:
            api_server.apply(of("new"), namespace=namespace)
        except KubectlError as error:
            return "warmStartFrom names this sweep itself" in str(error)
        api_server.delete(kind, "new", namespace)
        return False

    before, now = older(), copy.deepcopy(older())
    rules = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    now["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = rules
    api_server.apply(before)
    wait_for("the kind", lambda: "oldsweeps" in api_server.run("api-resources", f"--api-group={GROUP}") or None, 30)
    api_server.apply(of("old"), namespace=namespace)
    api_server.apply(now)
    wait_for("the rule", is_refused, 30)
    patch = ("patch", kind, "old", "-n", namespace, "--type=merge", "-p")
    api_server.run(*patch, json.dumps({"status": {"phase": "Searching"}}), "--subresource=status")
    api_server.run(*patch, json.dumps({"metadata": {"finalizers": ["example.org/keep"]}}))
    api_server.run(*patch, json.dumps({"metadata": {"finalizers": None}, "spec": {"suspend": True}}))
    api_server.delete("crd", kind)


def test_no_rule_of_a_whole_lorajob_hangs_on_the_template() -> None:
    schema = structural_schema(LoRASweepSpec)
    template = schema["properties"]["template"]
    assert "x-kubernetes-validations" not in template
    job = copy.deepcopy(structural_schema(KINDS[Kind.LORAJOB].spec))
    assert job["x-kubernetes-validations"]
    assert template["properties"]["training"] == job["properties"]["training"], "the rules of a block do"


def test_the_schema_bounds_every_list_and_string() -> None:
    stack = [("spec", structural_schema(LoRASweepSpec)), ("status", structural_schema(LoRASweepStatus))]
    while stack:
        path, schema = stack.pop()
        kind = schema["type"]
        if kind == "string":
            assert "enum" in schema or "maxLength" in schema, path
        assert kind != "array" or "maxItems" in schema, path
        assert "additionalProperties" not in schema or "maxProperties" in schema, path
        stack += [(f"{path}.{name}", child) for name, child in schema.get("properties", {}).items()]
        stack += [(f"{path}[]", schema["items"])] if "items" in schema else []
        stack += [(f"{path}{{}}", schema["additionalProperties"])] if "additionalProperties" in schema else []
