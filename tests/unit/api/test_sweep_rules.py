"""Validation of a LoRASweep: every error with its field and its fix, and that the fix works."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.kubectl_yaml import documents_of
from tunery_api.names import API_VERSION
from tunery_search.fields import FIELD_TYPES
from tunery_search.validation import parse_lorasweep

TEMPLATE: dict[str, Any] = {"model": {"uri": "s3://models/m"}, "dataset": {"uri": "s3://data/rows.jsonl"}}


def refusals(spec: dict[str, Any], local: bool = False, **others: Any) -> tuple[FieldError, ...]:
    try:
        parse_lorasweep({"apiVersion": API_VERSION, "metadata": {"name": "s"}, "spec": spec, **others}, local=local)
    except InvalidSpec as refused:
        return refused.errors
    return ()


def errors(text: str, local: bool = False) -> list[str]:
    spec = next(documents_of(f"spec:\n  {text}"))["spec"]
    return [str(error) for error in refusals(spec | {"template": TEMPLATE | spec.get("template", {})}, local)]


ACCEPTED: list[str] = [
    "preset: Guide",
    "{preset: Guide, maxTrials: 1, parallelTrials: 2}",
    "{preset: Guide, template: {method: IA3}}",
    "{preset: Guide, parameters: [{path: method, choices: [LoRA, DoRA, IA3]}]}",
    "{parameters: [{path: lora.rank, choices: ['4', '8']}], sampler: {type: Grid}}",
    "{parameters: [{path: lora.dropout, range: {min: 0, max: 0.2, step: 0.05}}], sampler: {type: Grid}}",
    "{parameters: [{path: lora.dropout, range: {min: 0.2, max: 0.3, step: 0.1}},{path: training.weightDecay, range: "
    "{min: 0.1, max: 0.3, step: 0.2}},{path: training.maxGradNorm, range: {min: 0.7, max: 1.7, step: 0.0001}}], "
    "sampler: {type: Grid}}",
    "{preset: Guide, template: {evaluation: {everySteps: 20}, training: {maxSteps: 320}}}",
    "{preset: Guide, pruner: {rungs: [0.07]}, template: {evaluation: {everySteps: 7}, training: {maxSteps: 100}}}",
    "{preset: Guide, pruner: {type: None}, template: {evaluation: {times: 1}}}",
    "{preset: Guide, final: {training: {epochs: 3}}, template: {training: {epochs: 1}}}",
    """
    parameters:
    - {path: method, choices: [LoRA, IA3, AdaLoRA]}
    - {path: lora.rank, choices: ["4", "8"], when: {path: method, in: [LoRA]}}
    - {path: adalora.targetRank, choices: ["4", "8"], when: {path: method, in: [AdaLoRA]}}
    - {path: training.learningRate, range: {min: 1e-5, max: 1e-2, log: true}}
    - {path: lora.targetModules, choices: ["q_proj, v_proj", attention]}
    initial: [{training.learningRate: "2e-4", method: LoRA, lora.rank: "8"}, {method: IA3}]
    """,
]  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_a_sweep_is_accepted(text: str) -> None:
    assert errors(text) == []


REJECTED: dict[str, list[str]] = {
    "{preset: Guide, template: {method: IA3, training: {learningRate: 0.001, warmup: 0, weightDecay: 0}}}":
        ["spec.preset: the template sets every parameter of the guide; remove some of them there"],
    "{preset: Guide, template: {task: DPO}}":
        ["spec.preset: the guide's space is for task: SFT, not DPO; remove preset, and list parameters"],
    "parameters: [{path: lora.targetModules, choices: [[q_proj, v_proj]]}]":
        ['spec.parameters[0].choices[0]: must be a string: write it in quotes, "q_proj,v_proj"'],
    "{preset: Guide, initial: [{lora: {rank: 16}}]}":
        ['spec.initial[0].lora: must be a string: write it in quotes, after the whole path: lora.rank: "16"'],
    "parameters: [{path: training.learningRate, range: {min: 1, max: 1e99}}, {path: lora.rank, choices: [8, '1e1']}]":
        [
            "spec.parameters[0].range.max: training.learningRate must be below 1e32, is '1e+99'",
            "spec.parameters[1].choices[1]: lora.rank must be a whole number of at least 0, in digits alone, is '1e1'",
        ],
    "{preset: Guide, template: {suspend: true}}":
        ["spec.template.suspend: unknown field; did you mean spec.suspend?"],
    "parameters: [{path: learning_rate, choices: ['1']}, {path: lora, choices: ['1']}, {path: spec.lora.alpha, "
    "choices: ['1']}, {path: training.seed, choices: ['1']}]":
        [
            "spec.parameters[0].path: learning_rate isn't a searchable field; did you mean "
            "training.learningRate?",
            "spec.parameters[1].path: lora is a block; write one of its fields: lora.rank, lora.alpha, lora.dropout, "
            "lora.targetModules, lora.useRslora, lora.init",
            "spec.parameters[2].path: spec.lora.alpha must be relative to the template: write lora.alpha",
            "spec.parameters[3].path: training.seed cannot be searched: it draws the held-out rows: losses on others "
            "cannot be compared; set it in the template",
        ],
    "{parameters: [{path: lora.alpha, choices: ['8']}], template: {lora: {alpha: 16}}}":
        ["spec.parameters[0].path: the template also sets lora.alpha; remove it there"],
    """
    parameters:
    - {path: lora.init, range: {min: 0, max: 1}}
    - {path: lora.dropout, range: {min: 0, max: 2}}
    - {path: lora.rank, range: {min: 4.5, max: 8}}
    - {path: training.maxGradNorm, range: {min: 0, max: 1, step: 2}}
    - {path: training.warmup, range: {min: 0, max: 10}}
    - {path: training.neftuneNoiseAlpha, range: {min: 1e-15, max: 10}}
    """:
        [
            "spec.parameters[0].range: lora.init isn't a number; set choices instead of range",
            "spec.parameters[1].range.max: lora.dropout must be below 1, is 2",
            "spec.parameters[2].range.min: lora.rank must be a whole number of at least 0, is '4.5'",
            "spec.parameters[3].range.step: must be at most max - min: 1",
            "spec.parameters[4].range.max: warmup below 1 is a share of the steps, and from 1 a number of steps; use "
            "one of them",
            "spec.parameters[5].range.min: training.neftuneNoiseAlpha must have at most 10 digits after the point, is"
            " '0.000000000000001'",
        ],
    "parameters: [{path: lora.rank, choices: ['4', '04', x]}, {path: lora.useRslora, choices: ['yes']}, {path: "
    "training.learningRate, choices: ['1e-4', '0.0001']}, {path: lora.targetModules, choices: ['a,,b']}]":
        [
            "spec.parameters[0].choices[1]: is choices[0] again; remove it",
            "spec.parameters[0].choices[2]: lora.rank must be a whole number of at least 0, is 'x'",
            "spec.parameters[1].choices[0]: lora.useRslora must be true or false, is 'yes'",
            "spec.parameters[2].choices[1]: is choices[0] again; remove it",
            "spec.parameters[3].choices[0]: lora.targetModules must be names joined by commas, is 'a,,b'",
        ],
    """
    parameters:
    - {path: lora.dropout, range: {min: 0, max: 0.2}}
    - {path: lora.rank, choices: ['4'], when: {path: method, in: [LoRA]}}
    - {path: lora.alpha, choices: ['4'], when: {path: lora.dropout, in: ['0.1']}}
    - {path: method, choices: [LoRA, DoRA]}
    - {path: lora.init, choices: [EVA], when: {path: method, in: [DoRA, Dora]}}
    """:
        [
            "spec.parameters[1].when.path: method isn't an earlier parameter; list it before this parameter",
            "spec.parameters[2].when.path: lora.dropout has a range; a condition needs a parameter with choices",
            "spec.parameters[4].when.in[1]: method must be LoRA or DoRA, is 'Dora'; did you mean DoRA?",
        ],
    """
    parameters:
    - {path: training.learningRate, range: {min: 1e-4, max: 1e-3, log: true}}
    - {path: method, choices: [LoRA, IA3]}
    - {path: lora.rank, choices: ["4", "8"], when: {path: method, in: [LoRA]}}
    - {path: lora.dropout, range: {min: 0, max: 0.2, step: 0.05}, when: {path: method, in: [LoRA]}}
    initial:
    - {lora.rank: "4"}
    - {method: IA3, lora.rank: "4"}
    - {method: LoRA, lora.rank: "16", training.learningRate: "2e-2", lora.dropout: "0.07"}
    - {lora.rnk: "4"}
    - {}
    """:
        [
            "spec.initial[0].lora.rank: exists only in some trials; also set method is LoRA",
            "spec.initial[1].lora.rank: exists only if method is LoRA; remove it",
            "spec.initial[2].lora.rank: must be 4 or 8, is '16'",
            "spec.initial[2].training.learningRate: must be from 0.0001 to 0.001, is '2e-2'",
            "spec.initial[2].lora.dropout: must be 0 plus a multiple of 0.05, is '0.07'",
            "spec.initial[3].lora.rnk: isn't a parameter of this sweep; did you mean lora.rank?",
            "spec.initial[4]: is empty; remove it",
        ],
    """
    parameters:
    - {path: training.gradientAccumulation, range: {min: 8, max: 32, step: 4}}
    - {path: training.batchSize, choices: [1, 2]}
    template: {resources: {gpus: 4, nodes: 2}}
    """:
        [
            "spec.parameters[0].range: must have a step that is a multiple of the 8 devices of a trial, which share "
            "the passes: set step: 8, or list choices",
        ],
    "{parameters: [{path: training.gradientAccumulation, choices: [8, 12, 16]}], template: {resources: {gpus: 4, "
    "nodes: 2}}}":
        [
            "spec.parameters[0].choices[1]: training.gradientAccumulation is not a multiple of the devices that share"
            " the passes: resources.gpus x resources.nodes, or resources.nodes with gpus: 0. Fix: set such a "
            "multiple, or remove it",
        ],
    "{preset: Guide, pruner: {rungs: [0.5, 0.2]}, template: {evaluation: {times: 4}}}":
        [
            "spec.pruner.rungs[1]: must be above the previous rung, 0.5",
            "spec.template.evaluation.times: must be at least 5, so that a trial is evaluated before the rung at 0.2; "
            "raise it, or set spec.pruner.type: None",
        ],
    "{preset: Guide, pruner: {rungs: [0.05, 0.5]}, template: {evaluation: {times: 16}}}":
        [
            "spec.pruner.rungs[0]: must be at least 0.0625, as a trial is evaluated at most 16 times; raise it, or"
            " set spec.pruner.type: None",
        ],
    "{preset: Guide, template: {evaluation: {everySteps: 100}, training: {maxSteps: 100}}}":
        [
            "spec.template.evaluation.everySteps: must be at most 25, so that a trial of 100 steps is evaluated "
            "before the rung at 0.25; lower it, or set spec.pruner.type: None",
        ],
    "{preset: Guide, template: {evaluation: {everySteps: 10}, training: {maxSteps: 320}}}":
        [
            "spec.template.evaluation.everySteps: must be at least 20: the status has only the last 16 evaluations, "
            "and a trial with more can't be compared; raise it, or set spec.pruner.type: None",
        ],
    "{parameters: [{path: training.maxSteps, choices: ['40', '100']}], template: {evaluation: {everySteps: 50}}}":
        [
            "spec.template.evaluation.everySteps: must be at most 10, so that a trial of 40 steps is evaluated "
            "before the rung at 0.25; lower it, or set spec.pruner.type: None",
        ],
    "{parameters: [{path: training.maxSteps, range: {min: 40, max: 400}}], template: {evaluation: {everySteps: 10}}}":
        [
            "spec.template.evaluation.everySteps: must be at most 10 for trials of 40 steps, to evaluate them before "
            "the rung at 0.25, and at least 25 for trials of 400 steps, to stay within 16 evaluations; set "
            "evaluation.times instead, or set spec.pruner.type: None",
        ],
    "{preset: Guide, pruner: {rungs: [0.05]}, template: {evaluation: {everySteps: 5}, training: {maxSteps: 100}}}":
        [
            "spec.pruner.rungs[0]: must be at least 0.07 for trials of 100 steps, as the status has only the last 16 "
            "evaluations; raise it, or set spec.pruner.type: None",
        ],
    "parameters: [{path: lora.targetModules, choices: ['a,b', 'b, a', 'a,a', 'b']}]":
        [
            "spec.parameters[0].choices[1]: is choices[0] again; remove it",
            "spec.parameters[0].choices[2]: lora.targetModules must have each name once, is 'a,a'",
        ],
    "{sampler: {type: Grid}, parameters: [{path: lora.rank, range: {min: 4, max: 8}},{path: training.learningRate, "
    "range: {min: 0.0001, max: 0.01}},{path: lora.alpha, range: {min: 4, max: 128}}, {path: lora.dropout, range: "
    "{min: 0, max: 2}},{path: training.warmup, range: {min: 1, max: 3}}]}":
        [
            "spec.parameters[0].range.step: is required by sampler type Grid, such as 1",
            "spec.parameters[1].range.step: is required by sampler type Grid, such as 0.001",
            "spec.parameters[2].range.step: is required by sampler type Grid, such as 10",
            "spec.parameters[3].range.max: lora.dropout must be below 1, is 2",
            "spec.parameters[3].range.step: is required by sampler type Grid",
            "spec.parameters[4].range.step: is required by sampler type Grid, such as 1",
        ],
    "{preset: Guide, sampler: {type: Grid}, parameters: [{path: training.epochs, range: {min: 1, max: 2}},{path: "
    "training.learningRate, range: {min: 1e-4, max: 1e-3, log: true}}]}":
        [
            "spec.parameters[0].range.step: is required by sampler type Grid, such as 0.1",
            "spec.parameters[1].range: is logarithmic, and sampler type Grid needs equal steps; replace it with "
            "choices:"
            " choices: [0.0001, 0.0003162, 0.001]",
            "spec.sampler.type: Grid needs steps, but the guide's lora.dropout, training.warmup, "
            "training.weightDecay have none; use TPE or Random, or list them as parameters with choices",
        ],
    "{preset: Guide, final: {training: {learningRate: 1e-4, maxLength: 64}}}":
        [
            "spec.final.training.learningRate: is a searched parameter, and the best trial's value is used; remove it",
            "spec.final.training.maxLength: other tokens would be measured, and such losses cannot be compared; "
            "remove it",
        ],
    "{preset: Guide, final: {training: {epochs: 0}}}":
        ["spec.final.training.epochs: must be above 0, is 0"],
    "{preset: Guide, final: {training: {epochs: 3}}, template: {training: {maxSteps: 100}}}":
        ["spec.final: training.maxSteps cannot be set together with epochs. Fix: remove one of the two"],
    "{preset: Guide, final: {training: {}}}":
        ["spec.final.training: is empty, so the final trial would repeat the best one; remove final"],
    "parameters: [{path: lora.rank, choices: ['4', '8']}, {path: lora.alpha, choices: ['8', '16', '5000', x]}]":
        [
            "spec.parameters[1].choices[2]: lora.alpha must be at most 4096, is 5000",
            "spec.parameters[1].choices[3]: lora.alpha must be a whole number of at least 0, is 'x'",
        ],
    "parameters: [{path: lora.alpha, choices: ['5000', '8']}, {path: lora.rank, choices: ['4', '8']}]":
        ["spec.parameters[0].choices[0]: lora.alpha must be at most 4096, is 5000"],
    "parameters: [{path: lora.alpha, choices: ['5000']}]":
        ["spec.parameters[0].choices[0]: lora.alpha must be at most 4096, is 5000"],
    "parameters: [{path: lora.dropout, range: {min: 0, max: 1}}, {path: lora.rank, range: {min: 0, max: 8}}]":
        [
            "spec.parameters[0].range.max: lora.dropout must be below 1, is 1",
            "spec.parameters[1].range.min: lora.rank must be at least 1, is 0",
        ],
    "parameters: [{path: lora.rank, choices: ['4', '8']}, {path: training.scheduler, choices: [cosine, Linear]}]":
        [
            "spec.parameters[1].choices[0]: training.scheduler must be 'Cosine', 'Linear', 'Constant', 'Polynomial' "
            "or 'InverseSqrt', is 'cosine'; did you mean Cosine?",
        ],
    "{parameters: [{path: method, choices: [LoRA, IA3]}], template: {lora: {rank: 4}}}":
        [
            "spec.parameters[0].choices[1]: lora.rank is not a setting of AdaLoRA, IA3, PromptTuning or PrefixTuning."
            " Fix: remove it, or with AdaLoRA set adalora.targetRank",
        ],
    "{parameters: [{path: training.epochs, choices: ['1', '2']}], template: {training: {maxSteps: 5}}}":
        ["spec.parameters[0].path: training.maxSteps cannot be set together with epochs. Fix: remove one of the two"],
    "{parameters: [{path: lora.rnk, choices: ['1']}], template: {quantization: {}, method: DoRA}}":
        [
            "spec.parameters[0].path: lora.rnk isn't a searchable field; did you mean lora.rank?",
            "spec.template.quantization: does not fit LoRA and DoRA, which train on the unquantized base. Fix: set "
            "method: QLoRA or QDoRA, or remove it",
        ],
}  # fmt: skip
"""Manifests without the model and the dataset of their template, with every error."""


@pytest.mark.parametrize("text", REJECTED)
def test_every_error_is_reported_with_its_field(text: str) -> None:
    assert errors(text) == REJECTED[text]


@pytest.mark.parametrize(
    "text",
    [
        "parameters: [{path: method, choices: [LoRA, IA3]}, {path: lora.rank, choices: ['4', '8']}]",
        "parameters: [{path: method, choices: [AdaLoRA]}, {path: adalora.targetRank, choices: ['4']}]",
        "parameters: [{path: method, choices: [LoRA, QLoRA]}, {path: lora.init, choices: [Default, LoftQ]}]",
        "{parameters: [{path: training.packing, choices: [false, true]}], final: {training: {groupByLength: true}}}",
    ],
)
def test_values_that_are_wrong_only_together_are_accepted(text: str) -> None:
    assert errors(text) == []


FIELDS = st.sampled_from([*FIELD_TYPES, "lora", "training.seed", "typo"])
NAMES = st.sampled_from(["LoRA", "IA3", "AdaLoRA", "EVA", "LoftQ", "Linear", "true", "false", "q_proj,v_proj"])
TEXTS = NAMES | st.sampled_from(["4", "16", "0.1", "1e-4", "5000"])
RANGES = st.fixed_dictionaries({"min": TEXTS, "max": TEXTS}, optional={"log": st.booleans(), "step": TEXTS})
CHOICES = st.lists(TEXTS, min_size=1, max_size=4)
PARAMETERS = st.fixed_dictionaries(
    {"path": FIELDS},
    optional={
        "choices": CHOICES, "range": RANGES, "when": st.fixed_dictionaries({"path": FIELDS, "in": CHOICES}),
    },
)  # fmt: skip
SPECS = st.fixed_dictionaries(
    {"template": st.just(TEMPLATE), "parameters": st.lists(PARAMETERS, max_size=5)},
    optional={
        "preset": st.just("Guide"),
        "initial": st.lists(st.dictionaries(FIELDS, TEXTS, max_size=3), max_size=2),
        "sampler": st.just({"type": "Grid"}),
        "final": st.just({"training": {"epochs": 2}}),
    },
)


@settings(deadline=None, max_examples=300)
@given(SPECS)
def test_whatever_is_asked_for_is_taken_or_refused_by_its_fields(spec: dict[str, Any]) -> None:
    told = refusals(spec)
    assert all(error.path.startswith("spec.") for error in told)
    assert len(set(told)) == len(told), "nothing is told twice"


def test_a_condition_on_a_wrong_parameter_is_no_second_error() -> None:
    told = errors(
        "parameters: [{path: lora.init, choices: [EVA], range: {min: 1, max: 2}},"
        "{path: lora.rank, choices: ['4'], when: {path: lora.init, in: [EVA]}}]"
    )
    assert told == ["spec.parameters[0]: needs exactly one of range and choices. Fix: set one of them"]


def test_what_a_misspelt_choice_was_meant_to_be_is_no_second_error() -> None:
    told = errors(
        "{parameters: [{path: method, choices: [LoRA, Dora]},"
        "{path: lora.useRslora, choices: ['true', 'false'], when: {path: method, in: [DoRA]}}], "
        "initial: [{method: DoRA, lora.useRslora: 'true'}]}"
    )
    assert len(told) == 1
    assert told[0].startswith("spec.parameters[0].choices[1]: method must be ")
    assert told[0].endswith("is 'Dora'; did you mean DoRA?")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("training.lr", "; did you mean training.learningRate?"),
        ("lr", "; did you mean training.learningRate?"),
        ("training.wd", "; did you mean training.weightDecay?"),
        ("lora.r", "; did you mean lora.rank?"),
        ("training.warmupp", "; did you mean training.warmup?"),
        ("trainig.warmupp", "; did you mean training.warmup?"),
        ("lora.zzz", "; fields of lora: rank, alpha, dropout, targetModules, useRslora, init"),
    ],
)
def test_a_path_that_is_none_is_told_with_what_was_meant(path: str, hint: str) -> None:
    told = errors(f"parameters: [{{path: {path}, choices: ['1']}}]")
    assert told == [f"spec.parameters[0].path: {path} isn't a searchable field{hint}"]


def test_the_choices_in_place_of_a_range_by_factors_mend_it() -> None:
    ranged = "{path: lora.rank, range: {min: 4, max: 64, log: true}}"
    (told,) = errors(f"{{sampler: {{type: Grid}}, parameters: [{ranged}]}}")
    choices = told.partition("replace it with choices: ")[2]
    assert choices == "choices: [4, 16, 64]"
    assert errors(f"{{sampler: {{type: Grid}}, parameters: [{{path: lora.rank, {choices}}}]}}") == []


def test_with_the_guide_no_condition_leads_round_in_a_circle() -> None:
    told = errors(
        "{preset: Guide, parameters: [{path: method, choices: [LoRA, IA3], when: {path: lora.rank, in: ['8']}}]}"
    )
    assert told == [
        "spec.parameters[0].when: isn't allowed with preset: Guide, whose parameters depend on the method; remove it"
    ]


@pytest.mark.parametrize("metadata", [{"name": "c"}, {}, "odd"], ids=str)
def test_a_sweep_of_another_name_may_start_from_any(metadata: Any) -> None:
    spec = {"template": TEMPLATE, "preset": "Guide", "warmStartFrom": [{"name": "a"}, {"name": "b"}]}
    assert refusals(spec, metadata=metadata) == ()


def test_without_a_cluster_files_may_be_named() -> None:
    files = "{preset: Guide, output: {uri: 'file://out'}, template: {model: {uri: 'file://m'}}}"
    assert errors(files, local=True) == []


def test_a_choice_is_any_scalar_and_the_same_in_quotes() -> None:
    texts = """
        parameters:
        - {path: lora.rank, choices: ["4", "8"]}
        - {path: training.packing, choices: ["true", "false"]}
        - {path: lora.dropout, range: {min: 0, max: 0.2, step: 0.05}, when: {path: lora.rank, in: ["8"]}}
        initial: [{lora.rank: "8", training.packing: "true", lora.dropout: "0.05"}]
        pruner: {rungs: [0.25, 0.5], keep: 0.4}
    """
    one, other = (
        parse_lorasweep({"spec": {"template": TEMPLATE, **next(documents_of(text))}})
        for text in (texts, texts.replace('"', ""))
    )
    assert one.to_json_dict() == other.to_json_dict()


@pytest.mark.parametrize("first", [1, 9_000], ids=["sound", "hundreds-of-errors"])
def test_the_largest_spec_is_judged_in_less_than_half_a_second(first: int) -> None:
    paths = (
        "lora.rank", "lora.alpha", "adalora.initialRank", "training.batchSize", "training.gradientAccumulation",
        "training.maxSteps", "promptTuning.virtualTokens", "prefixTuning.virtualTokens", "training.learningRate",
        "training.weightDecay", "training.maxGradNorm", "training.neftuneNoiseAlpha", "training.warmup",
        "lora.dropout", "adalora.warmupSteps", "adalora.finalSteps",
    )  # fmt: skip
    shares = {"training.warmup", "lora.dropout"}
    listed = [
        {"path": path, "choices": [f"0.{i:04}" if path in shares else str(i) for i in range(first, first + 64)]}
        for path in paths
    ]
    began = time.process_time()
    with pytest.raises(InvalidSpec):
        parse_lorasweep({"spec": {"template": TEMPLATE, "parameters": listed}})
    assert time.process_time() - began < 0.5
