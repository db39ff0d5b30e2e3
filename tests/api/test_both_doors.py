"""Values as people write them: what a real API server takes of a YAML text, the door without a cluster takes, too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.validation import parse_adaptermerge, parse_lorajob, parse_lorasweep
from tunery_trainer.local.as_kubectl import documents_of

from kit.kubectl import Kubectl

JOB: dict[str, Any] = {
    "model": {"uri": "s3://m/m"},
    "dataset": {"uri": "s3://d/rows.jsonl"},
    "output": {"uri": "s3://o/x"},
}
MERGE: dict[str, Any] = {
    "adapters": [{"uri": "s3://a/1"}],
    "method": "TIES",
    "evaluation": {"dataset": {"uri": "s3://d/x.jsonl"}},
    "output": {"uri": "s3://o/x"},
}
SWEEP: dict[str, Any] = {
    "template": {key: JOB[key] for key in ("model", "dataset")},
    "parameters": [{"path": "lora.rank", "choices": ["4", "8"]}],
    "output": {"uri": "s3://o/x"},
}
DOORS = {
    "LoRAJob": (parse_lorajob, JOB),
    "AdapterMerge": (parse_adaptermerge, MERGE),
    "LoRASweep": (parse_lorasweep, SWEEP),
}
FIELDS = [
    ("LoRAJob", "lora.rank"),
    ("LoRAJob", "lora.dropout"),
    ("LoRAJob", "training.epochs"),
    ("LoRAJob", "training.packing"),
    ("LoRAJob", "dataset.evaluation.fraction"),
    ("LoRAJob", "evaluation.minImprovement"),
    ("LoRAJob", "resources.cpu"),
    ("LoRAJob", "resources.memory"),
    ("AdapterMerge", "adapters.0.weight"),
    ("LoRASweep", "pruner.keep"),
]
VALUES = (
    *("0", "1", "3", "1001", "-1", "16.0", "1_000", ".5", "-0.5", "2e-4", "1e22"),
    *('"0.00"', '"1.0"', '"3"', '"1001"', '"-0.5"', '"2e-4"', '"5e2"', '"1_000"', '" 3"', '""'),
    *("null", "true", '"true"', "{}", "[]", "[1]", "Some", "2026-11-28", "500m", "8Gi"),
)


def manifest(name: str, kind: str, path: str, value: str) -> str:
    """Return the text of an object with a value, as it is written, at a path of its spec."""
    spec: Any = copy.deepcopy(DOORS[kind][1])
    *blocks, last = path.split(".")
    at = spec
    for block in blocks:
        at = at[int(block)] if block.isdecimal() else at.setdefault(block, {})
    at[last] = "VALUE"
    # JSON is YAML, and so is a value of YAML in it.
    text = repr(spec).replace("'VALUE'", value)
    return f"apiVersion: tunery.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {text}\n"


def taken_here(text: str) -> bool:
    """Tell whether the door without a cluster takes it."""
    (document,) = documents_of(text)
    try:
        DOORS[document["kind"]][0](document)
    except InvalidSpec:
        return False
    return True


@pytest.fixture(scope="module")
def namespace(api_server: Kubectl) -> Iterator[str]:
    api_server.run("create", "namespace", "doors")
    yield "doors"
    api_server.delete("namespace", "doors", wait=False)


def test_both_doors_take_the_same_values(api_server: Kubectl, namespace: str) -> None:
    texts = {
        f"v-{field}-{value}": manifest(f"v-{field}-{value}", kind, path, written)
        for field, (kind, path) in enumerate(FIELDS)
        for value, written in enumerate(VALUES)
    }
    script = f"kubectl create --dry-run=server -o name -n {namespace} -f - || true"
    said = api_server.program("sh", "-c", script, stdin="---\n".join(texts.values()))
    taken_there = {line.rpartition("/")[2] for line in said.splitlines()}
    differ = {
        f"{FIELDS[int(name.split('-')[1])][1]}: {VALUES[int(name.split('-')[2])]}": name in taken_there
        for name, text in texts.items()
        if taken_here(text) != (name in taken_there)
    }
    assert taken_there
    assert differ == {}
