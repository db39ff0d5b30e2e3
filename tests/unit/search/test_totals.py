"""What all trials come to: the best, its path, and what was spent; what samplers are told; how trials run."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.lorajob import PreflightPolicy
from tunery_api.lorasweep import PrunerSpec, PrunerType, SweepPreflight
from tunery_api.sweepstatus import TrialState
from tunery_api.validation import parse_lorajob
from tunery_search.dimensions import Numeric
from tunery_search.history import (
    FixedTrial,
    ObservationState,
    Suggestion,
    build_request,
    final_suggestion,
    sweep_request,
    to_observation,
    with_warm_start,
)
from tunery_search.space import space_of
from tunery_search.summary import (
    best,
    best_trial,
    convergence,
    counts_text,
    gpu_seconds,
    gpu_seconds_saved,
    importance_shown,
    trial_counts,
    trials_since_improvement,
)
from tunery_search.trial_spec import preflight_policy, with_trial_settings
from tunery_search.trials import Live, Trial

from kit.sweeps import running, sweep, trial

S = TrialState
RATE = "training.learningRate"
TRIALS = [
    trial(0, value=2.0, gpu_seconds=100),
    trial(1, S.PRUNED, 2.5, gpu_seconds=30, losses=(2.6, 2.5)),
    trial(2, value=1.0, adapter=None, reason="NotImproved"),
    trial(3, value=1.5, gpu_seconds=200),
    trial(4, S.INFEASIBLE, reason="GPUOutOfMemory"),
    trial(5, S.FAILED, reason="NodeLost"),
    trial(6, S.INFEASIBLE, reason="WontFit"),
    trial(7, value=1.7, gpu_seconds=100),
    trial(8, S.DELETED),
    running(9),
    trial(10, S.WAITING),
]


def number_of_best(trials: list[Trial], tolerance: float = 0.0) -> int | None:
    found = best(trials, tolerance)
    return None if found is None else found.number


def test_the_best_has_the_lowest_loss_and_an_adapter() -> None:
    assert number_of_best(TRIALS) == 3
    assert number_of_best(TRIALS[1:3]) is None
    assert number_of_best([trial(4, value=1.0), trial(2, value=1.0)]) == 2


NO_NUMBER = ["nan", "inf", "-inf", "", "x"]


def told_as(text: str, number: int = 0, **fields: Any) -> Trial:
    """Return a complete trial whose row tells a text for its loss: nothing keeps a status from that."""
    there = trial(number, value=1.0, **fields)
    return Trial(there.row.model_copy(update={"value": text}))


@pytest.mark.parametrize("text", NO_NUMBER)
def test_a_loss_that_is_no_finite_number_is_not_measured(text: str) -> None:
    bad = told_as(text)
    assert (number_of_best([bad]), number_of_best([bad, trial(1, value=2.0)], 0.1)) == (None, 1)
    assert [each.trial for each in convergence([bad, trial(1, value=2.0)])] == [1]
    assert trials_since_improvement([trial(1, value=2.0), told_as(text, 2)]) == 0
    assert number_of_best([trial(0, value=2.0), told_as(text, 1, origin="Final")]) == 0
    assert (to_observation(bad).state, to_observation(bad).value) == (ObservationState.FAILED, None)
    earlier = with_warm_start(build_request(sweep(), (), [], [], {}), [[bad.row.model_copy(update={"parameters": {}})]])
    assert earlier.earlier == ()


@pytest.mark.parametrize("text", NO_NUMBER)
def test_a_base_that_is_no_finite_number_is_not_told(text: str) -> None:
    found = best_trial(trial(0, value=1.0, base_value=text).row)
    assert (found.base_value, found.improvement) == (None, None)


@pytest.mark.parametrize(
    ("value", "improvement"), [(0.0006, "−99.97 %"), (1e-9, "−99.9999 %"), (0.0, "−100.0 %"), (0.02, "−99.0 %")]
)
def test_next_to_nothing_is_not_told_as_nothing(value: float, improvement: str) -> None:
    assert best_trial(trial(0, value=value, base_value="2.0").row).improvement == improvement


def test_an_improvement_of_more_digits_than_there_is_room_for_is_not_told() -> None:
    assert best_trial(trial(0, value=100.0, base_value="1e-300").row).improvement is None


@pytest.mark.parametrize("text", NO_NUMBER)
def test_an_evaluation_that_is_no_finite_number_is_none(text: str) -> None:
    there = trial(0, value=1.0, losses=(2.0, 1.5))
    first, second = there.row.evaluations or ()
    known = [first, second.model_copy(update={"loss": text})]
    assert Trial(there.row.model_copy(update={"evaluations": known})).eval_losses == ((0.125, 2.0),)


@pytest.mark.parametrize(("tolerance", "number"), [(0.0, 0), (0.01, 1), (0.05, 3)])
def test_within_the_tolerance_the_smallest_adapter_is_the_best(tolerance: float, number: int) -> None:
    sizes = ((1.0, 900), (1.005, 300), (1.008, None), (1.04, 100), (1.045, 100))
    trials = [trial(index, value=value, trainable_parameters=size) for index, (value, size) in enumerate(sizes)]
    assert number_of_best(trials, tolerance) == number


def test_the_best_settings_once_more_are_better_only_where_their_loss_is() -> None:
    small = trial(0, value=1.01, trainable_parameters=100)
    large = trial(1, value=1.0, trainable_parameters=900)
    assert number_of_best([small, large, trial(2, value=1.005, origin="Final")], 0.05) == 2
    assert number_of_best([small, large, trial(2, value=1.02, origin="Final")], 0.05) == 0
    assert number_of_best([trial(2, value=1.02, origin="Final")]) == 2


def test_the_best_is_shown_with_how_far_it_is_below_the_base() -> None:
    row = trial(4, value=1.4123, base_value="2.0310", parameters={RATE: "0.0004121"}).row
    assert best_trial(row).to_json_dict() == {
        "trial": 4,
        "name": "support-004",
        "value": "1.4123",
        "baseValue": "2.0310",
        "improvement": "−30.5 %",
        "parameters": {RATE: "0.0004121"},
    }
    assert best_trial(trial(4).row).improvement is None


def test_the_path_to_the_best_and_what_came_after_it() -> None:
    assert [each.trial for each in convergence(reversed(TRIALS))] == [0, 3]
    assert trials_since_improvement(TRIALS) == 2, (
        "out of memory, and a worse one; chance and what did not fit say nothing"
    )
    assert trials_since_improvement(TRIALS[1:3]) is None


def test_trials_are_counted() -> None:
    assert trial_counts(TRIALS).to_json_dict() == {
        "created": 11,
        "waiting": 1,
        "running": 1,
        "complete": 4,
        "pruned": 1,
        "infeasible": 2,
        "failed": 2,
    }
    assert counts_text(TRIALS, 20) == "8/20"
    assert counts_text(TRIALS, 5) == "8/8", "maxTrials was lowered while trials were under way"
    assert counts_text([*TRIALS, trial(11, origin="Final")], 20) == "8/20"
    assert (counts_text(TRIALS, 20, forgiven=5), counts_text(TRIALS, 20, forgiven=6)) == ("8/20", "7/20")
    given_up = trial(11, S.PRUNED, why="the sweep has failed")
    assert counts_text([*TRIALS, given_up], 20) == "8/20", "it never counts"


def test_what_was_spent_and_what_pruning_saved() -> None:
    assert gpu_seconds(TRIALS) == 530
    assert gpu_seconds_saved(TRIALS) == 95, "a complete one takes 125"
    assert gpu_seconds_saved(TRIALS[1:2]) is None


def test_what_matters_most_comes_first() -> None:
    shown = importance_shown({"lora.rank": 0.1234, RATE: 0.8})
    assert shown is not None
    assert [(each.path, each.share) for each in shown] == [(RATE, "0.8"), ("lora.rank", "0.123")]
    assert importance_shown({}) is None


@pytest.mark.parametrize(
    ("known", "state", "value", "course"),
    [
        (trial(0, value=2.0, losses=(2.5, 2.0)), "Complete", 2.0, ()),
        (trial(0, value=2.0, adapter=None), "Complete", 2.0, ()),
        (trial(0, S.PRUNED, 2.0, losses=(2.5, 2.0)), "Pruned", None, ((12, 2.5), (25, 2.0))),
        (trial(0, S.PRUNED, reason="NotImproved"), "Pruned", None, ()),
        (trial(0, S.PRUNED, why="by hand: enough"), "Failed", None, ()),
        (trial(0, S.PRUNED, 2.0, losses=(2.5, 2.0), why="the sweep has failed"), "Failed", None, ()),
        (trial(0, S.INFEASIBLE, reason="LossDiverged", losses=(2.5,)), "Pruned", None, ()),
        (trial(0, S.INFEASIBLE, reason="WontFit"), "Pruned", None, ()),
        (trial(0, S.WAITING), "Running", None, ()),
        (running(0, 2.0), "Running", None, ()),
        (trial(0, S.FAILED, reason="NodeLost"), "Failed", None, ()),
        (trial(0, S.DELETED), "Failed", None, ()),
    ],
)
def test_a_sampler_is_told_what_a_trial_says_of_its_values(
    known: Trial, state: str, value: float | None, course: tuple[Any, ...]
) -> None:
    found = to_observation(known)
    assert (found.state, found.value, found.intermediate_values) == (ObservationState(state), value, course)


def test_a_question_is_made_of_the_spec_and_all_trials_of_the_search() -> None:
    spec = sweep(seed=7, sampler={"type": "Random", "startupTrials": 3})
    space = [Numeric(RATE, 1e-5, 1e-2, log=True)]
    fixed = {number: FixedTrial(origin="Initial", values={RATE: "0.001"}) for number in (0, 12)}
    asked = build_request(spec, space, [*TRIALS, trial(11, origin="Final")], (12, 13), fixed)
    assert (asked.seed, asked.sampler, asked.startup, asked.numbers) == (7, "Random", 3, (12, 13))
    assert [each.number for each in asked.trials] == list(range(11))
    assert asked.fixed == {12: fixed[12]}


def test_what_was_forgiven_is_not_told_and_what_is_tried_first_is_in_the_question() -> None:
    spec = sweep(initial=[{RATE: "0.001"}])
    trials = [trial(0, S.FAILED, reason="NodeLost"), trial(1, value=2.0), trial(2, S.FAILED, reason="NodeLost")]
    space = space_of(spec)
    asked = sweep_request(spec, space, trials, (0, 3), forgiven=2)
    assert [each.number for each in asked.trials] == [1, 2]
    assert [each.number for each in sweep_request(spec, space, trials, (3,), forgiven=0).trials] == [0, 1, 2]
    given_up = trial(3, S.PRUNED, why="the sweep has failed")
    again = sweep_request(spec, space, [*trials, given_up], (4,), forgiven=0)
    assert [each.number for each in again.trials] == [0, 1, 2], "its point may be tried again"
    assert asked.fixed == {0: FixedTrial(origin="Initial", values={RATE: "0.001"})}


def test_the_final_trial_has_the_best_values() -> None:
    last = final_suggestion(sweep(), [trial(0, value=2.0), trial(1, value=1.0, parameters={RATE: "0.002"})], 2)
    assert last == Suggestion(number=2, origin="Final", values={RATE: "0.002"})
    assert final_suggestion(sweep(), [trial(0, S.FAILED)], 1) is None


def test_of_other_sweeps_is_told_what_ended_and_is_a_point_of_this_space() -> None:
    asked = build_request(sweep(), [Numeric(RATE, 1e-5, 1e-2, log=True)], [], (0,), {})
    inside, outside, other = {RATE: "0.001"}, {RATE: "0.1"}, {RATE: "0.001", "lora.rank": "8"}
    rows = [
        trial(3, value=2.0, parameters=inside).row,
        trial(0, S.PRUNED, 2.0, losses=(2.0,), parameters=inside).row,
        trial(1, parameters=outside).row,
        trial(2, parameters=other).row,
        trial(4, S.FAILED, parameters=inside).row,
        trial(5, S.RUNNING, parameters=inside).row,
        trial(6, value=1.0, parameters=inside, origin="Final").row,
    ]
    assert [each.number for each in with_warm_start(asked, [rows, rows[:1]]).earlier] == [0, 3, 3]


CHECKED = trial(0, S.RUNNING, parameters={RATE: "0.001", "lora.rank": "8"}, live=Live(checked=True))


@pytest.mark.parametrize(
    ("policy", "trials", "values", "expected"),
    [
        ("Auto", [CHECKED], {RATE: "0.002", "lora.rank": "8"}, "Skip"),
        ("Auto", [CHECKED], {RATE: "0.001", "lora.rank": "16"}, "Required"),
        ("Auto", [CHECKED], {RATE: "0.001"}, "Required"),
        ("Auto", [trial(0, parameters={"lora.rank": "8"})], {RATE: "0.001", "lora.rank": "8"}, "Skip"),
        ("Auto", [trial(0, S.DELETED, parameters={"lora.rank": "8"})], {"lora.rank": "8"}, "Required"),
        ("Auto", [], {RATE: "0.001"}, "Required"),
        ("Every", [CHECKED], {RATE: "0.002", "lora.rank": "8"}, "Required"),
    ],
)
def test_a_trial_is_checked_unless_one_like_it_was(
    policy: str, trials: list[Trial], values: dict[str, str], expected: str
) -> None:
    assert preflight_policy(SweepPreflight(policy), trials, values) == expected


def test_trials_publish_nothing_once_stopped_and_end_themselves_unless_told_otherwise() -> None:
    template: dict[str, Any] = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
    unpruned = PrunerSpec(type=PrunerType.NONE)
    spec = with_trial_settings(template, PreflightPolicy.SKIP, unpruned)
    assert spec == {**template, "diagnosis": {"action": "Stop"}, "onStop": "Discard", "preflight": "Skip"}
    warned = {**template, "diagnosis": {"action": "Warn", "showExample": True}}
    told_otherwise = with_trial_settings(warned, PreflightPolicy.SKIP, unpruned)
    assert told_otherwise["diagnosis"] == {"action": "Warn", "showExample": True}
    body = {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRAJob",
        "metadata": {"name": "support-000"},
        "spec": {**spec, "output": {"uri": "s3://out/000"}},
    }
    assert parse_lorajob(body).diagnosis.action == "Stop"


@pytest.mark.parametrize(
    ("pruner", "evaluation", "expected"),
    [
        ({}, None, {"times": 4}),
        ({"type": "Median", "rungs": [0.3, 0.5]}, {"publish": "Last"}, {"publish": "Last", "times": 4}),
        ({"rungs": [0.01]}, {}, {"times": 16}),
        ({"rungs": [0.5]}, {}, {"times": 2}),
        ({}, {"times": 8}, {"times": 8}),
        ({}, {"everySteps": 20}, {"everySteps": 20}),
        ({"type": "None"}, {"publish": "Last"}, {"publish": "Last"}),
        ({"type": "None"}, None, None),
    ],
)
def test_trials_that_are_compared_are_measured_before_unless_told_otherwise(
    pruner: dict[str, Any], evaluation: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    template = {} if evaluation is None else {"evaluation": evaluation}
    spec = with_trial_settings(template, PreflightPolicy.SKIP, PrunerSpec.model_validate(pruner))
    assert spec.get("evaluation") == expected
