"""What a manifest resolves to: the guide's numbers, who wins, and where each value came from."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.methods import (
    PRESETS,
    RANK_GUIDELINES,
    ComputeType,
    LoraInit,
    LoraSpec,
    Method,
    PreferenceLoss,
    Preset,
    QuantizationType,
)
from tunery_api.reasons import FailureReason
from tunery_api.status import ResolvedValue
from tunery_api.training import Precision
from tunery_api.validation import parse_lorajob
from tunery_common.errors import TuneryError
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.presets import guideline_for, rank_reason
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, ModelFacts, PreferenceSettings, RunSettings

from kit.training import spec_of

GIB = 2**30
SEVEN_B = ModelFacts("LlamaForCausalLM", 7_000_000_000, 32, 4096, 32_000, 4096, tied_embeddings=False, packable=True)
BLOOM = ModelFacts("BloomForCausalLM", 560_000_000, 24, 1024, 250_880, None, tied_embeddings=True, packable=False)
GPU = DeviceFacts(DeviceKind.CUDA, 80 * GIB, bfloat16=True)


def resolved(
    blocks: dict[str, Any], facts: ModelFacts = SEVEN_B, rows: int = 5000, gpu: DeviceFacts = GPU
) -> RunSettings:
    spec = spec_of(blocks)
    if "precision" not in blocks.get("training", {}):
        data = spec.model_dump(by_alias=True, exclude_unset=True)
        del data["training"]["precision"]
        spec = type(spec).model_validate(data)
    return resolve(spec, facts, gpu, method_choices(spec, rows, gpu)[0])


def sources(plan: RunSettings) -> dict[str, str]:
    return {value.name: value.source for value in plan.values}


@pytest.mark.parametrize(
    ("preset", "numbers"),
    [
        ("InstructionTuning", (16, 32, 0.05, ("attention",), 2e-4, 3, 0.1)),
        ("DomainAdaptation", (32, 64, 0.1, ("all-linear",), 1e-4, 5, 0.05)),
        ("StyleTransfer", (8, 16, 0.0, ("query-value",), 3e-4, 2, 0.1)),
    ],
)
def test_a_preset_gives_the_guides_numbers(preset: str, numbers: tuple[Any, ...]) -> None:
    plan = resolved({"method": "LoRA", "preset": preset})
    adapter, training = plan.adapter, plan.training
    assert numbers == (
        adapter.rank,
        adapter.alpha,
        adapter.dropout,
        adapter.target_modules,
        training.learning_rate,
        training.epochs,
        training.warmup,
    )
    fields = ("lora.rank", "lora.alpha", "lora.dropout", "lora.targetModules", "training.learningRate")
    assert {sources(plan)[field] for field in (*fields, "training.epochs", "training.warmup")} == {"Preset"}


@pytest.mark.parametrize("preset", ["InstructionTuning", "DomainAdaptation", "StyleTransfer", None])
def test_the_manifest_always_wins(preset: str | None) -> None:
    said = {
        "method": "DoRA",
        "lora": {"rank": 4, "alpha": 9, "dropout": 0.2, "targetModules": ["q_proj"]},
        "training": {"learningRate": 5.0012345e-5, "epochs": 0.5, "warmup": 7},
    }
    plan = resolved(said | ({"preset": preset} if preset else {}))
    adapter, training = plan.adapter, plan.training
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.target_modules) == (4, 9, 0.2, ("q_proj",))
    assert (training.learning_rate, training.epochs, training.warmup) == (5.0012345e-5, 0.5, 7)
    shown = {value.name: value.value for value in plan.values}
    assert shown["training.learningRate"] == "0.000050012345", "to the last digit"
    fields = ("method", "lora.rank", "lora.alpha", "lora.dropout", "lora.targetModules", "training.learningRate")
    assert {sources(plan)[field] for field in (*fields, "training.epochs", "training.warmup")} == {"Manifest"}


def test_max_steps_take_the_place_of_a_presets_epochs() -> None:
    plan = resolved({"method": "LoRA", "preset": "DomainAdaptation", "training": {"maxSteps": 40}})
    assert (plan.training.max_steps, plan.training.epochs) == (40, None)
    assert "training.epochs" not in sources(plan)


def test_what_nobody_says_has_its_default() -> None:
    plan = resolved({"method": "LoRA"})
    assert (plan.adapter.rank, plan.adapter.alpha, plan.adapter.dropout) == (16, 32, 0.05)
    assert (plan.adapter.target_modules, plan.adapter.init) == (("all-linear",), LoraInit.DEFAULT)
    assert (plan.training.learning_rate, plan.training.epochs, plan.training.warmup) == (2e-4, 1.0, 0.1)
    assert (plan.training.packing, plan.training.gradient_checkpointing) == (True, True)
    assert plan.training.precision is Precision.BFLOAT16
    assert (plan.quantization, plan.adalora, plan.prompt) == (None, None, None)
    told = sources(plan)
    assert told["lora.rank"] == told["training.scheduler"] == "Default"
    of_rules = ("lora.alpha", "training.precision", "training.packing", "training.batchSize", "training.epochs")
    assert {told[name] for name in of_rules} == {"Rule"}


def test_alpha_follows_a_rank_of_the_manifest_through_a_preset() -> None:
    plan = resolved({"method": "LoRA", "preset": "InstructionTuning", "lora": {"rank": 64}})
    assert plan.adapter.alpha == 128
    assert sources(plan)["lora.alpha"] == "Rule"


@pytest.mark.parametrize("rank", [4, 8, 16, 64])
def test_the_learning_rate_scales_with_the_square_root_of_the_rank(rank: int) -> None:
    plan = resolved({"method": "LoRA", "lora": {"rank": rank}, "training": {"scaleLearningRateWithRank": True}})
    assert plan.training.learning_rate == pytest.approx(2e-4 * math.sqrt(8 / rank))
    assert sources(plan)["training.learningRate, scaled with rank"] == "Rule"


@pytest.mark.parametrize(
    ("rank", "use"),
    [(1, "style transfer"), (8, "task-specific"), (16, "instruction"), (48, "domain adaptation"), (512, "complex")],
)
def test_rank_guidelines(rank: int, use: str) -> None:
    assert use in guideline_for(rank).use


def test_the_rank_guidelines_stand_in_the_api_and_in_the_docs() -> None:
    explained = LoraSpec.model_fields["rank"].description or ""
    told = (Path(__file__).resolve().parents[4] / "docs" / "methods.md").read_text()
    for line in RANK_GUIDELINES:
        assert f"{line.rank}: {line.name} ({line.use})" in explained
        assert f"| {line.rank} | {line.name} | {line.use} |" in told


HEAVY = "rank 64 is heavy adaptation (complex domain shift, approaching full fine-tuning)"


@pytest.mark.parametrize(
    ("preset", "rank", "reason"),
    [
        pytest.param(None, None, "moderate adaptation: general instruction tuning", id="default"),
        pytest.param(None, 4, "minimal adaptation: style transfer, minor behaviour changes", id="no-preset"),
        pytest.param("StyleTransfer", None, None, id="the-presets-own"),
        pytest.param("StyleTransfer", 2, None, id="half-of-the-lowest"),
        pytest.param("StyleTransfer", 16, None, id="twice-the-highest"),
        pytest.param(
            "StyleTransfer",
            1,
            "rank 1 is minimal adaptation (style transfer, minor behaviour changes); "
            "the guide suggests 4 to 8 for style transfer",
            id="below-half",
        ),
        pytest.param(
            "StyleTransfer",
            17,
            "rank 17 is moderate adaptation (general instruction tuning); the guide suggests 4 to 8 for style transfer",
            id="above-twice",
        ),
        pytest.param("InstructionTuning", 8, None, id="instructions-half"),
        pytest.param(
            "InstructionTuning", 64, f"{HEAVY}; the guide suggests 16 for general instruction tuning", id="instructions"
        ),
        pytest.param("DomainAdaptation", 64, None, id="domain-twice"),
    ],
)
def test_the_reason_of_a_rank_says_what_it_is_for(preset: str | None, rank: int | None, reason: str | None) -> None:
    blocks = {"method": "QLoRA", "lora": {"rank": rank} if rank else {}} | ({"preset": preset} if preset else {})
    assert {value.name: value.reason for value in resolved(blocks).values if value.reason} == (
        {"lora.rank": reason} if reason else {}
    )


@pytest.mark.parametrize("method", ["AdaLoRA", "IA3", "PromptTuning", "PrefixTuning"])
def test_no_other_methods_value_has_a_reason(method: str) -> None:
    assert [value.reason for value in resolved({"method": method}).values if value.reason] == []


@pytest.mark.parametrize("preset", [None, *Preset])
def test_every_reason_of_a_rank_fits_into_the_status(preset: Preset | None) -> None:
    for rank in range(1, 1025):
        reason = rank_reason(rank, PRESETS[preset] if preset else None)
        assert ResolvedValue(name="lora.rank", value=str(rank), source="Manifest", reason=reason).reason == reason


@pytest.mark.parametrize(
    ("gpu", "rows", "blocks", "methods", "why"),
    [
        pytest.param(80, 5000, {}, "LoRA QLoRA", "5000 rows are enough", id="many-rows"),
        pytest.param(80, 99, {}, "PromptTuning QLoRA", "99 rows are fewer than 100", id="few-rows"),
        pytest.param(80, 100, {}, "LoRA QLoRA", "100 rows", id="just-enough-rows"),
        pytest.param(80, 99, {"continueFrom": {"uri": "s3://a/b"}}, "LoRA QLoRA", "fits unquantised", id="continued"),
        pytest.param(None, 5000, {}, "QLoRA", "memory is not known", id="unknown-gpu"),
        pytest.param(None, 99, {}, "PromptTuning", "fewer than 100", id="unknown-gpu-few-rows"),
        pytest.param(80, 5000, {"quantization": {"type": "Int8"}}, "QLoRA", "asks for a quant", id="quantised"),
        pytest.param(80, 5000, {"method": "DoRA"}, "DoRA", "manifest asks", id="named"),
    ],
)
def test_auto_prefers_by_the_guides_tree(
    gpu: int | None, rows: int, blocks: dict[str, Any], methods: str, why: str
) -> None:
    choices = method_choices(spec_of(blocks), rows, DeviceFacts(DeviceKind.CUDA, gpu and gpu * GIB, bfloat16=True))
    assert [choice.method.value for choice in choices] == methods.split()
    assert why in choices[0].reason


@pytest.mark.parametrize(
    ("blocks", "field"),
    [
        ({"training": {"packing": True}}, "spec.training.packing"),
        ({"lora": {"rank": 8}}, "spec.lora.rank"),
        ({"lora": {"targetModules": ["q_proj"], "init": "EVA"}}, "spec.lora.init, spec.lora.targetModules"),
        ({"training": {"scaleLearningRateWithRank": True}}, "spec.training.scaleLearningRateWithRank"),
    ],
)
def test_auto_takes_no_method_that_would_be_refused_by_name(blocks: dict[str, Any], field: str) -> None:
    """What the manifest sets is used, or the method is another."""
    device = DeviceFacts(DeviceKind.CUDA, 80 * GIB, bfloat16=True)
    choices = method_choices(spec_of(blocks), 60, device)
    assert [choice.method.value for choice in choices] == ["LoRA", "QLoRA"]
    assert choices[0].reason.endswith(f"60 rows are fewer than 100, but prompt tuning does not go with {field}.")
    given = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}, "method": "PromptTuning"}
    with pytest.raises(InvalidSpec) as refused:
        parse_lorajob({"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "spec": given | blocks})
    assert {error.path for error in refused.value.errors} == set(field.split(", "))


@pytest.mark.parametrize("preset", Preset)
def test_a_preset_asks_for_lora_as_its_rank_would(preset: Preset) -> None:
    device = DeviceFacts(DeviceKind.CUDA, 80 * GIB, bfloat16=True)
    choices = method_choices(spec_of({"preset": preset.value}), 60, device)
    assert [choice.method.value for choice in choices] == ["LoRA", "QLoRA"]
    why = f"60 rows are fewer than 100, but prompt tuning has no rank, which preset {preset.value} sets."
    assert choices[0].reason == f"The model fits unquantised; {why}"
    plan = resolved({"preset": preset.value}, rows=60)
    assert (plan.adapter.rank, sources(plan)["lora.rank"]) == (PRESETS[preset].rank, "Preset")


def test_auto_on_a_cpu_without_a_limit_is_lora() -> None:
    assert resolved({}, gpu=DeviceFacts(DeviceKind.CPU, None, bfloat16=False)).method is Method.LORA


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param(DeviceFacts(DeviceKind.CUDA, None, bfloat16=True), Precision.BFLOAT16, id="new-gpu"),
        pytest.param(DeviceFacts(DeviceKind.CUDA, None, bfloat16=False), Precision.FLOAT16, id="old-gpu"),
        pytest.param(DeviceFacts(DeviceKind.CPU, None, bfloat16=True), Precision.BFLOAT16, id="new-cpu"),
        pytest.param(DeviceFacts(DeviceKind.CPU, None, bfloat16=False), Precision.FLOAT32, id="old-cpu"),
    ],
)
def test_precision_follows_the_device(device: DeviceFacts, precision: Precision) -> None:
    plan = resolved({"method": "QLoRA"}, gpu=device)
    assert plan.training.precision is precision
    assert plan.quantization is not None
    assert plan.quantization.compute_type == ComputeType(precision.value)


def test_quantisation_is_implied_by_the_method() -> None:
    plan = resolved({"method": "QDoRA"})
    assert plan.quantization is not None
    assert (plan.quantization.type, plan.quantization.double_quant) == (QuantizationType.NF4, True)


@pytest.mark.parametrize(
    ("method", "rate"),
    [("IA3", 3e-3), ("PromptTuning", 3e-2), ("PrefixTuning", 1e-2), ("AdaLoRA", 1e-3), ("QLoRA", 2e-4)],
)
def test_each_method_has_a_rate_that_moves_it(method: str, rate: float) -> None:
    assert resolved({"method": method, "preset": "InstructionTuning"}).training.learning_rate == rate


@pytest.mark.parametrize(
    ("blocks", "settings", "values"),
    [
        ({"task": "DPO"}, PreferenceSettings(0.1, PreferenceLoss.SIGMOID), {"beta": "0.1", "lossType": "Sigmoid"}),
        (
            {"task": "DPO", "preference": {"beta": 0.3, "lossType": "IPO"}},
            PreferenceSettings(0.3, PreferenceLoss.IPO),
            {"beta": "0.3", "lossType": "IPO"},
        ),
        ({"task": "ORPO"}, PreferenceSettings(0.1), {"beta": "0.1"}),
        (
            {"task": "KTO", "preference": {"desirableWeight": 1.5}},
            PreferenceSettings(0.1, desirable_weight=1.5),
            {"beta": "0.1", "desirableWeight": "1.5", "undesirableWeight": "1"},
        ),
        ({}, None, {}),
    ],
)
def test_each_task_has_its_settings(
    blocks: dict[str, Any], settings: PreferenceSettings | None, values: dict[str, str]
) -> None:
    plan = resolved({"method": "LoRA"} | blocks)
    assert (plan.task.value, plan.preference) == (blocks.get("task", "SFT"), settings)
    told = {value.name: value.value for value in plan.values}
    assert told["task"] == blocks.get("task", "SFT")
    assert {name.partition(".")[2]: value for name, value in told.items() if name.startswith("preference.")} == values


@pytest.mark.parametrize(("method", "rate"), [("LoRA", 5e-5), ("QLoRA", 5e-5), ("AdaLoRA", 2.5e-4), ("IA3", 7.5e-4)])
def test_preferences_are_learned_gently_and_never_packed(method: str, rate: float) -> None:
    plan = resolved({"method": method, "task": "DPO"})
    assert (plan.training.learning_rate, plan.training.packing) == (pytest.approx(rate), False)
    assert sources(plan)["training.learningRate"] == "Rule"


@pytest.mark.parametrize(("lora", "dropout"), [({}, (0.0, "Rule")), ({"dropout": 0.1}, (0.1, "Manifest"))])
def test_preferences_are_learned_without_dropout_unless_asked(lora: dict[str, Any], dropout: tuple[float, str]) -> None:
    plan = resolved({"method": "LoRA", "task": "ORPO", "lora": lora})
    assert (plan.adapter.dropout, sources(plan)["lora.dropout"]) == dropout


def test_auto_learns_preferences_by_lora_from_few_rows_too() -> None:
    assert resolved({"task": "KTO"}, rows=50).method is Method.LORA


def test_a_prefix_that_is_projected_is_trained_gently() -> None:
    assert resolved({"method": "PrefixTuning", "prefixTuning": {"projection": True}}).training.learning_rate == 1e-3


@pytest.mark.parametrize("method", ["PromptTuning", "PrefixTuning"])
def test_prompt_learning_neither_packs_nor_has_a_rank(method: str) -> None:
    plan = resolved({"method": method})
    assert (plan.training.packing, plan.adapter.rank, plan.adapter.target_modules) == (False, 0, None)
    assert plan.training.gradient_checkpointing is (method == "PromptTuning")
    assert plan.prompt is not None
    assert plan.prompt.virtual_tokens == 20


def test_adalora_starts_above_its_target() -> None:
    plan = resolved({"method": "AdaLoRA", "adalora": {"targetRank": 5}})
    assert plan.adalora is not None
    assert (plan.adalora.initial_rank, plan.adalora.target_rank, plan.adapter.rank) == (8, 5, 5)


def test_a_model_that_cannot_pack_is_not_packed() -> None:
    plan = resolved({"method": "LoRA"}, facts=BLOOM)
    assert plan.training.packing is False
    assert sources(plan)["training.packing"] == "Rule"
    with pytest.raises(TuneryError, match=r"spec\.training\.packing: BloomForCausalLM was not measured") as caught:
        resolved({"method": "LoRA", "training": {"packing": True}}, facts=BLOOM)
    assert caught.value.reason is FailureReason.INVALID_SPEC


def test_max_length_stays_within_the_models_positions() -> None:
    short = ModelFacts("GPT2LMHeadModel", 124_000_000, 12, 768, 50_257, 1024, tied_embeddings=True, packable=True)
    assert resolved({"method": "LoRA"}, facts=short).training.max_length == 1024
    assert resolved({"method": "PromptTuning"}, facts=short).training.max_length == 1004
    assert resolved({"method": "LoRA"}, facts=BLOOM).training.max_length == 2048
    with pytest.raises(TuneryError, match=r"spec\.training\.maxLength: must be at most 1024, is 1025"):
        resolved({"method": "LoRA", "training": {"maxLength": 1025}}, facts=short)


def test_grouping_by_length_switches_packing_off() -> None:
    assert resolved({"method": "LoRA", "training": {"groupByLength": True}}).training.packing is False


def test_status_holds_every_value() -> None:
    for method in Method:
        values = resolved({"method": method.value}).values
        assert len(values) <= 48
        assert len({value.name for value in values}) == len(values)


def test_resolving_needs_no_heavy_library() -> None:
    code = (
        "import sys, tunery_trainer.settings.resolve; "
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
