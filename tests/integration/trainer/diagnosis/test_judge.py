"""A run under observation: what is said and when, what is taken back, what stops a run, and that a resume is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tunery_api.findings import FINDINGS, MAX_FINDINGS, FindingStatus, FindingType, Severity
from tunery_api.status import ResolvedValue
from tunery_trainer.diagnosis import findings as said
from tunery_trainer.diagnosis.advice import Advice, decimal, learning_rate, length
from tunery_trainer.diagnosis.findings import Finding, ordered
from tunery_trainer.diagnosis.history import Point
from tunery_trainer.diagnosis.judge import Judge
from tunery_trainer.diagnosis.learning import Overfit, Slow, Still, Worse
from tunery_trainer.diagnosis.paired import Difference, RowLosses
from tunery_trainer.diagnosis.speed import Memory, Step
from tunery_trainer.diagnosis.stability import Rise
from tunery_trainer.settings.experts import EXPERTS

from kit.diagnosed import cosine, grid, grid_log, judged, logged, settings_of, subject_of

SETTINGS = settings_of(
    lora={"rank": 16, "dropout": 0.0},
    training={"learningRate": 2e-4, "epochs": 4, "batchSize": 4, "warmup": 0.02},
)
SLOWEST = settings_of(training={"learningRate": 1e-6})
FROZEN = settings_of(training={"learningRate": 1e-60})
RISEN = Difference(0.04, 0.005)


def told(judge: Judge) -> dict[str, FindingStatus]:
    return {finding.type: finding for finding in judge.findings}


@pytest.mark.parametrize(
    ("finding", "kind", "field", "suggest", "words"),
    [
        (
            said.worse_than_base(SETTINGS, Worse(2.2, Difference(0.2, 0.02), learned=False, in_a_row=1), 2.0),
            "WorseThanBase", "training.learningRate", "4e-5", "10.0 % (± 1.0 %) above the base model's 2",
        ),
        (
            said.worse_than_base(SETTINGS, Worse(2.2, Difference(0.2, 0.02), learned=True, in_a_row=1), 2.0),
            "WorseThanBase", "training.learningRate", "4e-5", "held-out rows may be of another kind",
        ),
        (
            said.worse_than_base(SETTINGS, Worse(28.8, None, learned=False, in_a_row=1), 2.05),
            "WorseThanBase", "training.learningRate", "4e-5", "loss is 28.8, 14 times the base model's 2.05.",
        ),
        (
            said.loss_rising(SETTINGS, Rise(40, 1.0, Difference(0.2, 0.02))),
            "LossRising", "training.learningRate", "6.7e-5", "was 1 at step 40 and is 20.0 % (± 2.0 %) above that now",
        ),
        (said.loss_rising(SETTINGS, None), "LossRising", "training.learningRate", "6.7e-5", "training.warmup: 0.1"),
        (
            said.loss_spikes(SETTINGS, [Point(71, 3.0, 1.0, 1e-4), Point(80, 3.0, 1.0, 1e-4)], many=True),
            "LossSpikes", "training.learningRate", "1e-4", "the steps 71, 80: look at the rows",
        ),
        (said.unchanged(SETTINGS), "NoGradient", None, None, "please report it"),
        (said.unchanged(FROZEN), "NoGradient", "training.learningRate", "1e-4", "lost in rounding. Try"),
        (said.no_gradient(SETTINGS), "NoGradient", "lora.targetModules", None, "The gradient has been zero"),
        (
            said.no_gradient(SETTINGS, Point(2, 9.0, 4.1, 2e-4)),
            "NoGradient", "training.learningRate", "4e-5", "was 4.1 at step 2, and has been zero since",
        ),
        (
            said.gradient_not_finite(SETTINGS, math.nan),
            "GradientNotFinite", "training.learningRate", "6.7e-5", "became nan",
        ),
        (
            said.too_slow(SETTINGS, Slow(0.0016, 14.0)),
            "LearningRateTooLow", "training.learningRate", "2e-3", "fell by 0.16 % only, surely (z = 14)",
        ),
        (said.not_learning(SETTINGS, Slow(0.001, 0.3)), "NotLearning", "lora.targetModules", None, "changed by -0.1 %"),
        (said.not_learning(SLOWEST, Slow(0.0, 0.0)), "NotLearning", "training.learningRate", "1e-5", "did not change"),
        (
            said.still_learning(SETTINGS, Still(0.8)),
            "StillLearning", "training.learningRate", "6e-4", "or training.epochs: 8 (now 4)",
        ),
        (said.plateau(SETTINGS, 0.001, largest=True), "Plateau", "lora.rank", "32", "(−0.1 % in the last quarter)"),
        (
            said.overfitting(SETTINGS, Overfit(160, 1.412, 1.456, RISEN, 0.41), 320),
            "Overfitting", "training.epochs", "2", "best at step 160 (1.412) and has risen by 2.8 % (± 0.4 %) since",
        ),
        (
            said.overfitting(SETTINGS, Overfit(300, 1.412, 1.41, Difference(-0.001, 0.01), 0.41), 320),
            "Overfitting", "evaluation.earlyStoppingPatience", "2",
            "until step 300 only (1.412): what it gained since (now 1.41) may be chance",
        ),
        (said.too_few_steps(SETTINGS, 10), "TooFewSteps", "training.epochs", "8", "10 optimizer steps"),
        (
            said.evaluation_too_small(6, None, 0.05),
            "EvaluationTooSmall", "dataset.evaluation.fraction", "0.1", "6 rows are held out",
        ),
        (said.evaluation_too_small(12, 0.2, None), "EvaluationTooSmall", "dataset.evaluation", None, "are 20 % of"),
        (
            said.evaluation_too_small(12, 0.21, None),
            "EvaluationTooSmall", "dataset.evaluation", None, "About 220 held-out rows are needed.",
        ),
        (
            said.evaluation_too_small(12, 0.1, 0.05),
            "EvaluationTooSmall", "dataset.evaluation.fraction", "0.2", "two standard errors are 10 % of",
        ),
        (
            said.evaluation_too_small(12, 0.11, 0.05),
            "EvaluationTooSmall", "dataset.uri", None,
            "About 59 held-out rows are needed; this data set is too small for that",
        ),
        (
            said.evaluation_too_small(3, None, 0.25),
            "EvaluationTooSmall", "dataset.uri", None,
            "At least 8 held-out rows are needed; this data set is too small",
        ),
        (
            said.micro_batch_halved(SETTINGS, 2, "memory ran out with 4 × 2 rows at step 7"),
            "MicroBatchHalved", "training.batchSize", "2", "Memory ran out with 4 × 2 rows at step 7",
        ),
        (
            said.memory_tight(SETTINGS, Memory(95, 100), on_gpu=True),
            "MemoryTight", "training.batchSize", "2", "95 % of the GPU's memory",
        ),
        (
            said.memory_tight(SETTINGS, Memory(95, 100), on_gpu=False),
            "MemoryTight", "resources.memory", None, "95 % of the container's memory was in use, without page cache",
        ),
        (
            said.room_for_larger_batch(SETTINGS, Memory(30, 100)),
            "RoomForLargerBatch", "training.batchSize", "8", "30 % of the GPU's memory",
        ),
        (said.waiting_for_data(0.3, packable=True), "WaitingForData", "resources.cpu", None, "30 % of the time"),
        (said.much_padding(SETTINGS, 0.6, packable=True), "MuchPadding", "training.packing", "true", "60 %"),
        (said.much_padding(SETTINGS, 0.6, packable=False), "MuchPadding", "training.groupByLength", "true", "60 %"),
        (said.slowing_down(1.8), "SlowingDown", None, None, "and at its GPU if it has one"),
    ],
)  # fmt: skip
def test_a_finding_says_what_was_seen_with_its_numbers_and_what_to_try(
    finding: Finding, kind: str, field: str | None, suggest: str | None, words: str
) -> None:
    shown = finding.to_status(7)
    assert (shown.type, shown.step, shown.field, shown.suggest) == (kind, 7, field, suggest)
    assert words in (shown.message or "")
    assert shown.severity == FINDINGS[FindingType(kind)].severity


@pytest.mark.parametrize(
    ("blocks", "fields"),
    [
        ({}, ["lora.targetModules", "lora.rank", "lora.rank"]),
        ({"method": "IA3"}, ["lora.targetModules"]),
        ({"method": "PromptTuning"}, []),
        ({"method": "PrefixTuning"}, []),
        (
            {"method": "AdaLoRA", "adalora": {"initialRank": 12, "targetRank": 8}},
            ["lora.targetModules", "adalora.targetRank", "adalora.targetRank"],
        ),
        (
            {"method": "AdaLoRA", "adalora": {"initialRank": 9, "targetRank": 8}},
            ["lora.targetModules", "adalora.targetRank"],
        ),
    ],
)
def test_what_is_suggested_are_fields_of_the_method(blocks: dict[str, Any], fields: list[str]) -> None:
    settings = settings_of(**blocks)
    found = (
        said.not_learning(settings, Slow(0.0, 0.0)),
        said.plateau(settings, 0.001, largest=True),
        said.overfitting(settings, Overfit(160, 1.412, 1.456, RISEN, 0.41), 320),
    )
    advice = [each for finding in found for each in finding.advice]
    adapter = [each for each in advice if each.field.startswith(("lora.rank", "lora.target", "adalora"))]
    assert [each.field for each in adapter] == fields
    assert [said.no_gradient(settings).advice[0].field] == (fields[:1] or ["dataset.uri"])
    for each in adapter:
        block, field = each.field.split(".")
        if each.suggest is not None:
            settings_of(**{**blocks, block: {**blocks.get(block, {}), field: int(each.suggest)}})


@pytest.mark.parametrize(
    ("rate", "field", "suggest"),
    [
        (2e-2, "training.learningRate", "6.7e-3"),
        (1e-6, "training.learningRate", "3e-6"),
        (2e-4, "lora.rank", "32"),
    ],
)
def test_a_plateau_at_an_unusual_rate_is_the_rates_first(rate: float, field: str, suggest: str) -> None:
    settings = settings_of(training={"learningRate": rate})
    (advice, *_) = said.plateau(settings, 0.001, largest=True).advice
    assert (advice.field, advice.suggest) == (field, suggest)


def test_another_batch_comes_with_the_passes_that_leave_a_step_its_rows() -> None:
    settings = settings_of(training={"batchSize": 16, "gradientAccumulation": 1})
    advice = said.micro_batch_halved(settings, 2, "memory ran out").advice
    assert [str(each) for each in advice] == [
        "training.batchSize: 2 (now 16) with training.gradientAccumulation: 8 (now 1)"
    ]
    settings = settings_of(training={"batchSize": 4, "gradientAccumulation": 2})
    advice = said.room_for_larger_batch(settings, Memory(30, 100)).advice
    assert [str(each) for each in advice] == [
        "training.batchSize: 8 (now 4) with training.gradientAccumulation: 1 (now 2)"
    ]


def test_what_is_suggested_can_be_shared_by_the_devices() -> None:
    alone = settings_of(training={"batchSize": 4, "gradientAccumulation": 8})
    four = replace(alone, training=replace(alone.training, devices=4))
    (advice,) = said.room_for_larger_batch(four, Memory(30, 100)).advice
    assert str(advice) == "training.batchSize: 8 (now 4) with training.gradientAccumulation: 4 (now 8)"
    assert "a step took 8 passes, 2 on each device." in said.room_for_larger_batch(four, Memory(30, 100)).message
    (advice,) = said.micro_batch_halved(four, 2, "memory ran out").advice
    assert str(advice) == "training.batchSize: 2 (now 4) with training.gradientAccumulation: 16 (now 8)"
    *_, fewer = said.too_few_steps(four, 10).advice
    assert str(fewer) == "training.gradientAccumulation: 4 (now 8)"
    for passes, found in ((4, False), (8, True)):
        subject = subject_of(40, training={"batchSize": 2, "gradientAccumulation": passes})
        training = replace(subject.settings.training, devices=4)
        judge = Judge(replace(subject, settings=replace(subject.settings, training=training), on_gpu=True))
        judge.end(Memory(30, 100))
        assert ("RoomForLargerBatch" in told(judge)) is found, "where each device has one pass, none can be spared"


def test_packing_is_suggested_only_where_it_is_allowed() -> None:
    assert [each.field for each in said.waiting_for_data(0.3, packable=False).advice] == ["resources.cpu"]


def test_every_finding_has_a_sentence() -> None:
    table = test_a_finding_says_what_was_seen_with_its_numbers_and_what_to_try
    rows = next(mark for mark in table.pytestmark if mark.name == "parametrize").args[1]  # type: ignore[attr-defined]
    assert {row[1] for row in rows} == {kind.value for kind in FindingType}


@pytest.mark.parametrize(
    ("value", "text"),
    [(6e-4, "6e-4"), (6.66e-5, "6.7e-5"), (0.05, "0.05"), (3.0, "3"), (0.0, "0"), (1e-3, "1e-3"), (150.0, "150")],
)
def test_values_are_written_as_people_write_them(value: float, text: str) -> None:
    assert decimal(value) == text
    assert float(text) == pytest.approx(value, rel=0.05)


def test_a_rate_that_is_scaled_with_the_rank_is_suggested_before_scaling() -> None:
    settings = settings_of(lora={"rank": 32}, training={"learningRate": 2e-4, "scaleLearningRateWithRank": True})
    assert settings.training.learning_rate == pytest.approx(1e-4)
    assert learning_rate(settings, 10) == Advice("training.learningRate", "2e-3", "2e-4")


def test_a_run_measured_in_steps_is_made_longer_in_steps() -> None:
    assert length(settings_of(training={"maxSteps": 60}), 2) == Advice("training.maxSteps", "120", "60")
    assert length(settings_of(training={"epochs": 1}), 0.4) == Advice("training.epochs", "0.4", "1")


def test_findings_are_shown_the_gravest_first_and_no_more_than_a_status_holds() -> None:
    def of(kind: str, severity: str, step: int) -> FindingStatus:
        return FindingStatus(type=kind, severity=severity, step=step)

    found = [of("A", "Info", 1), of("B", "Problem", 9), of("C", "Warning", 5), of("D", "Problem", 3)]
    assert [each.type for each in ordered(found)] == ["D", "B", "C", "A"]
    assert len(ordered([of("A", "Info", step) for step in range(30)])) == MAX_FINDINGS


def test_a_verdict_that_no_longer_holds_is_taken_back_and_one_that_holds_is_dated_when_it_began() -> None:
    judge = Judge(subject_of(80))
    for entry in logged([1.0] * 80, {10: 2.3, 20: 2.4, 30: 2.1, 40: 1.99, 50: 1.9}):
        judge.log(entry)
        if entry["step"] in (25, 45):
            # Not better than the base yet: the rate that made it worse is what is wrong.
            assert told(judge)["WorseThanBase"].step == 10
    assert told(judge) == {}


def test_only_a_problem_stops_a_run_and_one_evaluation_above_the_base_does_not() -> None:
    judge, stopped = Judge(subject_of(80)), None
    for entry in logged([1.0] * 80, {10: 2.3, 20: 2.4}):
        judge.log(entry)
        if judge.problem and stopped is None:
            stopped = (entry["step"], judge.problem.type)
    assert stopped == (20, FindingType.WORSE_THAN_BASE)
    overfit = judged(
        logged([2.0 * 0.93**step for step in range(80)], dict.fromkeys(range(10, 81, 10), 1.2)), subject_of(80)
    )
    assert told(overfit)["Overfitting"].severity == Severity.WARNING
    assert overfit.problem is None


def test_what_can_be_said_before_the_first_step() -> None:
    judge = Judge(replace(subject_of(12), held_out=6, fraction=0.05))
    assert set(told(judge)) == {"TooFewSteps", "EvaluationTooSmall"}
    unsure = RowLosses((0.5, 1.5) * 6, (1.0,) * 12)
    judge = Judge(replace(subject_of(40), rows=unsure, held_out=12))
    assert "two standard errors are 30 % of it" in (told(judge)["EvaluationTooSmall"].message or "")
    assert told(Judge(replace(subject_of(20), held_out=8))) == {}
    judge = Judge(replace(subject_of(40), rows=RowLosses((20.0,), (40.0,)), held_out=20))
    assert "20 rows are held out, 1 if copies count once, too few to tell a small gain" in (
        told(judge)["EvaluationTooSmall"].message or ""
    )


def test_time_and_memory_are_judged_while_it_goes() -> None:
    judge = Judge(replace(subject_of(100, training={"packing": False}), on_gpu=True, packable=True))
    for number in range(1, 51):
        judge.step(Step(1.0, 0.5, 100, 70), number)
    judge.memory(Memory(95, 100), 50)
    judge.memory(Memory(10, 100), 51)
    judge.halved(2, "memory ran out", 52)
    assert set(told(judge)) == {"WaitingForData", "MuchPadding", "MemoryTight", "MicroBatchHalved"}
    assert told(judge)["MuchPadding"].field == "training.packing"


@pytest.mark.parametrize(("share", "on_gpu", "found"), [(30, True, True), (30, False, False), (60, True, False)])
def test_room_is_told_at_the_end_of_a_run_on_a_gpu(share: int, on_gpu: bool, found: bool) -> None:
    training = {"batchSize": 2, "gradientAccumulation": 4}
    judge = Judge(replace(subject_of(40, training=training), on_gpu=on_gpu))
    judge.end(Memory(share, 100))
    assert ("RoomForLargerBatch" in told(judge)) is found


@pytest.mark.parametrize(
    ("lora", "found"), [({"rank": 4}, True), ({"rank": 64}, False), ({"rank": 64, "targetModules": ["q_proj"]}, True)]
)
def test_a_plateau_is_told_where_the_adapter_could_be_larger(lora: dict[str, Any], found: bool) -> None:
    levelled = dict(zip(range(10, 81, 10), (1.5, 1.2, 1.1, 1.05, 1.01, 1.003, 1.001, 1.0), strict=True))
    judge = judged(logged([1.0] * 80, levelled), subject_of(80, lora=lora))
    assert "Plateau" not in told(judge)
    judge.end()
    assert ("Plateau" in told(judge)) is found


def runs() -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Some that go well, some that do not, and one with spikes."""
    sample = grid()
    for run in (sample[0], sample[100], sample[448], sample[-1]):
        yield list(grid_log(run)), run["base"]
    jumpy = [4.0 if step in (30, 31, 44, 52) else 1.0 + 0.01 * (step % 7) for step in range(1, 61)]
    yield list(logged(jumpy, {15: 1.5, 30: 1.1, 45: 1.3, 60: 1.4}, rates=cosine(1e-3, 60))), 2.0


def test_a_resumed_run_says_what_one_in_one_piece_says() -> None:
    for entries, base in runs():
        whole = Judge(subject_of(60, base))
        for place, entry in enumerate(entries):
            whole.log(entry)
            resumed = judged(iter(entries[: place + 1]), subject_of(60, base))
            assert (resumed.findings, resumed.problem) == (whole.findings, whole.problem)


def test_a_log_point_costs_less_than_a_millisecond() -> None:
    losses = [1.0 + 0.1 * math.sin(step) for step in range(1000)]
    judge = Judge(subject_of(1000))
    entries = list(logged(losses, dict.fromkeys(range(125, 1001, 125), 1.5)))
    began = time.process_time()
    for entry in entries:
        judge.log(entry)
    assert time.process_time() - began < 1.0


def test_dropout_is_suggested_only_where_the_method_has_it() -> None:
    """PEFT refuses one for a mixture's experts, and `lora.dropout` with them is rejected before the run."""
    found = Overfit(160, 1.412, 1.456, RISEN, 0.41)
    told_of = ResolvedValue(name=EXPERTS, value="1 of 2 billion parameters: adapted, never quantised", source="Rule")
    experts = replace(SETTINGS, values=(*SETTINGS.values, told_of))
    for settings, has_it in ((SETTINGS, True), (experts, False), (settings_of(method="IA3"), False)):
        fields = {advice.field for advice in said.overfitting(settings, found, 320).advice}
        assert ("lora.dropout" in fields) is has_it


def test_advice_without_a_value_says_which_way_its_field_is_turned() -> None:
    spared = said.evaluation_too_small(3, None, 0.25).to_status(step=9).message
    assert spared is not None
    assert spared.endswith("this data set is too small for that. Try other data, or more of it (dataset.uri).")
    own = said.evaluation_too_small(12, None, None).to_status(step=9).message
    assert own is not None
    assert own.endswith(" are needed. Try more held-out rows (dataset.evaluation).")
