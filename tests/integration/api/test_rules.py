"""Each combination that is refused, with its message, and what the schema alone refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.fields import PLAIN_PATH
from tunery_api.validation import parse_adaptermerge, parse_lorajob
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

BASE = {"model": {"uri": "s3://models/SmolLM2"}, "dataset": {"uri": "s3://datasets/chat.jsonl"}}
ONE = {"uri": "s3://adapters/one"}

REFUSED_BY_RULES: list[Any] = [
    pytest.param(
        {"training": {"epochs": 1, "maxSteps": 5}},
        "spec.training.maxSteps: cannot be set together with epochs. Fix: remove one of the two",
        id="epochs-and-steps",
    ),
    pytest.param(
        {"training": {"packing": True, "groupByLength": True}},
        "spec.training.groupByLength: has no effect with packing, which makes all rows equally long. Fix: remove it, "
        "or set packing: false",
        id="packing-and-grouping",
    ),
    pytest.param(
        {"method": "PromptTuning", "training": {"packing": True}},
        "spec.training.packing: does not fit prompt and prefix tuning: only the first example of a row would see the "
        "trained tokens. Fix: remove it, or set it to false",
        id="packing-prompt",
    ),
    pytest.param(
        {"method": "PrefixTuning", "training": {"packing": True}},
        "spec.training.packing: does not fit prompt and prefix tuning: only the first example of a row would see the "
        "trained tokens. Fix: remove it, or set it to false",
        id="packing-prefix",
    ),
    pytest.param(
        {"preference": {"beta": 0.2}},
        "spec.preference: is for task: DPO, ORPO or KTO only. Fix: remove it",
        id="preference-sft",
    ),
    pytest.param(
        {"task": "DPO", "preference": {"desirableWeight": 2}},
        "spec.preference.desirableWeight: is for task: KTO only. Fix: remove it",
        id="weight-dpo",
    ),
    pytest.param(
        {"task": "ORPO", "preference": {"lossType": "Sigmoid"}},
        "spec.preference.lossType: is for task: DPO only. Fix: remove it",
        id="loss-type-orpo",
    ),
    pytest.param(
        {"task": "KTO", "preference": {"lossType": "IPO"}},
        "spec.preference.lossType: is for task: DPO only. Fix: remove it",
        id="loss-type-kto",
    ),
    pytest.param(
        {"task": "DPO", "training": {"packing": True}},
        "spec.training.packing: is for task: SFT only. Fix: remove it",
        id="packing-dpo",
    ),
    pytest.param(
        {"task": "KTO", "training": {"loss": "All"}},
        "spec.training.loss: is for task: SFT only. Fix: remove it",
        id="loss-kto",
    ),
    pytest.param(
        {"task": "DPO", "training": {"neftuneNoiseAlpha": 5}},
        "spec.training.neftuneNoiseAlpha: is for task: SFT only. Fix: remove it",
        id="noise-dpo",
    ),
    pytest.param(
        {"task": "ORPO", "preset": "StyleTransfer"},
        "spec.preset: is for task: SFT only. Fix: remove it",
        id="preset-orpo",
    ),
    pytest.param(
        {"task": "DPO", "dataset": BASE["dataset"] | {"format": "Messages"}},
        "spec.dataset.format: does not fit task: DPO. Fix: use Preference, or remove it",
        id="messages-dpo",
    ),
    pytest.param(
        {"task": "ORPO", "dataset": BASE["dataset"] | {"format": "UnpairedPreference"}},
        "spec.dataset.format: does not fit task: ORPO. Fix: use Preference, or remove it",
        id="unpaired-orpo",
    ),
    pytest.param(
        {"task": "KTO", "dataset": BASE["dataset"] | {"format": "PromptCompletion"}},
        "spec.dataset.format: does not fit task: KTO. Fix: use UnpairedPreference or Preference, or remove it",
        id="completions-kto",
    ),
    pytest.param(
        {"dataset": BASE["dataset"] | {"format": "Preference"}},
        "spec.dataset.format: does not fit task: SFT. Fix: use Text, PromptCompletion, Alpaca, ShareGPT or Messages, "
        "or remove it",
        id="pairs-sft",
    ),
    pytest.param(
        {"method": "PrefixTuning", "training": {"gradientCheckpointing": True}},
        "spec.training.gradientCheckpointing: does not fit PrefixTuning, which cannot recompute activations. Fix: "
        "remove it, or use PromptTuning",
        id="checkpointing-prefix",
    ),
    pytest.param(
        {"method": "LoRA", "quantization": {"type": "NF4"}},
        "spec.quantization: does not fit LoRA and DoRA, which train on the unquantized base. Fix: set method: QLoRA "
        "or QDoRA, or remove it",
        id="quantised-lora",
    ),
    pytest.param(
        {"method": "DoRA", "quantization": {}},
        "spec.quantization: does not fit LoRA and DoRA, which train on the unquantized base. Fix: set method: QLoRA "
        "or QDoRA, or remove it",
        id="quantised-dora",
    ),
    pytest.param(
        {"method": "QDoRA", "quantization": {"type": "Int8"}},
        "spec.quantization.type: must have 4 bits for QDoRA. Fix: use NF4 or FP4, or set method: QLoRA",
        id="qdora-int8",
    ),
    pytest.param(
        {"method": "QLoRA", "lora": {"init": "PiSSA"}},
        "spec.lora.init: PiSSA and OLoRA need the unquantized base. Fix: set method: LoRA or DoRA, or use another init",
        id="pissa-quantised",
    ),
    pytest.param(
        {"method": "QDoRA", "lora": {"init": "OLoRA"}},
        "spec.lora.init: PiSSA and OLoRA need the unquantized base. Fix: set method: LoRA or DoRA, or use another init",
        id="olora-quantised",
    ),
    pytest.param(
        {"lora": {"init": "PiSSA"}},
        "spec.lora.init: does not fit every method that Auto may choose. Fix: set the method, or use another init",
        id="pissa-auto",
    ),
    pytest.param(
        {"method": "LoRA", "lora": {"init": "LoftQ"}},
        "spec.lora.init: LoftQ is for method: QLoRA only. Fix: set method: QLoRA, or use another init",
        id="loftq-lora",
    ),
    pytest.param(
        {"method": "QDoRA", "lora": {"init": "LoftQ"}},
        "spec.lora.init: LoftQ is for method: QLoRA only. Fix: set method: QLoRA, or use another init",
        id="loftq-qdora",
    ),
    pytest.param(
        {"method": "LoRA", "lora": {"init": "Gaussian"}, "continueFrom": ONE},
        "spec.lora.init: has no effect with continueFrom, which starts from the weights of its adapter. Fix: remove it",
        id="init-continued",
    ),
    pytest.param(
        {"method": "LoRA", "adalora": {"targetRank": 4}},
        "spec.adalora: is for method: AdaLoRA only. Fix: remove it",
        id="adalora-block",
    ),
    pytest.param(
        {"promptTuning": {"virtualTokens": 8}},
        "spec.promptTuning: is for method: PromptTuning only. Fix: remove it",
        id="prompt-block",
    ),
    pytest.param(
        {"method": "PromptTuning", "prefixTuning": {}},
        "spec.prefixTuning: is for method: PrefixTuning only. Fix: remove it",
        id="prefix-block",
    ),
    pytest.param(
        {"method": "AdaLoRA", "adalora": {"initialRank": 8, "targetRank": 8}},
        "spec.adalora.initialRank: is not above targetRank, 8 by default: AdaLoRA prunes down to it. Fix: raise it, "
        "or remove it",
        id="adalora-ranks",
    ),
    pytest.param(
        {"lora": {"targetModules": ["attention", "up_proj"]}},
        "spec.lora.targetModules: has one of all-linear, attention, mlp, query-value and other names. Fix: set one "
        "such word alone, or module names only",
        id="word-and-name",
    ),
    pytest.param(
        {"dataset": {"uri": "s3://d/x.jsonl", "evaluation": {"split": "test", "fraction": 0.1}}},
        "spec.dataset.evaluation: takes at most one of uri, split and fraction. Fix: keep one of them",
        id="two-evaluations",
    ),
    pytest.param(
        {"dataset": {"uri": "s3://d/x.jsonl", "evaluation": {"fraction": 0.1, "sha256": "0" * 64}}},
        "spec.dataset.evaluation.sha256: needs uri or split. Fix: remove it, because dataset.sha256 covers rows that "
        "are held out of dataset.uri",
        id="digest-of-a-fraction",
    ),
    pytest.param(
        {"dataset": {"uri": "s3://d/x.jsonl", "format": "Messages", "template": "Plain"}},
        "spec.dataset.template: Plain is for prompts with completions, not for format: Messages or ShareGPT. Fix: "
        "remove it",
        id="plain-messages",
    ),
    pytest.param(
        {"evaluation": {"times": 4, "everySteps": 10}},
        "spec.evaluation.everySteps: cannot be set together with times. Fix: remove one of the two",
        id="two-rhythms-of-evaluations",
    ),
    pytest.param(
        {"evaluation": {"generation": {}}, "training": {"loss": "All"}},
        "spec.evaluation.generation: needs questions and answers, which training.loss: All does not tell apart. Fix: "
        "remove one of the two",
        id="generation-of-everything",
    ),
    pytest.param(
        {"evaluation": {"generation": {}}, "task": "DPO"},
        "spec.evaluation.generation: is for task: SFT only. Fix: remove it",
        id="generation-of-preferences",
    ),
    pytest.param(
        {"checkpoint": {"everySteps": 10, "everyMinutes": 5}},
        "spec.checkpoint.everyMinutes: cannot be set together with everySteps. Fix: remove one of the two",
        id="two-rhythms",
    ),
    pytest.param(
        {"continueFrom": {"loraJobRef": {"name": "x"}, "sha256": "0" * 64}},
        "spec.continueFrom.sha256: needs uri. Fix: remove it, because a LoRAJob's adapter is verified without it",
        id="continued-pinned-job",
    ),
    pytest.param(
        {"continueFrom": {"uri": "pvc://claim/one", "revision": "main"}},
        "spec.continueFrom.revision: is for hf:// adapters only. Fix: remove it",
        id="continued-revision-of-pvc",
    ),
    pytest.param(
        {"continueFrom": {}},
        "spec.continueFrom: needs exactly one of loraJobRef and uri. Fix: set one of them",
        id="continue-from-nothing",
    ),
    pytest.param(
        {"continueFrom": ONE, "output": {**ONE, "overwrite": True}},
        "spec.output.uri: is the adapter of continueFrom, which Tunery never changes. Fix: use another URI",
        id="onto-its-beginning",
    ),
    pytest.param(
        {"output": BASE["model"]},
        "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI",
        id="onto-the-model",
    ),
    pytest.param(
        {"resumeFrom": {}},
        "spec.resumeFrom: needs exactly one of loraJobRef and uri. Fix: set one of them",
        id="resume-from-nothing",
    ),
    pytest.param(
        {"resumeFrom": ONE | {"loraJobRef": {"name": "late"}}},
        "spec.resumeFrom: needs exactly one of loraJobRef and uri. Fix: set one of them",
        id="resume-from-two",
    ),
    pytest.param(
        {"resumeFrom": {"loraJobRef": {"name": "late"}}, "continueFrom": ONE},
        "spec.resumeFrom: cannot be set together with continueFrom. Fix: remove one of the two",
        id="two-beginnings",
    ),
    pytest.param(
        {"method": "AdaLoRA", "continueFrom": ONE},
        "spec.continueFrom: cannot be set with AdaLoRA, whose ranks are final once pruned. Fix: train a new adapter",
        id="continue-adalora",
    ),
    pytest.param(
        {"model": {"uri": "s3://models/x", "revision": "main"}},
        "spec.model.revision: is for hf:// models only. Fix: remove it",
        id="revision-s3",
    ),
    pytest.param(
        {"resources": {"gpus": 4, "nodes": 2}, "training": {"gradientAccumulation": 12}},
        "spec.training.gradientAccumulation: is not a multiple of the devices that share the passes: resources.gpus "
        "x resources.nodes, or resources.nodes with gpus: 0. Fix: set such a multiple, or remove it",
        id="passes-of-8-devices",
    ),
    pytest.param(
        {"resources": {"gpus": 0, "nodes": 3}, "training": {"gradientAccumulation": 2}},
        "spec.training.gradientAccumulation: is not a multiple of the devices that share the passes: resources.gpus "
        "x resources.nodes, or resources.nodes with gpus: 0. Fix: set such a multiple, or remove it",
        id="passes-of-3-nodes-on-the-cpu",
    ),
    pytest.param(
        {"resources": {"gpus": 1, "nodes": 3}, "training": {"gradientAccumulation": 1024}},
        "spec.training.gradientAccumulation: is not a multiple of the devices that share the passes: resources.gpus "
        "x resources.nodes, or resources.nodes with gpus: 0. Fix: set such a multiple, or remove it",
        id="passes-at-the-most",
    ),
    pytest.param(
        {"training": {"parallelism": "FSDP"}},
        "spec.training.parallelism: FSDP needs 2 or more GPUs in a pod, which share the base. Fix: raise "
        "resources.gpus, or remove it",
        id="fsdp-of-one",
    ),
    pytest.param(
        {"training": {"parallelism": "FSDP"}, "resources": {"gpus": 0, "nodes": 4}},
        "spec.training.parallelism: FSDP needs 2 or more GPUs in a pod, which share the base. Fix: raise "
        "resources.gpus, or remove it",
        id="fsdp-on-the-cpu",
    ),
    pytest.param(
        {
            "method": "QLoRA",
            "quantization": {"type": "Int8"},
            "training": {"parallelism": "FSDP"},
            "resources": {"gpus": 2},
        },
        "spec.training.parallelism: FSDP cannot share a base in Int8. Fix: set quantization.type: NF4 or FP4, or "
        "remove it",
        id="fsdp-int8",
    ),
    pytest.param(
        {"method": "QLoRA", "lora": {"init": "LoftQ"}, "quantization": {"type": "Int8"}},
        "spec.lora.init: LoftQ needs a base of 4 bits. Fix: set quantization.type: NF4 or FP4, or use another init",
        id="loftq-int8",
    ),
    pytest.param(
        {"method": "PromptTuning", "lora": {"rank": 8}},
        "spec.lora.rank: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it, or with "
        "AdaLoRA set adalora.targetRank",
        id="rank-for-prompt",
    ),
    pytest.param(
        {"method": "AdaLoRA", "lora": {"rank": 8, "alpha": 4}},
        "spec.lora.rank: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it, or with "
        "AdaLoRA set adalora.targetRank",
        id="rank-for-adalora",
    ),
    pytest.param(
        {"method": "IA3", "lora": {"alpha": 8, "targetModules": ["k_proj"]}},
        "spec.lora.alpha: is not a setting of IA3, PromptTuning or PrefixTuning. Fix: remove it",
        id="alpha-for-ia3",
    ),
    pytest.param(
        {"method": "IA3", "lora": {"useRslora": True}},
        "spec.lora.useRslora: is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning. Fix: remove it",
        id="rslora-for-ia3",
    ),
    pytest.param(
        {"method": "IA3", "training": {"scaleLearningRateWithRank": True}},
        "spec.training.scaleLearningRateWithRank: is for methods with a rank only. Fix: set learningRate itself",
        id="scaled-ia3",
    ),
    pytest.param(
        {"resources": {"gpus": 1, "gpuResource": "amd.com/gpu"}},
        "spec.resources.gpuResource: is not a resource of NVIDIA GPUs, which the image needs. Fix: use the "
        "resource of NVIDIA GPUs, or remove it",
        id="foreign-gpu",
    ),
    pytest.param(
        {"resources": {"gpus": 0}, "training": {"precision": "Float16"}},
        "spec.training.precision: Float16 needs a GPU. Fix: use Auto, Float32 or BFloat16",
        id="float16-cpu",
    ),
    pytest.param(
        {"method": "PrefixTuning", "prefixTuning": {"projection": True}, "continueFrom": ONE},
        "spec.prefixTuning.projection: cannot be continued: a published prefix has no projection. Fix: remove it",
        id="continue-projection",
    ),
]
"""By a rule of the table; test_rule_table.py compares the API server with Python."""
REFUSED_BY_SCHEMA: list[Any] = [
    pytest.param(
        {"resources": {"memory": 24}},
        "spec.resources.memory: must be at least 64Mi, is 24, which are bytes; did you mean 24Gi?",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="memory-without-unit",
    ),
    pytest.param(
        {"resources": {"memory": "512"}},
        "spec.resources.memory: must be at least 64Mi, is '512', which are bytes; did you mean 512Mi?",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="mebibytes-without-unit",
    ),
    pytest.param(
        {"resources": {"memory": "24.5Mi"}},
        "spec.resources.memory: must be at least 64Mi, is '24.5Mi'; did you mean 24.5Gi?",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="memory-of-another-unit",
    ),
    pytest.param(
        {"resources": {"memory": "3GB"}},
        "spec.resources.memory: must be a number of bytes above 0, such as 24Gi, is '3GB'",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="memory-of-no-unit",
    ),
    pytest.param(
        {"resources": {"memory": "0.00000000001Ei"}},
        "spec.resources.memory: must be at least 64Mi, is '0.00000000001Ei'; write 24Gi or the like",
        "memory must be at least 64Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="memory-of-a-tiny-number",
    ),
    *(
        pytest.param(
            {"resources": {"cpu": cpu}},
            f'spec.resources.cpu: must be an amount of CPU of at most 1000, such as 4, "0.5" or 500m, is {told}',
            "resources.cpu",
            id=f"cpu-of-{cpu}",
        )
        for cpu, told in (
            ("4Gi", "'4Gi', which is one of memory"),
            ("2000", "'2000'; did you mean 2000m?"),
            (1500, "1500; did you mean 1500m?"),
        )
    ),
    pytest.param(
        {"resources": {"ephemeralStorage": 50}},
        "spec.resources.ephemeralStorage: must be at least 1Mi, is 50, which are bytes; did you mean 50Gi?",
        "ephemeralStorage must be at least 1Mi, a quantity such as 24Gi; without a unit it is bytes",
        id="disk-without-unit",
    ),
    pytest.param(
        {"training": {"epochs": 0}},
        "spec.training.epochs: must be above 0, is 0",
        "epochs in body should be greater than 0",
        id="epochs-0",
    ),
    pytest.param(
        {"training": {"learningRate": 0.0}},
        "spec.training.learningRate: must be above 0, is 0.0",
        "learningRate in body should be greater than 0",
        id="learning-rate-0",
    ),
    pytest.param(
        {"task": "DPO", "preference": {"beta": 0}},
        "spec.preference.beta: must be above 0, is 0",
        "beta in body should be greater than 0",
        id="beta-0",
    ),
    pytest.param(
        {"task": "KTO", "preference": {"desirableWeight": 0}},
        "spec.preference.desirableWeight: must be above 0, is 0",
        "desirableWeight in body should be greater than 0",
        id="desirable-0",
    ),
    pytest.param(
        {"task": "KTO", "preference": {"undesirableWeight": 0}},
        "spec.preference.undesirableWeight: must be above 0, is 0",
        "undesirableWeight in body should be greater than 0",
        id="undesirable-0",
    ),
    pytest.param(
        {"lora": {"dropout": 1}},
        "spec.lora.dropout: must be below 1, is 1",
        "dropout in body should be less than 1",
        id="dropout-1",
    ),
    pytest.param(
        {"evaluation": {"minImprovement": 1.5}},
        "spec.evaluation.minImprovement: must be below 1, is 1.5",
        "minImprovement in body should be less than 1",
        id="improvement-in-percent",
    ),
    pytest.param(
        {"dataset": {"uri": "s3://d/x.jsonl", "evaluation": {"fraction": 0}}},
        "spec.dataset.evaluation.fraction: must be above 0, is 0",
        "fraction in body should be greater than 0",
        id="fraction-0",
    ),
    pytest.param(
        {"output": {"uri": "s3://models//SmolLM2"}},
        'spec.output.uri: must be like s3://bucket/folder, with no empty part, "." or ".." in the path, is '
        "'s3://models//SmolLM2'",
        f"uri {PLAIN_PATH}",
        id="onto-the-model-in-other-words",
    ),
    pytest.param(
        {"resources": {"gpus": 17}},
        "spec.resources.gpus: must be at most 16, is 17",
        "spec.resources.gpus in body should be less than or equal to 16",
        id="17-gpus",
    ),
    pytest.param(
        {"resources": {"nodes": 65}},
        "spec.resources.nodes: must be at most 64, is 65",
        "spec.resources.nodes in body should be less than or equal to 64",
        id="65-nodes",
    ),
    pytest.param(
        {"resources": {"nodes": 0}},
        "spec.resources.nodes: must be at least 1, is 0",
        "spec.resources.nodes in body should be greater than or equal to 1",
        id="no-nodes",
    ),
]
"""By the schema, which words it in its own way."""


MERGES_REFUSED: list[Any] = [
    pytest.param(
        {"adapters": [ONE], "into": "Model", "model": BASE["model"], "output": BASE["model"]},
        "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI",
        id="onto-its-base",
    ),
    pytest.param(
        {"adapters": [{**ONE, "weight": 1}, {"weight": 1}]},
        "spec.adapters[1]: needs exactly one of loraJobRef and uri. Fix: set one of them",
        id="no-adapter",
    ),
    pytest.param(
        {"adapters": [{"uri": "s3://adapters/two"}, ONE], "output": {**ONE, "overwrite": True}},
        "spec.output.uri: is one of the adapters, which Tunery never changes. Fix: use another URI",
        id="onto-its-input",
    ),
    pytest.param(
        {"adapters": [{**ONE, "loraJobRef": {"name": "x"}}]},
        "spec.adapters[0]: needs exactly one of loraJobRef and uri. Fix: set one of them",
        id="two-sources",
    ),
    pytest.param(
        {"adapters": [{**ONE, "weight": 0.5}, {"loraJobRef": {"name": "x"}}]},
        "spec.adapters: has a weight for some adapters only. Fix: set weight for each adapter, or for none",
        id="weights-in-part",
    ),
    pytest.param(
        {"adapters": [ONE], "density": 0.5},
        "spec.density: is not for method: Linear, which keeps every entry. Fix: remove it, or use MagnitudePrune or "
        "DARELinear",
        id="density-linear",
    ),
    pytest.param(
        {"adapters": [ONE], "method": "DARELinear", "majoritySign": "Total"},
        "spec.majoritySign: is for method: DARETIES, KnOTSDARETIES, KnOTSTIES or TIES only. Fix: remove it",
        id="sign",
    ),
    pytest.param(
        {"adapters": [{"loraJobRef": {"name": "x"}}], "model": {"uri": "s3://models/x"}},
        "spec.model: is not needed to combine adapters of LoRAJobs. Fix: remove it, or set into: Model or evaluation",
        id="model-for-adapter",
    ),
    pytest.param(
        {"adapters": [{"loraJobRef": {"name": "x"}, "sha256": "0" * 64}]},
        "spec.adapters[0].sha256: needs uri. Fix: remove it, because a LoRAJob's adapter is verified without it",
        id="pinned-job",
    ),
    pytest.param(
        {"adapters": [{**ONE, "revision": "main"}]},
        "spec.adapters[0].revision: is for hf:// adapters only. Fix: remove it",
        id="revision-of-s3",
    ),
    pytest.param(
        {"adapters": [ONE], "into": "Model", "model": {"uri": "s3://models/x", "revision": "main"}},
        "spec.model.revision: is for hf:// models only. Fix: remove it",
        id="merge-revision",
    ),
    pytest.param(
        {"adapters": [ONE], "evaluation": {"dataset": {"uri": "s3://data/pairs.jsonl", "format": "Preference"}}},
        "spec.evaluation.dataset.format: has no loss to measure a merge by. Fix: use Text, PromptCompletion, Alpaca, "
        "ShareGPT or Messages",
        id="measured-by-pairs",
    ),
]
"""By a rule of the table; test_rule_table.py compares the API server with Python."""
MERGES_REFUSED_BY_SCHEMA: list[Any] = [
    pytest.param(
        {"adapters": [ONE, {"uri": "s3://adapters//two"}], "output": {"uri": "s3://adapters/two"}},
        'spec.adapters[1].uri: must be like s3://bucket/folder, with no empty part, "." or ".." in the path, is '
        "'s3://adapters//two'",
        f"uri {PLAIN_PATH}",
        id="onto-its-input-in-other-words",
    ),
    pytest.param(
        {"adapters": [ONE], "resources": {"gpus": 2}},
        "spec.resources.gpus: must be at most 1, is 2",
        "spec.resources.gpus in body should be less than or equal to 1",
        id="merge-on-2-gpus",
    ),
    pytest.param(
        {"adapters": [ONE], "resources": {"nodes": 2}},
        "spec.resources.nodes: unknown field; the fields here are gpus, gpuResource, cpu, memory, ephemeralStorage",
        'unknown field "spec.resources.nodes"',
        id="merge-on-2-nodes",
    ),
    pytest.param(
        {"adapters": [{**ONE, "weight": -1000.5}]},
        "spec.adapters[0].weight: must be at least -1000, is -1000.5",
        "weight in body should be greater than or equal to -1000",
        id="weight-too-large",
    ),
    pytest.param(
        {"adapters": [ONE], "evaluation": {"dataset": {"uri": "s3://d/x.jsonl"}, "minImprovement": 5}},
        "spec.evaluation.minImprovement: must be below 1, is 5",
        "minImprovement in body should be less than 1",
        id="merge-improvement-in-percent",
    ),
    pytest.param(
        {"adapters": [ONE], "method": "TIES", "density": 0},
        "spec.density: must be above 0, is 0",
        "density in body should be greater than 0",
        id="density-0",
    ),
]
"""By the schema, which words it in its own way."""

ACCEPTED: list[Any] = [
    pytest.param({"method": method, "quantization": {"type": kind}}, id=f"{method}-{kind}")
    for method in ("Auto", "QLoRA", "AdaLoRA", "IA3", "PromptTuning", "PrefixTuning")
    for kind in ("NF4", "FP4", "Int8")
] + [
    pytest.param({"resources": {"memory": "0.0625Gi", "ephemeralStorage": 1048576}}, id="the-smallest-sizes"),
    pytest.param({"resources": {"memory": 67108864, "ephemeralStorage": "1024Ki"}}, id="the-smallest-sizes-otherwise"),
    pytest.param({"method": "QDoRA", "quantization": {"type": "FP4"}}, id="QDoRA-FP4"),
    pytest.param({"method": "DoRA", "lora": {"init": "PiSSA"}}, id="DoRA-PiSSA"),
    pytest.param({"method": "QLoRA", "lora": {"init": "LoftQ"}}, id="QLoRA-LoftQ"),
    pytest.param({"method": "QDoRA", "lora": {"init": "EVA"}}, id="QDoRA-EVA"),
    pytest.param({"lora": {"init": "Gaussian"}}, id="Auto-Gaussian"),
    pytest.param({"resources": {"gpus": 0}, "training": {"gradientAccumulation": 3}}, id="passes-of-one"),
    pytest.param({"resources": {"nodes": 2}, "training": {"gradientAccumulation": 6}}, id="passes-of-2-nodes"),
    pytest.param(
        {"resources": {"gpus": 16, "nodes": 64}, "training": {"gradientAccumulation": 1024, "parallelism": "FSDP"}},
        id="passes-of-1024-gpus",
    ),
    pytest.param({"resources": {"gpus": 0, "nodes": 4}, "training": {"parallelism": "DDP"}}, id="DDP-on-the-cpu"),
    pytest.param({"method": "AdaLoRA", "lora": {"alpha": 8, "targetModules": ["attention"]}}, id="AdaLoRA-alpha"),
    pytest.param({"method": "AdaLoRA", "adalora": {"targetRank": 2}}, id="AdaLoRA-default-initial"),
    pytest.param({"lora": {"targetModules": ["q_proj", "v_proj"]}}, id="names"),
    pytest.param({"method": "PrefixTuning", "training": {"packing": False, "gradientCheckpointing": False}}, id="off"),
    pytest.param({"method": "LoRA", "continueFrom": {"loraJobRef": {"name": "first"}}}, id="continued"),
    pytest.param({"method": "LoRA", "continueFrom": ONE | {"sha256": "0123456789abcdef" * 4}}, id="continued-pinned"),
    pytest.param({"continueFrom": {"uri": "hf://owner/name/folder", "revision": "v1"}}, id="continued-hub"),
    pytest.param({"continueFrom": {"uri": "pvc://claim/some/folder"}}, id="continued-claim"),
    pytest.param({"method": "AdaLoRA", "resumeFrom": {"loraJobRef": {"name": "late"}}}, id="resumed"),
    pytest.param({"resumeFrom": {"uri": "s3://b/tunery-checkpoints/ns/x-1/step-000200"}}, id="resumed-by-uri"),
    pytest.param({"model": {"uri": "hf://a/b", "revision": "main"}}, id="revision-hf"),
    pytest.param({"task": "DPO", "preference": {"beta": 0.05, "lossType": "IPO"}}, id="DPO"),
    pytest.param(
        {"task": "DPO", "training": {"packing": False, "loss": "Completion", "neftuneNoiseAlpha": 0}}, id="DPO-said"
    ),
    pytest.param({"task": "ORPO", "preference": {}, "dataset": BASE["dataset"] | {"format": "Preference"}}, id="ORPO"),
    pytest.param({"task": "KTO", "preference": {"desirableWeight": 1.3, "undesirableWeight": 2}}, id="KTO"),
    pytest.param({"task": "KTO", "dataset": BASE["dataset"] | {"format": "UnpairedPreference"}}, id="KTO-unpaired"),
    pytest.param({"task": "KTO", "dataset": BASE["dataset"] | {"format": "Preference"}}, id="KTO-pairs"),
    pytest.param({"task": "DPO", "dataset": BASE["dataset"] | {"template": "Plain"}}, id="DPO-plain"),
]

MERGES_ACCEPTED: list[dict[str, Any]] = [
    {"adapters": [{"uri": "hf://owner/name", "revision": "v1", "sha256": "ab" * 32}, {"uri": "pvc://claim"}]},
    {"adapters": [ONE, {"uri": "hf://owner/name/some/folder"}], "model": {"uri": "hf://owner/base"}},
]


def lorajob_errors(blocks: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_lorajob({"spec": BASE | blocks})
    return [str(error) for error in caught.value.errors]


@pytest.mark.parametrize(("blocks", "message"), REFUSED_BY_RULES)
def test_a_refused_combination_says_what_to_do(blocks: dict[str, Any], message: str) -> None:
    assert lorajob_errors(blocks) == [message]


@pytest.mark.parametrize(("blocks", "message", "server"), REFUSED_BY_SCHEMA)
def test_a_refused_value_says_what_to_do(blocks: dict[str, Any], message: str, server: str) -> None:
    assert lorajob_errors(blocks) == [message]


PLACES = [
    ("s3://models/SmolLM2", True),
    ("s3://models/SmolLM2/", True),
    ("s3://models/SmolLM2/adapter", True),
    ("s3://models", True),
    ("s3://models/SmolLM2-adapter", False),
    ("s3://models/Smol", False),
    ("s3://other/SmolLM2", False),
    ("s3://models/smollm2", False),
]


@pytest.mark.parametrize(("uri", "refused"), PLACES)
def test_nothing_is_published_onto_into_or_around_a_model(uri: str, refused: bool) -> None:
    """Whoever trains on that model next would find files that are none of its own."""
    text = "overlaps the base model, which Tunery never changes. Fix: use another URI"
    said = [("spec.output.uri", text)] if refused else []
    measured = {"dataset": {"uri": "s3://data/rows.jsonl"}}
    for parse, spec in (
        (parse_lorajob, BASE),
        (parse_adaptermerge, {"adapters": [ONE], "into": "Model", "model": BASE["model"]}),
        (parse_adaptermerge, {"adapters": [ONE], "model": BASE["model"], "evaluation": measured}),
        (parse_lorasweep, {"template": BASE, "preset": "Guide"}),
    ):
        assert refusals(parse, spec | {"output": {"uri": uri}}) == said
        assert refusals(parse, spec) == []


def refusals(parse: Callable[[dict[str, Any]], object], spec: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        parse({"metadata": {"name": "support"}, "spec": spec})
    except InvalidSpec as refused:
        return [(error.path, error.message) for error in refused.errors]
    return []


@pytest.mark.parametrize("blocks", ACCEPTED)
def test_what_works_is_accepted(blocks: dict[str, Any]) -> None:
    assert parse_lorajob({"spec": BASE | blocks})


@pytest.mark.parametrize(
    ("spec", "message"),
    [*MERGES_REFUSED, *(pytest.param(*each.values[:2], id=each.id) for each in MERGES_REFUSED_BY_SCHEMA)],
)
def test_a_refused_merge_says_what_to_do(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_adaptermerge({"spec": spec})
    assert [str(error) for error in caught.value.errors] == [message]


def test_a_measured_merge_may_name_the_model_that_it_is_measured_on() -> None:
    measured = {"dataset": {"uri": "s3://data/rows.jsonl"}}
    spec = parse_adaptermerge({"spec": {"adapters": [ONE], "model": {"uri": "s3://m/x"}, "evaluation": measured}})
    assert spec.evaluation is not None
    assert (spec.evaluation.min_improvement, spec.evaluation.max_length) == (0.0, 2048)


@pytest.mark.parametrize(
    ("spec", "density"),
    [
        ({"method": "TIES"}, 0.2),
        ({"method": "KnOTSTIES"}, 0.2),
        ({"method": "KnOTSDARETIES"}, 0.5),
        ({"method": "DARELinear"}, 0.5),
        ({"method": "TIES", "density": 0.7}, 0.7),
    ],
)
def test_the_density_that_is_left_open(spec: dict[str, Any], density: float) -> None:
    assert parse_adaptermerge({"spec": {"adapters": [ONE], **spec}}).effective_density() == density


@pytest.mark.parametrize(
    ("method", "count", "weights"),
    [
        ("Linear", 1, [1.0]),
        ("Linear", 4, [0.25] * 4),
        ("DARELinear", 2, [0.5] * 2),
        ("MagnitudePrune", 2, [0.5] * 2),
        ("TIES", 2, [1.0] * 2),
        ("DARETIES", 2, [1.0] * 2),
        ("KnOTSTIES", 2, [1.0] * 2),
        ("KnOTSDARETIES", 2, [1.0] * 2),
    ],
)
def test_what_an_open_weight_means(method: str, count: int, weights: list[float]) -> None:
    spec = parse_adaptermerge({"spec": {"adapters": [ONE] * count, "method": method}})
    assert spec.effective_weights() == weights


def test_weights_that_are_given_stay() -> None:
    adapters = [{**ONE, "weight": 0.7}, {**ONE, "weight": -1}]
    assert parse_adaptermerge({"spec": {"adapters": adapters}}).effective_weights() == [0.7, -1]


def test_a_merge_is_measured_on_every_row() -> None:
    """What a LoRAJob holds out is no field here."""
    measured = {"dataset": {"uri": "s3://data/rows.jsonl", "evaluation": {"fraction": 0.1}}}
    with pytest.raises(InvalidSpec, match=r"spec\.evaluation\.dataset\.evaluation: unknown field"):
        parse_adaptermerge({"spec": {"adapters": [ONE], "evaluation": measured}})


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "rules")
    yield "rules"
    api_server.delete("namespace", "rules", wait=False)


def refusal(kubectl: ApiServer, namespace: str, kind: str, spec: dict[str, Any]) -> str:
    manifest = {"apiVersion": "tunery.dev/v1alpha1", "kind": kind, "metadata": {"name": "refused"}, "spec": spec}
    with pytest.raises(KubectlError) as caught:
        kubectl.apply(manifest, namespace=namespace)
    return str(caught.value)


@pytest.mark.parametrize(("blocks", "message", "server"), REFUSED_BY_SCHEMA)
def test_the_api_server_refuses_it_too(
    api_server: ApiServer, namespace: str, blocks: dict[str, Any], message: str, server: str
) -> None:
    assert server in refusal(api_server, namespace, "LoRAJob", BASE | blocks)


@pytest.mark.parametrize(("spec", "message", "server"), MERGES_REFUSED_BY_SCHEMA)
def test_the_api_server_refuses_the_merge_too(
    api_server: ApiServer, namespace: str, spec: dict[str, Any], message: str, server: str
) -> None:
    assert server in refusal(api_server, namespace, "AdapterMerge", spec)


def test_the_api_server_accepts_what_works(api_server: ApiServer, namespace: str) -> None:
    for number, case in enumerate(ACCEPTED):
        manifest = {
            "apiVersion": "tunery.dev/v1alpha1",
            "kind": "LoRAJob",
            "metadata": {"name": f"accepted-{number}"},
            "spec": BASE | case.values[0],
        }
        api_server.apply(manifest, namespace=namespace)
    for number, merge in enumerate(MERGES_ACCEPTED):
        manifest = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "spec": merge}
        api_server.apply(manifest | {"metadata": {"name": f"accepted-{number}"}}, namespace=namespace)


@pytest.mark.parametrize("spec", MERGES_ACCEPTED)
def test_adapters_may_lie_where_models_do(spec: dict[str, Any]) -> None:
    assert parse_adaptermerge({"spec": spec})


ELSEWHERE_REFUSED = [
    ({"uri": "file:///adapters/one"}, "works without a cluster only; use s3:// or pvc:// here"),
    ({"uri": "configmap://adapters/one"}, "must be hf://owner/name, s3://bucket/prefix or pvc://claim/path, is 'conf"),
    ({**ONE, "sha256": "AB" * 32}, "must look like ^[0-9a-f]{64}$, is 'ABAB"),
    ({**ONE, "sha256": "ab"}, "must have 64 characters"),
    ({"uri": "hf://owner/name", "revision": "-f"}, "must look like"),
]


@pytest.mark.parametrize(("adapter", "message"), ELSEWHERE_REFUSED)
def test_an_adapter_that_is_misspelt_is_refused(
    api_server: ApiServer, namespace: str, adapter: dict[str, str], message: str
) -> None:
    spec = {"adapters": [adapter]}
    with pytest.raises(InvalidSpec, match=re.escape(message)):
        parse_adaptermerge({"spec": spec})
    assert "spec.adapters[0]." in refusal(api_server, namespace, "AdapterMerge", spec)
