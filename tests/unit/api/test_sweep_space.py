"""The space of a LoRASweep: what may be searched, and values that come back from a trial's spec as they went in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery_api.errors import InvalidSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec, TrialTemplate
from tunery_api.methods import PRESETS
from tunery_api.validation import parse_lorajob
from tunery_search.dimensions import Categorical, Dimension, Numeric, is_active
from tunery_search.fields import FIELD_TYPES, NOT_SEARCHABLE, FieldType, path_problem
from tunery_search.space import Space, final_spec, initial_points, read_values, space_of, trial_spec
from tunery_search.validation import parse_lorasweep

TEMPLATE: dict[str, Any] = {"model": {"uri": "s3://models/m"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
EVERY_TYPE: list[dict[str, Any]] = [
    {"path": "method", "choices": ["LoRA", "DoRA", "IA3"]},
    {"path": "lora.rank", "range": {"min": 4, "max": 64, "log": True}, "when": {"path": "method", "in": ["LoRA"]}},
    {"path": "lora.alpha", "range": {"min": 8, "max": 63, "step": 8}, "when": {"path": "method", "in": ["LoRA"]}},
    {"path": "lora.dropout", "range": {"min": 1e-9, "max": 1e-1, "log": True},
     "when": {"path": "method", "in": ["LoRA", "DoRA"]}},
    {"path": "lora.targetModules", "choices": ["attention", " q_proj, v_proj", "mlp"]},
    {"path": "lora.useRslora", "choices": ["true", "false"], "when": {"path": "method", "in": ["DoRA"]}},
    {"path": "training.learningRate", "range": {"min": 1e-10, "max": 12345678, "log": True}},
    {"path": "training.weightDecay", "range": {"min": 0, "max": 0.2, "step": 0.03}},
    {"path": "training.warmup", "choices": ["0", "1e-1", "5e1"]},
    {"path": "training.scheduler", "choices": ["Cosine", "Linear"]},
    {"path": "training.batchSize", "choices": ["1", "016"]},
]  # fmt: skip


def spec_of(parameters: list[dict[str, Any]], template: dict[str, Any] | None = None, **more: Any) -> LoRASweepSpec:
    return parse_lorasweep({"spec": {"template": {**TEMPLATE, **(template or {})}, "parameters": parameters, **more}})


def guide(template: dict[str, Any] | None = None, **more: Any) -> LoRASweepSpec:
    return spec_of(more.pop("parameters", []), template, preset="Guide", **more)


def values_of(dimension: Dimension) -> st.SearchStrategy[str]:
    if isinstance(dimension, Categorical):
        return st.sampled_from(dimension.choices)
    return st.floats(dimension.low, dimension.high).map(dimension.text)


@st.composite
def points(draw: st.DrawFn, space: Space) -> dict[str, str]:
    values: dict[str, str] = {}
    for dimension in sorted(space.dimensions, key=lambda item: item.when is not None):
        if is_active(dimension, values):
            values[dimension.path] = draw(values_of(dimension))
    return values


SWEEP = spec_of(EVERY_TYPE)
SPACE = space_of(SWEEP)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(points(SPACE))
def test_values_of_every_type_come_back_from_the_spec_of_their_trial(values: dict[str, str]) -> None:
    trial = trial_spec(SWEEP, values)
    assert parse_lorajob({"spec": trial}).to_json_dict() == trial
    assert read_values(SPACE, trial) == values
    assert trial_spec(SWEEP, read_values(SPACE, trial)) == trial
    assert SPACE.point(values) == values


def test_a_trial_is_the_template_with_each_value_as_its_field_takes_it() -> None:
    spec = spec_of(
        EVERY_TYPE, {"training": {"seed": 7}, "retries": 1}, output={"uri": "s3://adapters/a"}, sampler={"type": "TPE"}
    )
    values = {
        "method": "LoRA", "lora.rank": "8", "lora.alpha": "16", "lora.dropout": "0.05",
        "lora.targetModules": "q_proj,v_proj", "training.learningRate": "0.00001", "training.weightDecay": "0.03",
        "training.warmup": "50", "training.scheduler": "Linear", "training.batchSize": "16",
    }  # fmt: skip
    assert trial_spec(spec, values) == {
        **TEMPLATE,
        "retries": 1,
        "method": "LoRA",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.05, "targetModules": ["q_proj", "v_proj"]},
        "training": {
            "seed": 7, "learningRate": 0.00001, "weightDecay": 0.03, "warmup": 50, "scheduler": "Linear",
            "batchSize": 16,
        },
    }  # fmt: skip
    assert spec.template.to_json_dict()["training"] == {"seed": 7}


def test_the_space_is_sorted_and_holds_what_the_manifest_means() -> None:
    backwards = space_of(spec_of([EVERY_TYPE[0], *reversed(EVERY_TYPE[1:])]))
    assert backwards == SPACE
    assert [item.path for item in SPACE.dimensions] == sorted(str(item["path"]) for item in EVERY_TYPE)
    by_path = {item.path: item for item in SPACE.dimensions}
    alpha, decay, modules = by_path["lora.alpha"], by_path["training.weightDecay"], by_path["lora.targetModules"]
    assert isinstance(alpha, Numeric)
    assert (alpha.low, alpha.high, alpha.step, alpha.integer) == (8, 56, 8, True)
    assert isinstance(decay, Numeric)
    assert (decay.high, decay.step, decay.integer) == (0.18, 0.03, False)
    assert [decay.text(value) for value in (0.0, 0.1, 0.2)] == ["0", "0.09", "0.18"]
    assert isinstance(modules, Categorical)
    assert modules.choices == ("attention", "q_proj,v_proj", "mlp")


POINT = {"lora.rank": "4", "method": "LoRA", "training.learningRate": "0.0002", "training.weightDecay": "0.05"}
SMALL = space_of(
    spec_of(
        [
            {"path": "method", "choices": ["LoRA", "IA3"]},
            {"path": "lora.rank", "choices": ["4", "8"], "when": {"path": "method", "in": ["LoRA"]}},
            {"path": "training.learningRate", "range": {"min": 1e-4, "max": 1e-3, "log": True}},
            {"path": "training.weightDecay", "range": {"min": 0, "max": 0.1, "step": 0.05}},
        ]
    )
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param({}, POINT, id="a-point"),
        pytest.param({"lora.rank": "04", "training.learningRate": "2e-4"}, POINT, id="written-differently"),
        pytest.param({"training.learningRate": "0.002"}, None, id="above"),
        pytest.param({"training.weightDecay": "0.06"}, None, id="beside-a-step"),
        pytest.param({"training.weightDecay": "x"}, None, id="no-number"),
        pytest.param({"lora.rank": "16"}, None, id="no-choice"),
        pytest.param({"lora.rank": None}, None, id="one-lacks"),
        pytest.param({"method": "IA3"}, None, id="one-too-many"),
        pytest.param({"method": "IA3", "lora.rank": None}, "itself", id="another-branch"),
        pytest.param({"lora.alpha": "16"}, None, id="unknown"),
        pytest.param({"model.uri": "s3://m"}, None, id="no-parameter-at-all"),
    ],
)
def test_rows_of_another_sweep_are_taken_where_they_are_points(change: dict[str, Any], found: Any) -> None:
    values = {path: text for path, text in {**POINT, **change}.items() if text is not None}
    assert SMALL.point(values) == (values if found == "itself" else found)
    assert SMALL.holds(values) is (found is not None)


def fields_of(model: type[Any], prefix: str = "") -> Iterator[str]:
    for info in model.model_fields.values():
        yield f"{prefix}{info.alias}"


def test_each_field_of_a_lorajob_may_be_searched_or_says_why_not() -> None:
    blocks = {path.partition(".")[0] for path in FIELD_TYPES if "." in path}
    for path in (*fields_of(LoRAJobSpec), *fields_of(TrialTemplate)):
        assert path in FIELD_TYPES or path in blocks or path in NOT_SEARCHABLE, path
    for block in blocks:
        name = next(key for key, info in TrialTemplate.model_fields.items() if info.alias == block)
        annotation = TrialTemplate.model_fields[name].annotation
        inner = annotation if isinstance(annotation, type) else annotation.__args__[0]  # type: ignore[union-attr]
        for path in fields_of(inner, f"{block}."):
            assert (path in FIELD_TYPES) != (path in NOT_SEARCHABLE), path


@pytest.mark.parametrize("path", NOT_SEARCHABLE)
def test_what_is_refused_says_what_to_do(path: str) -> None:
    problem = path_problem(f"{path}.uri")
    assert problem
    assert problem.startswith(f"{path} cannot be searched: ")
    assert any(
        advice in problem for advice in ("set it in the template", "remove it", "use spec.", "use one sweep for each")
    )


SAMPLES = {
    FieldType.INTEGER: "16", FieldType.NUMBER: "0.5", FieldType.BOOLEAN: "false",
    FieldType.LIST: "q_proj,v_proj",
}  # fmt: skip
NAMES = {"method": "DoRA", "preset": "StyleTransfer", "lora.init": "EVA", "quantization.type": "FP4"} | {
    "quantization.computeType": "Float16", "training.scheduler": "Linear", "training.optimizer": "AdamW8bit",
    "training.precision": "Float32",
}  # fmt: skip
BESIDE = {"adalora": "AdaLoRA", "promptTuning": "PromptTuning", "prefixTuning": "PrefixTuning", "quantization": "QLoRA"}


@pytest.mark.parametrize("path", FIELD_TYPES)
def test_each_field_of_the_allow_list_can_be_searched(path: str) -> None:
    text = NAMES.get(path) or SAMPLES[FIELD_TYPES[path]]
    method = BESIDE.get(path.partition(".")[0])
    spec = spec_of([{"path": path, "choices": [text]}], {"method": method} if method else {})
    assert read_values(space_of(spec), trial_spec(spec, {path: text})) == {path: text}


def test_the_guides_space_is_the_guides() -> None:
    space = {item.path: item for item in space_of(guide()).dimensions}
    assert space == {
        "lora.rank": Categorical("lora.rank", ("4", "8", "16", "32", "64")),
        "lora.alpha": Categorical("lora.alpha", ("8", "16", "32", "64")),
        "lora.dropout": Numeric("lora.dropout", 0.0, 0.2),
        "lora.targetModules": Categorical("lora.targetModules", ("query-value", "attention", "all-linear")),
        "training.learningRate": Numeric("training.learningRate", 1e-5, 5e-4, log=True),
        "training.warmup": Numeric("training.warmup", 0.0, 0.2),
        "training.weightDecay": Numeric("training.weightDecay", 0.0, 0.1),
    }


def test_its_tuned_configurations_come_first_and_then_what_the_manifest_asks_for() -> None:
    spec = guide(initial=[{"lora.rank": "64", "training.learningRate": "1e-5"}])
    first = initial_points(spec, space_of(spec))
    assert [start.origin for start in first] == [*PRESETS, "Initial"]
    assert first[-1].values == {"lora.rank": "64", "training.learningRate": "0.00001"}
    for start, preset in zip(first, PRESETS.values(), strict=False):
        job = parse_lorajob({"spec": trial_spec(spec, start.values)})
        assert (job.lora.rank, job.lora.alpha) == (preset.rank, preset.alpha)
        assert job.lora.dropout is not None
        assert math.isclose(job.lora.dropout, preset.dropout)
        assert math.isclose(float(job.training.learning_rate or 0), preset.learning_rate)
        assert math.isclose(float(job.training.warmup or 0), preset.warmup)
        assert tuple(job.lora.target_modules or ()) == preset.target_modules
        assert job.training.epochs is None
        assert space_of(spec).holds(start.values), "nothing of a configuration is left to chance"


def test_what_the_template_sets_is_not_searched_and_parameters_replace_path_by_path() -> None:
    spec = guide(
        {"lora": {"rank": 16}, "training": {"warmup": 0.1}},
        parameters=[
            {"path": "lora.alpha", "choices": ["16", "32"]},
            {"path": "lora.init", "choices": ["EVA", "Gaussian"]},
        ],
    )
    space = space_of(spec)
    assert [item.path for item in space.dimensions] == [
        "lora.alpha", "lora.dropout", "lora.init", "lora.targetModules", "training.learningRate",
        "training.weightDecay",
    ]  # fmt: skip
    assert [start.origin for start in initial_points(spec, space)] == ["InstructionTuning", "StyleTransfer"], (
        "64 is no choice"
    )


@pytest.mark.parametrize(
    ("template", "low", "high"),
    [
        ({"method": "AdaLoRA"}, 1e-4, 1e-2),
        ({"method": "IA3"}, 3e-4, 3e-2),
        ({"method": "PromptTuning"}, 3e-3, 3e-1),
        ({"method": "PrefixTuning"}, 1e-3, 1e-1),
        ({"method": "PrefixTuning", "prefixTuning": {"projection": True}}, 1e-4, 1e-2),
    ],
)
def test_another_method_is_searched_around_its_own_rate_without_lora(
    template: dict[str, Any], low: float, high: float
) -> None:
    spec = guide(template)
    rate, *others = space_of(spec).dimensions
    assert rate == Numeric("training.learningRate", low, high, log=True)
    assert [item.path for item in others] == ["training.warmup", "training.weightDecay"]
    assert initial_points(spec, space_of(spec)) == ()


def test_where_methods_are_searched_the_guides_fields_of_lora_go_with_loras() -> None:
    spec = guide(parameters=[{"path": "method", "choices": ["IA3", "LoRA", "DoRA"]}])
    space = space_of(spec)
    for item in space.dimensions:
        within = item.when is not None and (item.when.path, item.when.values) == ("method", ("LoRA", "DoRA"))
        assert within is (item.path.startswith("lora.") or item.path == "training.learningRate"), item.path
    assert [start.values["method"] for start in initial_points(spec, space)] == ["LoRA"] * 3
    assert space.holds({"method": "IA3", "training.warmup": "0.1", "training.weightDecay": "0"})


def test_the_final_job_is_the_best_trial_with_the_rest_on_top() -> None:
    spec = guide({"training": {"epochs": 1, "batchSize": 4}}, final={"training": {"epochs": 3}})
    best = initial_points(spec, space_of(spec))[0].values
    trial, last = trial_spec(spec, best), final_spec(spec, best)
    assert last["training"] == {**trial["training"], "epochs": 3}
    assert last["lora"] == trial["lora"]


def test_a_choice_that_no_trial_could_have_is_rejected() -> None:
    with pytest.raises(InvalidSpec, match="at most 1024"):
        spec_of([{"path": "lora.rank", "choices": ["4", "2000"]}])
