"""The guide's checklist: each box Passed, Warning or Skipped, with a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunery_api.findings import MAX_CHECKS, CheckName, CheckStatus
from tunery_api.inputs import DatasetFormat
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.diagnosis.checks import Ends, Measured, Planned, measured_checks, planned_checks
from tunery_trainer.diagnosis.paired import Difference
from tunery_trainer.diagnosis.speed import Memory

from kit.diagnosed import settings_of

TOKENS = TokenReport(
    tokens=100_000,
    loss_tokens=30_000,
    truncated_percent=0.0,
    lost_tokens=0,
    p50_length=50,
    p90_length=50,
    p99_length=120,
    longest=120,
    unlearnable_rows=0,
    examples=1900,
    split_rows=0,
    repeated_tokens=0,
    assistant_turns=2000,
    context_turns=0,
    trained_turns=2000,
    lost_reasoning=0,
    template="tokenizer",
    sequences=1900,
)
DATA = DatasetReport(
    rows=2000,
    evaluation_rows=0,
    invalid_rows=0,
    first_invalid=(),
    duplicates=0,
    overlap=0,
    sha256="0" * 64,
    format=DatasetFormat.MESSAGES,
    ignored_columns=(),
    tokens=TOKENS,
)
COPIES = {"evaluation_rows": 20, "duplicates": 19, "evaluation_duplicates": 19}
"""A set of its own of one row, 20 times."""


def plan(
    blocks: dict[str, Any] | None = None, data: dict[str, Any] | None = None, tokens: dict[str, Any] | None = None
) -> Planned:
    report = replace(DATA, **(data or {}), tokens=replace(TOKENS, **(tokens or {})))
    return Planned(settings_of(**(blocks or {})), 100, ["q_proj", "v_proj"], 4096, report, fraction=0.05)


def check(name: CheckName, found: list[CheckStatus]) -> tuple[str, str]:
    each = next(each for each in found if each.name == name)
    return each.result, each.message or ""


def test_every_box_is_there_in_the_guides_order_and_nothing_is_left_out_silently() -> None:
    before = planned_checks(plan())
    assert [each.name for each in before] == [name.value for name in CheckName]
    assert len(before) <= MAX_CHECKS
    assert [each.name for each in before if each.result == "Skipped"] == [
        "BaseFrozen", "OnlyAdapterTrains", "Padding", "BatchFits", "Generation", "Baseline",
    ]  # fmt: skip
    assert all(each.message for each in before)
    assert {each.result for each in before} == {"Passed", "Skipped"}


LORA = {"lora": {"rank": 8, "dropout": 0.05}}


@pytest.mark.parametrize(
    ("name", "planned", "result", "words"),
    [
        (CheckName.TARGET_MODULES, plan(), "Passed", "q_proj, v_proj; 4,096 parameters are trained"),
        (CheckName.TARGET_MODULES, plan({"method": "PromptTuning"}), "Skipped", "PromptTuning adapts no modules"),
        (CheckName.RANK, plan({"lora": {"rank": 16}}), "Passed", "16: moderate adaptation (general instruction"),
        (CheckName.RANK, plan({"method": "IA3"}), "Skipped", "IA3 has no rank"),
        (CheckName.ALPHA, plan({"lora": {"rank": 8, "alpha": 512}}), "Warning", "512 is 64 times the rank"),
        (CheckName.ALPHA, plan({"lora": {"rank": 8, "alpha": 512, "useRslora": True}}), "Passed", "64 times"),
        (CheckName.ALPHA, plan({"lora": {"rank": 8, "alpha": 32}}), "Passed", "32 is 4 times the rank"),
        (CheckName.ALPHA, plan({"lora": {"rank": 8, "alpha": 3}}), "Warning", "0.375 times"),
        (CheckName.ALPHA, plan({"method": "IA3"}), "Skipped", "no alpha"),
        (
            CheckName.DROPOUT,
            plan({"lora": {"dropout": 0}, "training": {"epochs": 3}}, {"rows": 999}),
            "Warning",
            "0, with 999 rows that are passed 3 times",
        ),
        (CheckName.DROPOUT, plan({"lora": {"dropout": 0}, "training": {"epochs": 3}}), "Passed", "0"),
        (
            CheckName.DROPOUT,
            plan(
                {"lora": {"dropout": 0}, "training": {"maxSteps": 100, "batchSize": 8}},
                {"rows": 100},
                {"sequences": 90},
            ),
            "Warning",
            "100 rows that are passed",
        ),
        (CheckName.DROPOUT, plan({"method": "PrefixTuning"}), "Skipped", "no dropout"),
        (CheckName.LEARNING_RATE, plan(), "Passed", "2e-4 is within the usual range, 1e-5 to 5e-4"),
        (CheckName.LEARNING_RATE, plan({"training": {"learningRate": 2e-2}}), "Warning", "0.02 is outside"),
        (CheckName.LEARNING_RATE, plan({"training": {"learningRate": 2e-7}}), "Warning", "2e-7 is outside"),
        (
            CheckName.LEARNING_RATE,
            plan({"method": "IA3", "training": {"learningRate": 1e-2}}),
            "Passed",
            "0.01 is within the usual range of IA3, 3e-4 to 0.03",
        ),
        (CheckName.LEARNING_RATE, plan({"method": "IA3", "training": {"learningRate": 1}}), "Warning", "1 is out"),
        (
            CheckName.GRADIENT_ACCUMULATION,
            plan({"training": {"batchSize": 4, "gradientAccumulation": 4}}),
            "Passed",
            "4 × 4 = 16 rows a step, 100 steps",
        ),
        (
            CheckName.GRADIENT_ACCUMULATION,
            plan({"training": {"batchSize": 4, "gradientAccumulation": 4}}, tokens={"sequences": 15}),
            "Warning",
            "there are 15 rows only",
        ),
        (
            CheckName.GRADIENT_ACCUMULATION,
            plan({"training": {"batchSize": 4, "gradientAccumulation": 4}}, tokens={"sequences": 15, "packed": True}),
            "Warning",
            "4 × 4 = 16 packed sequences a step, 100 steps; there are 15 packed sequences only",
        ),
        (CheckName.GRADIENT_ACCUMULATION, replace(plan(), steps=19), "Warning", "fewer than 20"),
        (CheckName.CHAT_TEMPLATE, plan(), "Passed", "the tokenizer's own"),
        (CheckName.CHAT_TEMPLATE, plan(tokens={"template": "chatml"}), "Warning", "ChatML is used, and published"),
        (CheckName.CHAT_TEMPLATE, plan(tokens={"lost_reasoning": 4}), "Warning", "the reasoning of 4 answers"),
        (CheckName.CHAT_TEMPLATE, plan(tokens={"template": "none"}), "Skipped", "without a template"),
        (CheckName.LABELS, plan(), "Passed", "30,000 of 100,000 tokens count in the loss, 30 %"),
        (CheckName.LABELS, plan(tokens={"loss_tokens": 1900}), "Warning", "1.9 %; very few"),
        (CheckName.LABELS, plan(tokens={"unlearnable_rows": 21}), "Warning", "21 rows are left out"),
        (CheckName.LABELS, plan(tokens={"unlearnable_rows": 20}), "Passed", "30 %"),
        (CheckName.LABELS, plan(tokens={"truncated_percent": 5.1}), "Warning", "5.1 % of the rows are cut"),
        (
            CheckName.LABELS,
            plan({"training": {"loss": "All"}}, tokens={"truncated_percent": 5.1}),
            "Passed",
            "count in the loss",
        ),
        (CheckName.LABELS, plan(tokens={"tokens": 0}), "Skipped", "nothing was tokenised"),
        (CheckName.HELD_OUT, plan(), "Passed", "about 100 rows"),
        (CheckName.HELD_OUT, plan(data={"rows": 100}), "Warning", "about 5 rows; fewer than 8"),
        (CheckName.HELD_OUT, replace(plan(), held_out=7), "Warning", "7 rows; fewer than 8"),
        (
            CheckName.HELD_OUT,
            replace(plan(data={"evaluation_rows": 50, "overlap": 3}), fraction=None),
            "Warning",
            "50 rows; 3 of them are training rows, too",
        ),
        (CheckName.HELD_OUT, plan(data={"duplicates": 101}), "Warning", "101 of 2000 rows appear more than once"),
        (
            CheckName.HELD_OUT,
            replace(plan(data=COPIES | {"rows": 300, "duplicates": 54}), fraction=None),
            "Warning",
            "20 rows; fewer than 8 different rows are too few to tell a gain from chance; "
            "19 of them are copies of others; 35 of 300 training rows appear more than once",
        ),
        (
            CheckName.HELD_OUT,
            replace(plan(data=COPIES | {"evaluation_rows": 400, "duplicates": 119}), fraction=None, held_out=400),
            "Passed",
            "400 rows",
        ),
    ],
)
def test_a_box_before_training(name: CheckName, planned: Planned, result: str, words: str) -> None:
    found, message = check(name, planned_checks(planned))
    assert found == result, message
    assert words in message


def test_memory_that_nobody_has_told_is_said_with_who_can_tell_it() -> None:
    unknown = replace(plan(), needed=5 * 2**30, memory_known=False)
    result, message = check(CheckName.BATCH_FITS, planned_checks(unknown))
    assert result == "Skipped"
    assert message == (
        "training takes about 5.0 GiB; what a GPU has is not known before training: gpuMemory of the chart tells it, "
        "or a spec.scheduling.nodeSelector with nvidia.com/gpu.memory"
    )
    without = check(CheckName.BATCH_FITS, planned_checks(replace(unknown, needed=None)))[1]
    assert without.startswith("what a GPU has is not known")


def test_what_is_left_open_is_no_mistake() -> None:
    """The value may be outside of the guide's; the manifest did not ask for it."""
    settings = settings_of()
    odd = replace(settings, training=replace(settings.training, learning_rate=1e-2))
    assert check(CheckName.LEARNING_RATE, planned_checks(replace(plan(), settings=odd)))[0] == "Passed"


@pytest.mark.parametrize(
    ("name", "measured", "result", "words"),
    [
        (
            CheckName.BASE_FROZEN,
            Measured(base_compared=3),
            "Passed",
            "3 matrices of the base model (first, middle, last layer) have not changed",
        ),
        (CheckName.BASE_FROZEN, Measured(("layers.0.q",), 3), "Warning", "changed in training: layers.0.q"),
        (CheckName.BASE_FROZEN, Measured(), "Skipped", "no matrix"),
        (CheckName.ONLY_ADAPTER_TRAINS, Measured(), "Passed", "nothing else"),
        (CheckName.ONLY_ADAPTER_TRAINS, Measured(strangers=("lm_head.weight",)), "Warning", "lm_head.weight"),
        (CheckName.PADDING, Measured(padding=0.1), "Passed", "10 % of the tokens"),
        (CheckName.PADDING, Measured(padding=0.41), "Warning", "41 %"),
        (CheckName.PADDING, Measured(), "Skipped", "nothing was left to train"),
        (
            CheckName.BATCH_FITS,
            Measured(memory=Memory(92, 100)),
            "Passed",
            "training used 92 B of 100 B (92 %), without page cache",
        ),
        (
            CheckName.BATCH_FITS,
            Measured(memory=Memory(30, 100), on_gpu=True),
            "Passed",
            "training used 30 B of 100 B (30 %), by tensors",
        ),
        (CheckName.BATCH_FITS, Measured(memory=Memory(93, 100)), "Warning", "93 %"),
        (CheckName.BATCH_FITS, Measured(padding=0.0), "Skipped", "how much memory is in use, or may be, is not known"),
        (CheckName.BATCH_FITS, Measured(), "Skipped", "nothing was left to train"),
        (CheckName.GENERATION, Measured(ends=Ends(1.0, "</s>", ("</s>",))), "Passed", "100 % of the answers"),
        (
            CheckName.GENERATION,
            Measured(ends=Ends(0.0, "<|im_end|>", ("</s>", "<eot>"))),
            "Warning",
            "most end with '<|im_end|>', and serving stops at </s>, <eot>: set it there",
        ),
        (CheckName.GENERATION, Measured(), "Skipped", "no answers that end"),
        (
            CheckName.BASELINE,
            Measured(before=2.031, after=1.412, change=Difference(-0.619, 0.0122)),
            "Passed",
            "2.031 → 1.412, −30.5 % (± 0.6 %)",
        ),
        (
            CheckName.BASELINE,
            Measured(before=0.6931, after=0.6987),
            "Warning",
            "0.6931 → 0.6987, +0.8 %: on the held-out rows it is worse than before training",
        ),
        (CheckName.BASELINE, Measured(before=2.0, after=2.0), "Passed", "2 → 2, 0.0 %"),
        (CheckName.BASELINE, Measured(), "Skipped", "not known"),
        (CheckName.BASELINE, Measured(before=2.0), "Skipped", "2 before training; stopped before the held-out loss"),
        (CheckName.BASE_FROZEN, Measured(ended=False), "Skipped", "stopped before the end of training"),
    ],
)
def test_a_box_after_training(name: CheckName, measured: Measured, result: str, words: str) -> None:
    after = measured_checks(planned_checks(plan()), measured)
    assert [each.name for each in after] == [each.value for each in CheckName]
    found, message = check(name, after)
    assert found == result
    assert words in message
