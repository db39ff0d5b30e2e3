"""Values as people write them: without a cluster, the same YAML texts are accepted as by a real API server."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from tunery_api.errors import InvalidSpec
from tunery_api.kinds import Kind
from tunery_api.kubectl_yaml import documents_of

from kit.kubectl import Kubectl
from kit.validations import BASES, ONE, PARSERS, ROWS, TEMPLATE, Spec

OUTPUT: Spec = {"output": {"uri": "s3://o/x"}}
SPECS: dict[str, Spec] = {
    Kind.LORAJOB: BASES[Kind.LORAJOB] | OUTPUT,
    Kind.ADAPTERMERGE: BASES[Kind.ADAPTERMERGE] | OUTPUT | {"method": "TIES", "evaluation": {"dataset": ROWS}},
    Kind.LORASWEEP: OUTPUT
    | {
        "template": TEMPLATE,
        "parameters": [
            {"path": "lora.rank", "choices": ["4", "8"]},
            {"path": "lora.alpha", "choices": ["8"], "when": {"path": "lora.rank", "in": ["4"]}},
        ],
        "pruner": {"rungs": [0.999]},
    },
    Kind.ADAPTERSERVER: BASES[Kind.ADAPTERSERVER] | {"adapters": [ONE | {"name": "a"}]},
}
FIELDS = [
    ("LoRAJob", "lora.rank"),
    ("LoRAJob", "lora.dropout"),
    ("LoRAJob", "lora.rankPattern.q_proj"),
    ("LoRAJob", "suspend"),
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
    *("s3://o/x", "s3://o/x/", "s3://o/x//", "s3://o//x", "s3://o/./x", "s3://o/a/../x", "s3://o/x/..", "s3://o/x/."),
    *("s3:///o/x", "s3://../x", "s3://o/a..b/.../.x", "s3://o/x://y", "s3://o/xy", "s3://o/x/y", "s3://o", "s3://o/"),
    *("s3://a/x", "pvc://o//x", "pvc://o/x/", "configmap://o/../x", "hf://o//x", "hf://o/x/"),
)
"""Places beside an output at s3://o/x."""
ENTRIES = ("[null]", '["0.999", null]', "[[]]", "[{}]", "[{lora.rank: null}]", "[{lora.rank: 4}]", '[""]', "null")


def manifest(name: str, kind: str, path: str, value: str) -> str:
    """Return the text of an object with a value, as it is written, at a path of its spec."""
    spec: Any = copy.deepcopy(SPECS[kind])
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
        PARSERS[document["kind"]](document, local=True)
    except InvalidSpec:
        return False
    return True


def test_both_gateways_take_the_same_values(api_server: Kubectl, namespace: str) -> None:
    questions = [
        *itertools.product(FIELDS, VALUES),
        *itertools.product(LISTS, ENTRIES),
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
