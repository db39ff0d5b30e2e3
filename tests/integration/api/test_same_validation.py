"""Values as people write them: without a cluster, the same YAML texts are accepted as by a real API server."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob
from tunery_search.validation import parse_lorasweep
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
    "parameters": [
        {"path": "lora.rank", "choices": ["4", "8"]},
        {"path": "lora.alpha", "choices": ["8"], "when": {"path": "lora.rank", "in": ["4"]}},
    ],
    "output": {"uri": "s3://o/x"},
    "pruner": {"rungs": [0.999]},
}
SERVER: dict[str, Any] = {"model": {"uri": "s3://m/m"}, "adapters": [{"name": "a", "uri": "s3://a/1"}]}
BATCH: dict[str, Any] = {
    "serverRef": {"name": "a"},
    "input": {"uri": "s3://d/rows.jsonl"},
    "output": {"uri": "s3://o/x"},
}
GATEWAYS = {
    "LoRAJob": (parse_lorajob, JOB),
    "AdapterMerge": (parse_adaptermerge, MERGE),
    "LoRASweep": (parse_lorasweep, SWEEP),
    "AdapterServer": (parse_adapterserver, SERVER),
    "BatchInference": (parse_batchinference, BATCH),
}
FIELDS = [
    ("LoRAJob", "lora.rank"),
    ("LoRAJob", "lora.dropout"),
    ("LoRAJob", "training.epochs"),
    ("LoRAJob", "training.warmup"),
    ("LoRAJob", "training.packing"),
    ("LoRAJob", "dataset.evaluation.fraction"),
    ("LoRAJob", "evaluation.minImprovement"),
    ("LoRAJob", "resources.cpu"),
    ("LoRAJob", "resources.nodes"),
    ("LoRAJob", "resources.memory"),
    ("AdapterMerge", "adapters.0.weight"),
    ("AdapterMerge", "density"),
    ("LoRASweep", "objective.tolerance"),
    ("LoRASweep", "pruner.keep"),
    ("LoRASweep", "pruner.rungs.0"),
    ("AdapterServer", "engine.gpuMemoryFraction"),
]
VALUES = (
    *("0", "1", "3", "1001", "-1", "16.0", "1_000", ".5", "-0.5", "2e-4", "1e22", "-0", "0.1e1", "+3", "0x10"),
    *("5e-324", "-5e-324", "1e-400", "1e99", "25769803776.5", "9223372036854775807", "12345678901234567890", "NaN"),
    *('"0.5"', '"3"', '"1001"', '"2e-4"', '" 3"', '""', '"0x10"', '"3\\n"', '"\uff13"'),
    *("[null]", "null", "true", '"true"', "{}", "[]", "[1]", "Some", "2026-11-28", "500m", "8Gi"),
)

LISTS = [
    ("LoRAJob", "lora.targetModules"),
    ("LoRAJob", "scheduling.tolerations"),
    ("LoRASweep", "template.scheduling.tolerations"),
    ("AdapterServer", "scheduling.tolerations"),
    ("LoRASweep", "parameters.0.choices"),
    ("LoRASweep", "parameters.1.when.in"),
    ("LoRASweep", "pruner.rungs"),
    ("LoRASweep", "initial"),
]
PLACES = [
    ("LoRAJob", "continueFrom.uri"),
    ("LoRAJob", "model.uri"),
    ("LoRAJob", "dataset.uri"),
    ("LoRAJob", "output.uri"),
    ("AdapterServer", "adapters.0.uri"),
    ("AdapterMerge", "adapters.0.uri"),
    ("AdapterMerge", "model.uri"),
    ("LoRASweep", "template.continueFrom.uri"),
    ("LoRASweep", "template.model.uri"),
]
BESIDE = (
    "s3://o/x",
    "s3://o/x/",
    "s3://o/x//",
    "s3://o//x",
    "s3://o/./x",
    "s3://o/a/../x",
    "s3://o/x/..",
    "s3://o/x/.",
    "s3:///o/x",
    "s3://../x",
    "s3://o/a..b/.../.x",
    "s3://o/x://y",
    "pvc://o//x",
    "pvc://o/x/",
    "configmap://o/../x",
    "hf://o//x",
    "s3://o/xy",
    "s3://o/x/y",
    "s3://o",
    "s3://o/",
    "s3://a/x",
    "hf://o/x/",
)
"""Places beside an output at s3://o/x."""
TOLERATIONS = (
    "[{operator: Exists}]",
    "[{key: a, effect: NoExecute, tolerationSeconds: 5}]",
    "[{key: a, operator: Exists, value: x}]",
    "[{key: a, operator: Exists, tolerationSeconds: 60}]",
    "[{key: a, effect: NoSchedule, tolerationSeconds: 0}]",
    "[{value: x}]",
    "[{key: a, operator: Exists, value: ''}]",
)
ENTRIES = (
    "[null]",
    '["0.999", null]',
    "[[]]",
    "[{}]",
    "[{lora.rank: null}]",
    "[{lora.rank: 4}]",
    '[""]',
    "null",
)


def manifest(name: str, kind: str, path: str, value: str) -> str:
    """Return the text of an object with a value, as it is written, at a path of its spec."""
    spec: Any = copy.deepcopy(GATEWAYS[kind][1])
    *blocks, last = path.split(".")
    at = spec
    for block in blocks:
        at = at[int(block)] if block.isdecimal() else at.setdefault(block, {})
    at[int(last) if last.isdecimal() else last] = "VALUE"
    # JSON is YAML, and so is a value of YAML in it.
    text = repr(spec).replace("'VALUE'", value)
    return f"apiVersion: tunery.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {text}\n"


def taken_here(text: str) -> bool:
    """Return whether validation without a cluster accepts it."""
    (document,) = documents_of(text)
    try:
        GATEWAYS[document["kind"]][0](document, local=True)
    except InvalidSpec:
        return False
    return True


@pytest.fixture(scope="module")
def namespace(api_server: Kubectl) -> Iterator[str]:
    api_server.run("create", "namespace", "same-validation")
    yield "same-validation"
    api_server.delete("namespace", "same-validation", wait=False)


def test_both_gateways_take_the_same_values(api_server: Kubectl, namespace: str) -> None:
    questions = [
        *itertools.product(FIELDS, VALUES),
        *itertools.product(LISTS, ENTRIES),
        *itertools.product([each for each in LISTS if each[1].endswith("tolerations")], TOLERATIONS),
        *itertools.product(PLACES, BESIDE),
    ]
    texts = [manifest(f"v-{number}", kind, path, written) for number, ((kind, path), written) in enumerate(questions)]
    script = f"kubectl create --dry-run=server -o name -n {namespace} -f - || true"
    said = api_server.program("sh", "-c", script, stdin="---\n".join(texts))
    taken_there = {int(line.rpartition("-")[2]) for line in said.splitlines()}
    differ = {
        f"{path}: {written}": number in taken_there
        for number, ((_, path), written) in enumerate(questions)
        if taken_here(texts[number]) != (number in taken_there)
    }
    assert taken_there
    assert differ == {}
