"""What the schema alone rejects, in the words of Python and of the API server, and what both accept."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tunery_api.fields import PLAIN_PATH
from tunery_api.kinds import Kind

from kit.api_server import ApiServer
from kit.validations import MODEL, ONE, ROWS, TEMPLATE, Spec, manifest, python_errors, server_error

MEMORY: Final = "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes"
CPU: Final = 'spec.resources.cpu: must be an amount of CPU of at most 1000, such as 4, "0.5" or 500m'
RANK: Final = {"path": "lora.rank", "choices": ["4", "8"]}


def memory(amount: Any) -> Spec:
    return {"resources": {"memory": amount}}


def tolerating(**toleration: Any) -> Spec:
    return {"scheduling": {"tolerations": [toleration]}}


def adapter(**fields: Any) -> Spec:
    return {"adapters": [fields]}


def decay(**ends: Any) -> Spec:
    return {"parameters": [{"path": "training.weightDecay", "range": ends}]}


REJECTED: Final[dict[Kind, dict[str, tuple[Spec, str]]]] = {
    Kind.LORAJOB: {
        "spec.resources.memory: must be at least 64Mi, is 24, which are bytes; did you mean 24Gi?":
            (memory(24), MEMORY),
        "spec.resources.memory: must be at least 64Mi, is '512', which are bytes; did you mean 512Mi?":
            (memory("512"), MEMORY),
        "spec.resources.memory: must be at least 64Mi, is '24.5Mi'; did you mean 24.5Gi?":
            (memory("24.5Mi"), MEMORY),
        "spec.resources.memory: must be a number of bytes above 0, such as 24Gi, is '3GB'":
            (memory("3GB"), MEMORY),
        "spec.resources.memory: must be at least 64Mi, is '0.00000000001Ei'; write a unit, such as 24Gi":
            (memory("0.00000000001Ei"), MEMORY),
        f"{CPU}, is '4Gi', which is a quantity of memory":
            ({"resources": {"cpu": "4Gi"}}, "resources.cpu"),
        f"{CPU}, is '2000'; did you mean 2000m?":
            ({"resources": {"cpu": "2000"}}, "resources.cpu"),
        f"{CPU}, is 1500; did you mean 1500m?":
            ({"resources": {"cpu": 1500}}, "resources.cpu"),
        "spec.resources.ephemeralStorage: must be at least 1Mi, is 50, which are bytes; did you mean 50Gi?":
            ({"resources": {"ephemeralStorage": 50}},
             "ephemeralStorage must be at least 1Mi, a quantity such as 24Gi; without a unit it is bytes"),
        "spec.resources.gpus: must be at most 16, is 17":
            ({"resources": {"gpus": 17}}, "spec.resources.gpus in body should be less than or equal to 16"),
        "spec.resources.nodes: must be at most 64, is 65":
            ({"resources": {"nodes": 65}}, "spec.resources.nodes in body should be less than or equal to 64"),
        "spec.resources.nodes: must be at least 1, is 0":
            ({"resources": {"nodes": 0}}, "spec.resources.nodes in body should be greater than or equal to 1"),
        "spec.training.epochs: must be above 0, is 0":
            ({"training": {"epochs": 0}}, "epochs in body should be greater than 0"),
        "spec.training.learningRate: must be above 0, is 0.0":
            ({"training": {"learningRate": 0.0}}, "learningRate in body should be greater than 0"),
        "spec.preference.beta: must be above 0, is 0":
            ({"task": "DPO", "preference": {"beta": 0}}, "beta in body should be greater than 0"),
        "spec.preference.desirableWeight: must be above 0, is 0":
            ({"task": "KTO", "preference": {"desirableWeight": 0}}, "desirableWeight in body should be greater than 0"),
        "spec.preference.undesirableWeight: must be above 0, is 0":
            ({"task": "KTO", "preference": {"undesirableWeight": 0}},
             "undesirableWeight in body should be greater than 0"),
        "spec.lora.dropout: must be below 1, is 1":
            ({"lora": {"dropout": 1}}, "dropout in body should be less than 1"),
        "spec.evaluation.minImprovement: must be below 1, is 1.5":
            ({"evaluation": {"minImprovement": 1.5}}, "minImprovement in body should be less than 1"),
        "spec.dataset.evaluation.fraction: must be above 0, is 0":
            ({"dataset": ROWS | {"evaluation": {"fraction": 0}}}, "fraction in body should be greater than 0"),
        f"spec.output.uri: {PLAIN_PATH}, is 's3://a//b'":
            ({"output": {"uri": "s3://a//b"}}, f"uri {PLAIN_PATH}"),
        "spec.model.uri: file:// is for runs without a cluster only. Fix: use s3:// or pvc://":
            ({"model": {"uri": "file:///x"}}, "spec.model.uri: Invalid value"),
        "spec.method: must be 'Auto', 'LoRA', 'QLoRA', 'DoRA', 'QDoRA', 'AdaLoRA', 'PrefixTuning', 'PromptTuning' or "
        "'IA3', is 'qlora'; did you mean QLoRA?":
            ({"method": "qlora"}, "spec.method: Unsupported value"),
        "spec.scheduling.tolerations[0].key: must look like "
        f"^(([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?)?$, is 'a.b/{'a' * 54}…":
            (tolerating(key="a.b/" + "a" * 64), "spec.scheduling.tolerations[0].key"),
    },
    Kind.ADAPTERMERGE: {
        "spec.adapters: must have at most 32 entries, has 33":
            ({"adapters": [ONE] * 33}, "spec.adapters: Too many: 33: must have at most 32 items"),
        f"spec.adapters[0].uri: {PLAIN_PATH}, is 's3://adapters//two'":
            (adapter(uri="s3://adapters//two"), f"uri {PLAIN_PATH}"),
        "spec.adapters[0].uri: file:// is for runs without a cluster only. Fix: use s3:// or pvc://":
            (adapter(uri="file:///adapters/one"), "spec.adapters[0].uri"),
        "spec.adapters[0].uri: must be hf://owner/name, s3://bucket/prefix or pvc://claim/path, is "
        "'configmap://adapters/one'":
            (adapter(uri="configmap://adapters/one"), "spec.adapters[0].uri"),
        f"spec.adapters[0].sha256: must look like ^[0-9a-f]{{64}}$, is '{'AB' * 29}…":
            (adapter(**ONE, sha256="AB" * 32), "spec.adapters[0].sha256"),
        "spec.adapters[0].sha256: must have 64 characters":
            (adapter(**ONE, sha256="ab"), "spec.adapters[0].sha256"),
        "spec.adapters[0].revision: must look like ^[A-Za-z0-9][A-Za-z0-9._/-]*$, is '-f'":
            (adapter(uri="hf://owner/name", revision="-f"), "spec.adapters[0].revision"),
        "spec.adapters[0].weight: must be at least -1000, is -1000.5":
            (adapter(**ONE, weight=-1000.5), "weight in body should be greater than or equal to -1000"),
        "spec.resources.gpus: must be at most 1, is 2":
            ({"resources": {"gpus": 2}}, "spec.resources.gpus in body should be less than or equal to 1"),
        "spec.resources.nodes: unknown field; the fields here are gpus, gpuResource, cpu, memory, ephemeralStorage":
            ({"resources": {"nodes": 2}}, 'unknown field "spec.resources.nodes"'),
        "spec.evaluation.minImprovement: must be below 1, is 5":
            ({"evaluation": {"dataset": ROWS, "minImprovement": 5}}, "minImprovement in body should be less than 1"),
        "spec.evaluation.dataset.evaluation: unknown field; did you mean spec.evaluation?":
            ({"evaluation": {"dataset": ROWS | {"evaluation": {"fraction": 0.1}}}},
             'unknown field "spec.evaluation.dataset.evaluation"'),
        "spec.density: must be above 0, is 0":
            ({"method": "TIES", "density": 0}, "density in body should be greater than 0"),
    },
    Kind.LORASWEEP: {
        "spec.parameters[1].path: lora.rank is in the list already. Fix: remove one of the two":
            ({"parameters": [RANK, RANK]}, "spec.parameters[1]: Duplicate value"),
        "spec.warmStartFrom[2].name: a is in the list already. Fix: remove one of the two":
            ({"warmStartFrom": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
             "spec.warmStartFrom[2]: Duplicate value"),
        "spec.warmStartFrom[1].name: is this sweep, which learns from its own trials anyway; remove it":
            ({"warmStartFrom": [{"name": "a"}, {"name": "case"}]},
             "warmStartFrom names this sweep, which already learns from its own trials. Fix: remove that entry"),
        "spec.parameters[0].range.min: must be a number: write it without quotes, 1e-5":
            (decay(min="1e-5", max=1), 'range.min in body must be of type number: "string"'),
        "spec.parameters[0].range.step: must be above 0, is 0":
            (decay(min=1, max=2, step=0), "step in body should be greater than 0"),
    },
    Kind.ADAPTERSERVER: {
        "spec.adapters[1].name: one is in the list already. Fix: remove one of the two":
            ({"adapters": [ONE | {"name": "one"}] * 2}, "Duplicate value"),
        "spec.resources.memory: must be at least 64Mi, is '24', which are bytes; did you mean 24Gi?":
            (memory("24"), MEMORY),
        "spec.engine.gpuMemoryFraction: must be above 0, is 0":
            ({"engine": {"gpuMemoryFraction": 0}}, "gpuMemoryFraction in body should be greater than 0"),
    },
    Kind.BATCHINFERENCE: {
        "spec.serverRef: is required":
            ({"serverRef": None}, "spec.serverRef: Required value"),
        "spec.input: is required":
            ({"input": None}, "spec.input: Required value"),
        "spec.concurrency: must be at least 1, is 0":
            ({"concurrency": 0}, "spec.concurrency"),
        "spec.concurrency: must be at most 1024, is 1025":
            ({"concurrency": 1025}, "spec.concurrency"),
        "spec.maxErrors: must be at least 0, is -1":
            ({"maxErrors": -1}, "spec.maxErrors"),
        "spec.resources.memory: must be at least 64Mi, is '1', which are bytes; did you mean 1Gi?":
            (memory("1"), MEMORY),
        "spec.resources.gpus: unknown field; the fields here are cpu, memory, ephemeralStorage":
            ({"resources": {"gpus": 1}}, 'unknown field "spec.resources.gpus"'),
        "spec.apiKeySecretRef.key: is required":
            ({"apiKeySecretRef": {"name": "keys"}}, "spec.apiKeySecretRef.key"),
        "spec.defaultModel: must look like ^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$, is 'a@b'":
            ({"defaultModel": "a@b"}, "spec.defaultModel"),
        **{f"spec.input.uri: must be s3://bucket/prefix, is '{uri}'":
           ({"input": {"uri": uri}}, "spec.input.uri: Invalid value")
           for uri in ("pvc:///in.jsonl", "pvc://../in.jsonl", "pvc://Claim/in.jsonl", "configmap:///a",
                       "configmap://../a")},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "error"), [(kind, error) for kind, errors in REJECTED.items() for error in errors], ids=lambda it: it[:60]
)
def test_python_and_the_api_server_reject_a_value(
    api_server: ApiServer, namespace: str, kind: Kind, error: str
) -> None:
    spec, told = REJECTED[kind][error]
    body = manifest(kind, spec)
    assert python_errors(body) == [error]
    assert told in server_error(api_server, namespace, body)


CLIENTS: Final = [{"name": "alice", "models": ["one", "one:prod"]}]
ACCEPTED: Final[dict[Kind, list[Spec]]] = {
    Kind.LORAJOB: [
        {},
        *({"method": method, "quantization": {"type": bits}}
          for method in ("Auto", "QLoRA", "AdaLoRA", "IA3", "PromptTuning", "PrefixTuning")
          for bits in ("NF4", "FP4", "Int8")),
        {"resources": {"memory": "0.0625Gi", "ephemeralStorage": 1048576}},
        {"resources": {"memory": 67108864, "ephemeralStorage": "1024Ki"}},
        {"method": "QDoRA", "quantization": {"type": "FP4"}},
        {"method": "DoRA", "lora": {"init": "PiSSA"}},
        {"method": "QLoRA", "lora": {"init": "LoftQ"}},
        {"method": "QDoRA", "lora": {"init": "EVA"}},
        {"lora": {"init": "Gaussian"}},
        {"lora": {"targetModules": ["q_proj", "v_proj"]}},
        {"method": "AdaLoRA", "lora": {"alpha": 8, "targetModules": ["attention"]}, "adalora": {"initialRank": 9}},
        {"method": "AdaLoRA", "adalora": {"initialRank": 5, "targetRank": 4}},
        {"method": "AdaLoRA", "adalora": {"targetRank": 2}},
        {"method": "PrefixTuning", "training": {"packing": False, "gradientCheckpointing": False}},
        {"resources": {"gpus": 0}, "training": {"gradientAccumulation": 3}},
        {"resources": {"nodes": 2}, "training": {"gradientAccumulation": 6}},
        {"resources": {"gpus": 0, "nodes": 3}, "training": {"gradientAccumulation": 12}},
        {"resources": {"gpus": 16, "nodes": 64}, "training": {"gradientAccumulation": 1024, "parallelism": "FSDP"}},
        {"resources": {"gpus": 0, "nodes": 4}, "training": {"parallelism": "DDP"}},
        {"training": {"neftuneNoiseAlpha": 5}},
        {"method": "LoRA", "continueFrom": {"loraJobRef": {"name": "first"}}},
        {"method": "LoRA", "continueFrom": ONE | {"sha256": "0123456789abcdef" * 4}},
        {"continueFrom": {"uri": "hf://owner/name/folder", "revision": "v1"}},
        {"continueFrom": {"uri": "pvc://claim/some/folder"}},
        {"method": "AdaLoRA", "resumeFrom": {"loraJobRef": {"name": "late"}}},
        {"resumeFrom": {"uri": "s3://b/tunery-checkpoints/ns/x-1/step-000200"}},
        {"model": MODEL | {"revision": "main"}},
        {"task": "DPO", "preference": {"beta": 0.05, "lossType": "IPO"}},
        {"task": "DPO", "training": {"packing": False, "loss": "Completion", "neftuneNoiseAlpha": 0}},
        {"task": "DPO", "dataset": ROWS | {"template": "Plain"}},
        {"task": "ORPO", "preference": {}, "dataset": ROWS | {"format": "Preference"}},
        {"task": "KTO", "preference": {"desirableWeight": 1.3, "undesirableWeight": 2}},
        *({"task": "KTO", "dataset": ROWS | {"format": rows}} for rows in ("UnpairedPreference", "Preference")),
        *({"model": {"uri": "s3://models/SmolLM2"}, "output": {"uri": uri}}
          for uri in ("s3://models/SmolLM2-adapter", "s3://models/Smol", "s3://other/SmolLM2", "s3://models/smollm2")),
        tolerating(key="", operator="Exists"),
        tolerating(key="a", operator="Exists", value=""),
        tolerating(key="a" * 63, effect="NoExecute", tolerationSeconds=5),
    ],
    Kind.ADAPTERMERGE: [
        {},
        {"adapters": [{"uri": "hf://owner/name", "revision": "v1", "sha256": "ab" * 32}, {"uri": "pvc://claim"}]},
        {"adapters": [ONE, {"uri": "hf://owner/name/some/folder"}], "model": {"uri": "hf://owner/base"}},
        {"adapters": [ONE | {"weight": 0.5}, {"loraJobRef": {"name": "x"}, "weight": 1}]},
        *({"adapters": [{"loraJobRef": {"name": "x"}}], "model": MODEL} | use
          for use in ({"into": "Model"}, {"evaluation": {"dataset": ROWS}})),
        *({"adapters": [ONE], "output": {"uri": f"{ONE['uri']}{end}"}} for end in ("s", "/in")),
    ],
    Kind.LORASWEEP: [
        {},
        decay(min=1e-5, max=1, log=True) | {"initial": [{"training.weightDecay": 2e-4}], "pruner": {"keep": 0.3}},
        decay(min=0, max=1e-3) | {"preset": None},
        {"preset": None, "parameters": [{"path": "lora.rank", "choices": [16, 4]}, RANK | {"path": "lora.alpha"}]},
        {
            "preset": None, "template": TEMPLATE | {"adalora": {"targetRank": 4}, "lora": {"alpha": 8}},
            "parameters": [{"path": "method", "choices": ["AdaLoRA"]}],
        },
        {"budget": {"gpuSeconds": 5}},
        {"parallelTrials": 2, "maxTrials": 1},
        {"initial": [{"lora.rank": "8", "lora.alpha": "16"}]},
        {"warmStartFrom": [{"name": f"{n}" * 253} for n in range(8)]},
    ],
    Kind.ADAPTERSERVER: [
        {},
        {"adapters": [ONE | {"name": "one"}, {"name": "b:prod/v1.2", "adapterMergeRef": {"name": "m"}}]},
        {"adapters": [ONE | {"name": "one", "manifestSha256": "a" * 64}], "model": MODEL | {"servedName": "x"}},
        {"adapterSelector": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}},
        {"adapterSelector": {"matchLabels": {"team": "support"}}, "replicas": 0},
        {"engine": {"maxRank": 320, "maxAdaptersInBatch": 1, "maxLoadedAdapters": 1, "args": ["--seed=1"]}},
        {"engine": {"maxLoadedAdapters": 8, "args": ["--enforce-eager"]}},
        {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
        {"adapters": [ONE | {"name": "one", "keepLoaded": True}],
         "aliases": [{"name": "one:prod", "targets": [{"adapter": "m", "weight": 0}, {"adapter": "one"}]}]},
        {"access": {"apiKeysSecretRef": {"name": "k"}, "clients": CLIENTS}},
    ],
    Kind.BATCHINFERENCE: [
        {},
        {"input": {"uri": "s3://data/in.jsonl.gz", "secretRef": {"name": "s3"}}},
        *({"input": {"uri": uri}}
          for uri in ("hf://a/b/in.jsonl.zst", "pvc://claim/rows/in.jsonl", "configmap://questions/requests")),
        {"apiKeySecretRef": {"name": "keys", "key": "nightly"}, "defaultModel": "bot:prod", "concurrency": 1024},
        *({"apiKeySecretRef": {"name": "keys", "key": key}} for key in ("a..b", ".a")),
        {"resources": {"cpu": "2", "memory": "2Gi", "ephemeralStorage": "1Gi"}, "maxErrors": 5},
    ],
}  # fmt: skip
DEFAULTS: Final[dict[Kind, Spec]] = {
    Kind.ADAPTERMERGE: {"method": "Linear", "into": "Adapter"},
    Kind.ADAPTERSERVER: {"replicas": 1},
}
"""What the API server adds, for the columns of kubectl and for scale."""


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(kind, spec) for kind, specs in ACCEPTED.items() for spec in specs],
    ids=lambda part: str(part)[:60],
)
def test_python_and_the_api_server_accept_a_spec(api_server: ApiServer, namespace: str, kind: Kind, spec: Spec) -> None:
    body = manifest(kind, spec)
    assert python_errors(body) == []
    stored = api_server.create(body, namespace, dry_run=True)
    assert stored["spec"] == DEFAULTS.get(kind, {}) | body["spec"], "nothing else is filled in, nothing is pruned"
