"""Each rule with its message and the specs that break it, as Python and the API server report it."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tunery_api.adapterserver import ENGINE_ARGS
from tunery_api.kinds import Kind
from tunery_api.rules import RULES

from kit.api_server import ApiServer
from kit.validations import ONE, ROWS, TEMPLATE, Spec, manifest, python_errors, server_error

MODEL: Final = {"uri": "s3://a/b"}
REFERENCE: Final = {"loraJobRef": {"name": "x"}}
DIGEST: Final = "0" * 64
PREFIX: Final = {"method": "PrefixTuning"}
UNEVEN: Final = (
    "spec.training.gradientAccumulation: is not a multiple of the devices that share the passes: resources.gpus "
    "x resources.nodes, or resources.nodes with gpus: 0. Fix: set such a multiple, or remove it"
)


def of_dataset(**fields: Any) -> Spec:
    return {"dataset": ROWS | fields}


def shared(passes: int, **resources: int) -> Spec:
    """Return a LoRAJob whose devices share so many passes."""
    return {"training": {"gradientAccumulation": passes}, "resources": resources}


def tolerating(**toleration: Any) -> Spec:
    return {"scheduling": {"tolerations": [toleration]}}


def onto(uri: str, **fields: Any) -> Spec:
    """Return a spec whose output is at a URI."""
    return {"output": {"uri": uri}} | fields


def searching(**fields: Any) -> Spec:
    return {"preset": None, "parameters": [{"path": "training.weightDecay"} | fields]}


def aliases(**targets: list[Spec]) -> Spec:
    """Return a server with these aliases beside the adapter `one`."""
    return {"adapters": [{"name": "one"} | ONE], "aliases": [{"name": n, "targets": t} for n, t in targets.items()]}


LORAJOBS: dict[str, list[Spec]] = {
    "spec.model.revision: is for hf:// models only. Fix: remove it":
        [{"model": MODEL | {"revision": "main"}}],
    "spec.dataset.template: Plain is for prompts with completions, not for format: Messages or ShareGPT. Fix: "
    "remove it":
        [of_dataset(template="Plain", format=rows) for rows in ("Messages", "ShareGPT")],
    "spec.dataset.evaluation: takes at most one of uri, split and fraction. Fix: keep one of them":
        [of_dataset(evaluation={"split": "test", "fraction": 0.1}), of_dataset(evaluation=ROWS | {"fraction": 0.1})],
    "spec.dataset.evaluation.sha256: needs uri or split. Fix: remove it, because dataset.sha256 covers rows that "
    "are held out of dataset.uri":
        [of_dataset(evaluation={"fraction": 0.1, "sha256": DIGEST})],
    "spec.dataset.format: does not fit task: SFT. Fix: use Text, PromptCompletion, Alpaca, ShareGPT or Messages, "
    "or remove it":
        [of_dataset(format=rows) for rows in ("Preference", "UnpairedPreference")],
    "spec.dataset.format: does not fit task: DPO. Fix: use Preference, or remove it":
        [of_dataset(format=rows) | {"task": "DPO"} for rows in ("Messages", "UnpairedPreference")],
    "spec.dataset.format: does not fit task: ORPO. Fix: use Preference, or remove it":
        [of_dataset(format="UnpairedPreference") | {"task": "ORPO"}],
    "spec.dataset.format: does not fit task: KTO. Fix: use UnpairedPreference or Preference, or remove it":
        [of_dataset(format="PromptCompletion") | {"task": "KTO"}],
    "spec.lora.targetModules: has one of all-linear, attention, mlp, query-value and other names. Fix: set one "
    "such word alone, or module names only":
        [{"lora": {"targetModules": ["attention", "up_proj"]}}],
    "spec.lora.rank: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it, or with "
    "AdaLoRA set adalora.targetRank":
        [{"method": method, "lora": {"rank": 8}} for method in ("AdaLoRA", "IA3", "PromptTuning", "PrefixTuning")],
    "spec.lora.alpha: is not a setting of IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "IA3", "lora": {"alpha": 8, "targetModules": ["k_proj"]}}],
    "spec.lora.dropout: is not a setting of IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "IA3", "lora": {"dropout": 0.1}}],
    "spec.lora.targetModules: is not a setting of PromptTuning or PrefixTuning. Fix: remove it":
        [PREFIX | {"lora": {"targetModules": ["k_proj"]}}],
    "spec.lora.modulesToSave: is not a setting of PromptTuning or PrefixTuning. Fix: remove it":
        [PREFIX | {"lora": {"modulesToSave": ["lm_head"]}}],
    "spec.lora.useRslora: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "IA3", "lora": {"useRslora": True}}],
    "spec.lora.rankPattern: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "AdaLoRA", "lora": {"rankPattern": {"q_proj": 8}}}],
    "spec.lora.alphaPattern: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "AdaLoRA", "lora": {"alphaPattern": {"q_proj": 8}}}],
    "spec.lora.init: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it":
        [{"method": "IA3", "lora": {"init": "Gaussian"}}],
    "spec.lora.init: does not fit every method that Auto may choose. Fix: set the method, or use another init":
        [{"lora": {"init": init}} for init in ("PiSSA", "OLoRA", "LoftQ")],
    "spec.lora.init: PiSSA and OLoRA need the unquantized base. Fix: set method: LoRA or DoRA, or use another init":
        [{"method": "QLoRA", "lora": {"init": "PiSSA"}}, {"method": "QDoRA", "lora": {"init": "OLoRA"}}],
    "spec.lora.init: LoftQ is for method: QLoRA only. Fix: set method: QLoRA, or use another init":
        [{"method": method, "lora": {"init": "LoftQ"}} for method in ("LoRA", "DoRA", "QDoRA")],
    "spec.lora.init: LoftQ needs a base of 4 bits. Fix: set quantization.type: NF4 or FP4, or use another init":
        [{"method": "QLoRA", "lora": {"init": "LoftQ"}, "quantization": {"type": "Int8"}}],
    "spec.lora.init: has no effect with continueFrom, which starts from the weights of its adapter. Fix: remove it":
        [{"method": "LoRA", "lora": {"init": "Gaussian"}, "continueFrom": ONE}],
    "spec.adalora: is for method: AdaLoRA only. Fix: remove it":
        [{"method": "LoRA", "adalora": {"targetRank": 4}}],
    "spec.adalora.initialRank: is not above targetRank, 8 by default: AdaLoRA prunes down to it. Fix: raise it, "
    "or remove it":
        [{"method": "AdaLoRA", "adalora": ranks}
         for ranks in ({"initialRank": 8}, {"initialRank": 4, "targetRank": 4})],
    "spec.promptTuning: is for method: PromptTuning only. Fix: remove it":
        [{"promptTuning": {"virtualTokens": 8}}],
    "spec.prefixTuning: is for method: PrefixTuning only. Fix: remove it":
        [{"method": "PromptTuning", "prefixTuning": {}}],
    "spec.prefixTuning.projection: cannot be continued: a published prefix has no projection. Fix: remove it":
        [PREFIX | {"prefixTuning": {"projection": True}, "continueFrom": ONE}],
    "spec.quantization: does not fit LoRA and DoRA, which train on the unquantized base. Fix: set method: QLoRA "
    "or QDoRA, or remove it":
        [{"method": "LoRA", "quantization": {"type": "NF4"}}, {"method": "DoRA", "quantization": {}}],
    "spec.quantization.type: must have 4 bits for QDoRA. Fix: use NF4 or FP4, or set method: QLoRA":
        [{"method": "QDoRA", "quantization": {"type": "Int8"}}],
    "spec.preference: is for task: DPO, ORPO or KTO only. Fix: remove it":
        [{"preference": {"beta": 0.2}}],
    "spec.preference.desirableWeight: is for task: KTO only. Fix: remove it":
        [{"task": "DPO", "preference": {"desirableWeight": 2}}],
    "spec.preference.undesirableWeight: is for task: KTO only. Fix: remove it":
        [{"task": "ORPO", "preference": {"undesirableWeight": 2}}],
    "spec.preference.lossType: is for task: DPO only. Fix: remove it":
        [{"task": "ORPO", "preference": {"lossType": "Sigmoid"}}, {"task": "KTO", "preference": {"lossType": "IPO"}}],
    "spec.preset: is for task: SFT only. Fix: remove it":
        [{"task": "ORPO", "preset": "StyleTransfer"}],
    "spec.training.maxSteps: cannot be set together with epochs. Fix: remove one of the two":
        [{"training": {"epochs": 1, "maxSteps": 5}}],
    "spec.training.groupByLength: has no effect with packing, which makes all rows equally long. Fix: remove it, "
    "or set packing: false":
        [{"training": {"packing": True, "groupByLength": True}}],
    "spec.training.packing: is for task: SFT only. Fix: remove it":
        [{"task": "DPO", "training": {"packing": True}}],
    "spec.training.packing: does not fit prompt and prefix tuning: only the first example of a row would see the "
    "trained tokens. Fix: remove it, or set it to false":
        [{"method": method, "training": {"packing": True}} for method in ("PromptTuning", "PrefixTuning")],
    "spec.training.loss: is for task: SFT only. Fix: remove it":
        [{"task": "KTO", "training": {"loss": "All"}}],
    "spec.training.neftuneNoiseAlpha: is for task: SFT only. Fix: remove it":
        [{"task": "DPO", "training": {"neftuneNoiseAlpha": 5}}],
    "spec.training.gradientCheckpointing: does not fit PrefixTuning, which cannot recompute activations. Fix: "
    "remove it, or use PromptTuning":
        [PREFIX | {"training": {"gradientCheckpointing": True}}],
    "spec.training.scaleLearningRateWithRank: is for methods with a rank only. Fix: set learningRate itself":
        [{"method": method, "training": {"scaleLearningRateWithRank": True}} for method in ("IA3", "PromptTuning")],
    "spec.training.precision: Float16 needs a GPU. Fix: use Auto, Float32 or BFloat16":
        [{"resources": {"gpus": 0}, "training": {"precision": "Float16"}}],
    UNEVEN:
        [shared(12, gpus=4, nodes=2), shared(1, gpus=4, nodes=2), shared(2, gpus=0, nodes=3), shared(1024, nodes=3)],
    "spec.training.parallelism: FSDP needs 2 or more GPUs in a pod, which share the base. Fix: raise "
    "resources.gpus, or remove it":
        [{"training": {"parallelism": "FSDP"}, "resources": resources} for resources in ({}, {"gpus": 0, "nodes": 4})],
    "spec.training.parallelism: FSDP cannot share a base in Int8. Fix: set quantization.type: NF4 or FP4, or "
    "remove it":
        [{"method": "QLoRA", "quantization": {"type": "Int8"}, "training": {"parallelism": "FSDP"},
          "resources": {"gpus": 2}}],
    "spec.evaluation.everySteps: cannot be set together with times. Fix: remove one of the two":
        [{"evaluation": {"times": 4, "everySteps": 10}}],
    "spec.evaluation.generation: needs prompts and answers, which training.loss: All does not separate. Fix: "
    "remove one of the two":
        [{"evaluation": {"generation": {}}, "training": {"loss": "All"}}],
    "spec.evaluation.generation: is for task: SFT only. Fix: remove it":
        [{"evaluation": {"generation": {}}, "task": "DPO"}],
    "spec.checkpoint.everyMinutes: cannot be set together with everySteps. Fix: remove one of the two":
        [{"checkpoint": {"everySteps": 10, "everyMinutes": 5}}],
    "spec.continueFrom: needs exactly one of loraJobRef and uri. Fix: set one of them":
        [{"continueFrom": {}}],
    "spec.continueFrom: cannot be set with AdaLoRA, whose ranks are final once pruned. Fix: train a new adapter":
        [{"method": "AdaLoRA", "continueFrom": ONE}],
    "spec.continueFrom.sha256: needs uri. Fix: remove it, because a LoRAJob's adapter is verified without it":
        [{"continueFrom": REFERENCE | {"sha256": DIGEST}}],
    "spec.continueFrom.revision: is for hf:// adapters only. Fix: remove it":
        [{"continueFrom": {"uri": "pvc://claim/one", "revision": "main"}}],
    "spec.resumeFrom: needs exactly one of loraJobRef and uri. Fix: set one of them":
        [{"resumeFrom": {}}, {"resumeFrom": ONE | REFERENCE}],
    "spec.resumeFrom: cannot be set together with continueFrom. Fix: remove one of the two":
        [{"resumeFrom": REFERENCE, "continueFrom": ONE}],
    "spec.output.uri: is under tunery-checkpoints/, where files expire. Fix: use another prefix":
        [onto("s3://adapters/tunery-checkpoints/x")],
    "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI":
        [onto(uri, model=MODEL) for uri in ("s3://a/b", "s3://a/b/", "s3://a/b/adapter", "s3://a")],
    "spec.output.uri: is the adapter of continueFrom, which Tunery never changes. Fix: use another URI":
        [{"continueFrom": ONE, "output": ONE | {"overwrite": True}}, onto(f"{ONE['uri']}/", continueFrom=ONE)],
    "spec.resources.gpuResource: is not a resource of NVIDIA GPUs, which the image needs. Fix: use the "
    "resource of NVIDIA GPUs, or remove it":
        [{"resources": {"gpuResource": "amd.com/gpu"}}],
    "spec.scheduling.tolerations[0].key: is required with operator: Equal. Fix: set it, or set operator: "
    "Exists to tolerate every taint":
        [tolerating(), tolerating(value="x")],
    "spec.scheduling.tolerations[0].value: cannot be set with operator: Exists. Fix: remove it, or set "
    "operator: Equal":
        [tolerating(operator="Exists", value="x")],
    "spec.scheduling.tolerations[0].tolerationSeconds: is for effect: NoExecute only. Fix: remove it":
        [tolerating(key="a", tolerationSeconds=60), tolerating(key="a", effect="NoSchedule", tolerationSeconds=0)],
}  # fmt: skip
MERGES: dict[str, list[Spec]] = {
    "spec.adapters[1]: needs exactly one of loraJobRef and uri. Fix: set one of them":
        [{"adapters": [ONE | {"weight": 1}, source | {"weight": 1}]} for source in ({}, ONE | REFERENCE)],
    "spec.adapters: has a weight for some adapters only. Fix: set weight for each adapter, or for none":
        [{"adapters": [ONE | {"weight": 0.5}, REFERENCE]}, {"adapters": [ONE, *[REFERENCE | {"weight": 1}] * 2]}],
    "spec.adapters[0].sha256: needs uri. Fix: remove it, because a LoRAJob's adapter is verified without it":
        [{"adapters": [REFERENCE | {"sha256": DIGEST}]}],
    "spec.adapters[0].revision: is for hf:// adapters only. Fix: remove it":
        [{"adapters": [ONE | {"revision": "main"}]}],
    "spec.density: is not for method: Linear, which keeps every entry. Fix: remove it, or use MagnitudePrune or "
    "DARELinear":
        [{"density": 0.5}],
    "spec.majoritySign: is for method: DARETIES, KnOTSDARETIES, KnOTSTIES or TIES only. Fix: remove it":
        [{"method": "DARELinear", "majoritySign": "Total"}],
    "spec.model: is not needed to combine adapters of LoRAJobs. Fix: remove it, or set into: Model or evaluation":
        [{"adapters": [REFERENCE], "model": MODEL}],
    "spec.model.revision: is for hf:// models only. Fix: remove it":
        [{"into": "Model", "model": MODEL | {"revision": "main"}}],
    "spec.evaluation.dataset.format: is a preference format, which has no loss to evaluate a merge by. Fix: "
    "use Text, PromptCompletion, Alpaca, ShareGPT or Messages":
        [{"evaluation": of_dataset(format="Preference")}],
    "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI":
        [onto("s3://a/b", model=MODEL, into="Model"), onto("s3://a/b/c", model=MODEL, evaluation=of_dataset())],
    "spec.output.uri: is one of the adapters, which Tunery never changes. Fix: use another URI":
        [{"adapters": [{"uri": "s3://adapters/two"}, ONE], "output": ONE | {"overwrite": True}}],
}  # fmt: skip
SWEEPS: dict[str, list[Spec]] = {
    "spec.parameters: names nothing to search. Fix: list fields of the template, or set preset: Guide":
        [{"preset": None}, {"preset": None, "parameters": []}],
    "spec.parameters[0]: needs exactly one of range and choices. Fix: set one of them":
        [searching(), searching(choices=[1e-4], range={"min": 1e-5, "max": 1e-3})],
    "spec.parameters[0].range.max: is not above min. Fix: raise it, or lower min":
        [searching(range={"min": 0.1, "max": top}) for top in (0.1, 0.01)],
    "spec.parameters[0].range.min: is not above 0 with log: true. Fix: raise it, or remove log":
        [searching(range={"min": 0, "max": 0.1, "log": True})],
    "spec.parameters[0].range.step: cannot be set with log. Fix: remove one of the two":
        [searching(range={"min": 1e-3, "max": 1e-1, "log": True, "step": 1e-3})],
    "spec.budget: counts the seconds of GPUs, and template.resources.gpus is 0. Fix: use activeDeadlineSeconds instead":
        [{"template": TEMPLATE | {"resources": {"gpus": 0}}, "budget": {"gpuSeconds": 5}}],
    "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI":
        [onto("s3://a/b", template=TEMPLATE | {"model": MODEL})],
    "spec.output.uri: is the adapter of continueFrom, which Tunery never changes. Fix: use another URI":
        [onto(ONE["uri"], template=TEMPLATE | {"continueFrom": ONE})],
    "spec.template.training.maxSteps: cannot be set together with epochs. Fix: remove one of the two":
        [{"template": TEMPLATE | {"training": {"epochs": 1, "maxSteps": 5}}}],
}  # fmt: skip
SERVERS: dict[str, list[Spec]] = {
    "spec.adapters[0]: needs exactly one of loraJobRef, adapterMergeRef and uri. Fix: set one of them":
        [{"adapters": [{"name": "one"} | source]} for source in ({}, ONE | REFERENCE)],
    "spec.adapters[0].manifestSha256: needs uri. Fix: remove it, because a LoRAJob's adapter is pinned without it":
        [{"adapters": [REFERENCE | {"name": "one", "manifestSha256": DIGEST}]}],
    "spec.adapters[0].name: has two dots in a row. Fix: use another name":
        [{"adapters": [ONE | {"name": "a..b"}]}],
    "spec.adapters: has the name of the base model. Fix: use another name, or another model.servedName":
        [{"model": MODEL | {"servedName": "base"}, "adapters": [ONE | {"name": "base"}]}],
    "spec.adapterSelector: names no label and would select everything. Fix: set matchLabels or matchExpressions":
        [{"adapterSelector": {}}],
    "spec.adapterSelector.matchExpressions[0].values: is required for operator: In and NotIn. Fix: list values":
        [{"adapterSelector": {"matchExpressions": [{"key": "a", "operator": word}]}} for word in ("In", "NotIn")],
    "spec.adapterSelector.matchExpressions[0].values: is for operator: In or NotIn only. Fix: remove it":
        [{"adapterSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}],
    "spec.engine.maxRank: is not a rank of vLLM. Fix: set one of 8, 16, 32, 64, 128, 256, 320, 512":
        [{"engine": {"maxRank": 24}}],
    "spec.engine.maxLoadedAdapters: is less than maxAdaptersInBatch, 8 by default. Fix: raise it":
        [{"engine": {"maxLoadedAdapters": 7}}, {"engine": {"maxAdaptersInBatch": 33}}],
    f"spec.engine.args: has a flag that a manifest cannot set. Fix: use {', '.join(ENGINE_ARGS)}, as --flag or "
    "--flag=value":
        [{"engine": {"args": ["--enforce-eager", flag]}}
         for flag in ("--trust-remote-code", "--middleware=evil.Gate", "--uds=x", "--host=0.0.0.0", "--port=80",
                      "--api-key=k", "--lora-modules=a=b", "--load-format=pt", "--chat-template=x",
                      "--kv-transfer-config={}", "--seedy", "seed=1")],
    "spec.engine.args: has a flag with a path, and the engine may only read its model. Fix: remove the flag":
        [{"engine": {"args": ["--seed=1", "--generation-config=/etc"]}}],
    "spec.rollout: has maxSurge: 0 and maxUnavailable: 0, so that no replica could be replaced. Fix: raise one "
    "of the two":
        [{"rollout": {"maxSurge": 0}}],
    "spec.aliases[0].name: has two dots in a row. Fix: use another name":
        [aliases(**{"a..b": [{"adapter": "one"}]})],
    "spec.aliases[0].targets: all have weight 0, so that no request could be answered. Fix: raise one of the "
    "weights":
        [aliases(a=[{"adapter": "one", "weight": 0}])],
    "spec.aliases: has the name of an adapter. Fix: use another name":
        [aliases(one=[{"adapter": "m"}])],
    "spec.aliases: has an alias as its target. Fix: name the adapter itself":
        [aliases(a=[{"adapter": "b"}], b=[{"adapter": "m"}])],
    "spec.access.clients: needs apiKeysSecretRef. Fix: set it, because clients are identified by their API keys":
        [{"access": {"clients": [{"name": "alice", "models": ["one"]}]}}],
    "spec.access.clients[0].name: is not a valid key of a Secret: . and a leading .. are not allowed. Fix: "
    "use the name of a key":
        [{"access": {"apiKeysSecretRef": {"name": "k"}, "clients": [{"name": "..", "models": ["one"]}]}}],
}  # fmt: skip
BATCHES: dict[str, list[Spec]] = {
    "spec.input.uri: has *, ? or [, and the input is one file. Fix: name one file, and use one object for each":
        [{"input": {"uri": f"s3://data/{name}.jsonl"}} for name in ("*", "a?", "[ab]")],
    "spec.input.uri: is not a file of JSON lines. Fix: name a file that ends with .jsonl, .jsonl.gz or .jsonl.zst":
        [{"input": {"uri": uri}} for uri in ("s3://data/in.csv", "s3://data/")],
    "spec.apiKeySecretRef.key: is not a valid key of a Secret: . and a leading .. are not allowed. Fix: use "
    "the name of a key":
        [{"apiKeySecretRef": {"name": "keys", "key": key}} for key in (".", "..", "..data")],
}  # fmt: skip
BROKEN: Final = {
    Kind.LORAJOB: LORAJOBS,
    Kind.ADAPTERMERGE: MERGES,
    Kind.LORASWEEP: SWEEPS,
    Kind.ADAPTERSERVER: SERVERS,
    Kind.BATCHINFERENCE: BATCHES,
}


def test_every_rule_is_broken_here() -> None:
    known = [error.split(": ", 1) for errors in BROKEN.values() for error in errors]
    for rule in RULES.rules:
        assert any(path.endswith(rule.field) and message == rule.message for path, message in known), rule.message


@pytest.mark.parametrize(
    ("kind", "error"),
    [(kind, error) for kind, errors in BROKEN.items() for error in errors],
    ids=lambda it: it[:60],
)
def test_python_and_the_api_server_report_a_broken_rule(
    api_server: ApiServer, namespace: str, kind: Kind, error: str
) -> None:
    path, message = error.split(": ", 1)
    for spec in BROKEN[kind][error]:
        body = manifest(kind, spec)
        assert python_errors(body) == [error], spec
        told = server_error(api_server, namespace, body)
        assert f"{path}: Invalid value: " in told, spec
        assert message in told, spec
