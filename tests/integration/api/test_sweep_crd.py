"""The definition of LoRASweep on a real API server: what CEL refuses, what it accepts, and what may change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.crd import structural_schema
from tunery_api.kinds import KINDS, Kind
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.sweepstatus import LoRASweepStatus

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

KIND = "lorasweeps.tunery.dev"
TEMPLATE: dict[str, Any] = {"model": {"uri": "s3://models/m"}, "dataset": {"uri": "s3://data/rows.jsonl"}}


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "sweeps")
    yield "sweeps"
    api_server.delete("namespace", "sweeps", wait=False)


def sweep(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRASweep",
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
        pytest.param({"parameters": [RANK, RANK]}, "spec.parameters[1]: Duplicate value", id="twice"),
        pytest.param({"parameters": [{"path": "lora.rank"}]}, "needs exactly one of range and choices", id="neither"),
        pytest.param(ranged(min=2, max=1), 'range.max: Invalid value: "object": is not above min', id="max-below-min"),
        pytest.param(
            ranged(min=0, max=1, log=True),
            'range.min: Invalid value: "object": is not above 0 with log: true',
            id="log-from-0",
        ),
        pytest.param(ranged(min="1e-5", max=1), 'range.min in body must be of type number: "string"', id="in-quotes"),
        pytest.param(ranged(min=1, max=2, log=True, step=1), "cannot be set with log", id="log-step"),
        pytest.param(ranged(min=1, max=2, step=0), "step in body should be greater than 0", id="step-0"),
        pytest.param(
            {"preset": "Guide", "output": {"uri": TEMPLATE["model"]["uri"]}},
            "overlaps the base model, which Tunery never changes",
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
            "counts the seconds of GPUs, and template.resources.gpus is 0. Fix: use activeDeadlineSeconds instead",
            id="a-budget-of-no-gpus",
        ),
        pytest.param(
            {"preset": "Guide", "template": {**TEMPLATE, "training": {"epochs": 1, "maxSteps": 5}}},
            'spec.template.training.maxSteps: Invalid value: "object": cannot be set together with epochs',
            id="rule-of-a-block",
        ),
    ],
)
def test_the_api_server_refuses_it(api_server: ApiServer, namespace: str, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(KubectlError) as caught:
        api_server.apply(sweep("refused", spec), namespace=namespace)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"preset": "Guide"}, id="guide"),
        pytest.param(ranged(min=1e-5, max=1e-3, log=True), id="range"),
        pytest.param(
            ranged(min=1e-5, max=1, log=True) | {"initial": [{"training.learningRate": 2e-4}], "pruner": {"keep": 0.3}},
            id="numbers-without-quotes",
        ),
        pytest.param({"parameters": [{"path": "a", "choices": [16, 0.5, True, "LoRA"]}]}, id="values-of-any-type"),
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
    api_server: ApiServer, namespace: str, spec: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.lower()
    api_server.apply(sweep(name, spec), namespace=namespace)
    stored = api_server.get(KIND, name, namespace)
    assert stored is not None
    assert stored["spec"] == sweep(name, spec)["spec"], "nothing is filled in, nothing pruned"


CHANGES: dict[str, Any] = {
    "template": {"method": "DoRA"},
    "preset": None,
    "parameters": [{"path": "lora.rank", "choices": ["4", "16"]}],
    "initial": [{"lora.rank": 8}],
    "warmStartFrom": [{"name": "earlier"}],
    "objective": {"tolerance": 0.01},
    "sampler": {"type": "Random"},
    "pruner": {"type": "None"},
    "seed": 1,
    "maxTrials": 1,
    "parallelTrials": 8,
    "maxFailedTrials": 9,
    "stopAfterTrialsWithoutImprovement": 5,
    "budget": {"gpuSeconds": 5},
    "activeDeadlineSeconds": 60,
    "preflight": "Every",
    "final": {"training": {"epochs": 3}},
    "keepAdapters": 2,
    "output": {"uri": "s3://adapters/other"},
    "suspend": True,
    "ttlSecondsAfterFinished": 60,
}
MUTABLE = {
    "activeDeadlineSeconds",
    "budget",
    "maxFailedTrials",
    "maxTrials",
    "parallelTrials",
    "stopAfterTrialsWithoutImprovement",
    "suspend",
    "ttlSecondsAfterFinished",
}
"""As docs/sweeps.md has them: all else is final."""


def test_every_field_is_tried() -> None:
    assert CHANGES.keys() == {field.alias for field in LoRASweepSpec.model_fields.values()}


@pytest.fixture(scope="module")
def changes(api_server: ApiServer, namespace: str) -> str:
    """A sweep in which each field is changed, and nothing of it kept."""
    body = sweep("changes", {"preset": "Guide", "parameters": [RANK], "parallelTrials": 4})
    api_server.create(body, namespace)
    return "changes"


@pytest.mark.parametrize("field", CHANGES)
def test_what_may_change(api_server: ApiServer, namespace: str, changes: str, field: str) -> None:
    change = {"spec": {field: CHANGES[field]}}
    if field in MUTABLE:
        patched = api_server.patch(KIND, changes, change, namespace, dry_run=True)
        assert patched["spec"].get(field) == CHANGES[field]
        return
    with pytest.raises(KubectlError, match=f"{field} cannot be changed"):
        api_server.patch(KIND, changes, change, namespace, dry_run=True)


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
        kind = schema.get("type", "string")  # of a number or string, both
        if kind == "string":
            assert "enum" in schema or "maxLength" in schema, path
        assert kind != "array" or "maxItems" in schema, path
        assert "additionalProperties" not in schema or "maxProperties" in schema, path
        stack += [(f"{path}.{name}", child) for name, child in schema.get("properties", {}).items()]
        stack += [(f"{path}[]", schema["items"])] if "items" in schema else []
        stack += [(f"{path}{{}}", schema["additionalProperties"])] if "additionalProperties" in schema else []
