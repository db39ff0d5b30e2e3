"""What is proposed: the same from the same history, nothing twice, and every point of a small space."""

from __future__ import annotations

import json
import math
import random
import subprocess
from collections import Counter
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_search import sampler as asking
from tunery_search.dimensions import (
    Categorical,
    Dimension,
    Numeric,
    contains,
    grid,
    grid_size,
    is_point,
    point_key,
    sampling_order,
)
from tunery_search.history import FixedTrial, Observation, ObservationState, SuggestionRequest
from tunery_search.optuna_sampler import compute_suggestions
from tunery_search.sampler import SuggestionFailed, needs_optuna, suggest

from kit.proposals import METHODS, RANK, RATE, SIXTY, SPACE, complete, history, question


@pytest.mark.parametrize("sampler", ["TPE", "Random"])
@pytest.mark.parametrize("space", [SPACE, METHODS], ids=["plain", "conditional"])
def test_thirty_six_trials_at_a_time_are_all_different_and_points_of_the_space(
    space: tuple[Dimension, ...], sampler: str
) -> None:
    trials = history(space, 12)
    made = compute_suggestions(
        question(space, sampler=sampler, trials=trials, numbers=tuple(range(12, 48)))
    ).suggestions
    assert [each.number for each in made] == list(range(12, 48))
    assert len({point_key(each.values) for each in [*made, *trials]}) == 48
    assert [each for each in made if not is_point(space, each.values)] == []
    assert {each.origin for each in made} == {sampler}


def test_one_number_is_proposed_alike_whoever_else_is_asked_for_after_it() -> None:
    alone = compute_suggestions(question(trials=history(SPACE, 12), numbers=(12,))).suggestions
    assert compute_suggestions(question(trials=history(SPACE, 12), numbers=(12, 13, 14))).suggestions[:1] == alone


def test_all_four_methods_are_tried_each_with_its_own_settings_alone() -> None:
    made = compute_suggestions(question(METHODS, numbers=tuple(range(24)))).suggestions
    assert {each.values["method"] for each in made} == {"LoRA", "DoRA", "IA3", "PromptTuning"}
    for each in made:
        theirs = {"LoRA", "DoRA"} if "lora.rank" in each.values else {"IA3", "PromptTuning"}
        assert each.values["method"] in theirs
        assert ("promptTuning.virtualTokens" in each.values) == (each.values["method"] == "PromptTuning")


@pytest.mark.slow(fast=["Grid"])
@pytest.mark.parametrize("sampler", ["TPE", "Random", "Grid"])
def test_a_space_of_sixty_points_is_exhausted_and_then_ends(sampler: str) -> None:
    trials: tuple[Observation, ...] = ()
    for start in range(0, 66, 6):
        made = compute_suggestions(
            question(SIXTY, sampler=sampler, trials=trials, numbers=tuple(range(start, start + 6)))
        )
        trials += tuple(complete(each, float(each.number)) for each in made.suggestions)
    assert len(trials) == len({point_key(each.values) for each in trials}) == 60
    assert compute_suggestions(question(SIXTY, sampler=sampler, trials=trials, numbers=(60,))).suggestions == ()


def test_a_grid_is_tried_in_its_order() -> None:
    made = compute_suggestions(question(SIXTY, sampler="Grid", numbers=(0, 1, 2))).suggestions
    assert [each.values for each in made] == list(grid(SIXTY))[:3]
    assert (grid_size(SIXTY, 1000), grid_size(SIXTY, 7)) == (60, 7)


def test_a_condition_that_does_not_hold_makes_no_points() -> None:
    space = (*METHODS[:2], Numeric("training.epochs", 1, 2, integer=True))
    assert len(list(grid(space))) == 2 * (2 + 2 + 1 + 1)
    assert list(grid((*space, RATE))) == []


def test_what_is_fixed_comes_first_and_the_sampler_fills_the_rest() -> None:
    fixed = {
        0: FixedTrial(origin="InstructionTuning", values={"lora.rank": "16", "training.learningRate": "2e-4"}),
        1: FixedTrial(origin="Initial", values={"lora.rank": "5", "training.epochs": "2", "lora.alpha": "1"}),
    }
    first, second, third = compute_suggestions(question(fixed=fixed, numbers=(0, 1, 2))).suggestions
    assert first.origin == "InstructionTuning"
    assert first.values.items() >= {"lora.rank": "16", "training.learningRate": "0.0002"}.items()
    assert (second.origin, second.values["training.epochs"]) == ("Initial", "2")
    assert second.values["lora.rank"] in RANK.choices, "5 is none of them"
    assert third.origin == "TPE"
    assert all(is_point(SPACE, each.values) for each in (first, second, third))


def test_what_is_fixed_and_known_already_gives_way_to_a_proposal() -> None:
    whole = {"lora.rank": "8", "lora.alpha": "16", "lora.dropout": "0.05"}
    fixed = {number: FixedTrial(origin="Initial", values=whole) for number in (0, 1)}
    first, second = compute_suggestions(question(SIXTY, fixed=fixed, numbers=(0, 1))).suggestions
    assert (first.values, first.origin) == (whole, "Initial")
    assert (second.values == whole, second.origin) == (False, "TPE")


def test_what_is_told_is_what_ran_to_the_last_digit() -> None:
    made = compute_suggestions(question(trials=history(SPACE, 12), numbers=tuple(range(12, 32)))).suggestions
    for each in made:
        rate = each.values["training.learningRate"]
        assert "e" not in rate
        assert len(rate) <= 12
        assert RATE.text(float(rate)) == rate
        assert each.values["lora.dropout"] in {"0", "0.05", "0.1", "0.15", "0.2"}


def test_trials_that_are_no_points_of_the_space_are_read_over() -> None:
    odd = Observation(number=3, state=ObservationState.COMPLETE, value=0.1, values={"lora.rank": "5", "other": "1"})
    trials = history(SPACE, 12)
    assert compute_suggestions(question(trials=trials, earlier=(odd,), numbers=(12,))) == compute_suggestions(
        question(trials=trials, numbers=(12,))
    )


def test_other_sweeps_are_learnt_from_and_their_points_may_be_made_again() -> None:
    whole = {"lora.rank": "8", "lora.alpha": "16", "lora.dropout": "0.05"}
    earlier = (Observation(number=0, state=ObservationState.COMPLETE, value=0.1, values=whole),)
    fixed = {0: FixedTrial(origin="Initial", values=whole)}
    (again,) = compute_suggestions(question(SIXTY, earlier=earlier, fixed=fixed)).suggestions
    assert again.values == whole
    learnt = tuple(
        Observation(
            number=number,
            state=ObservationState.COMPLETE,
            value=abs(number - 20),
            values={"training.learningRate": f"{1e-5 * 10 ** (3 * number / 39):.7f}"},
        )
        for number in range(39)
    )
    near = compute_suggestions(question((RATE,), earlier=learnt, numbers=tuple(range(8)))).suggestions
    assert all(1e-4 < float(each.values["training.learningRate"]) < 1e-3 for each in near), "the best was 0.00035"


def test_the_parameter_that_matters_is_found_from_twenty_trials_on() -> None:
    made = compute_suggestions(question(numbers=tuple(range(20)), sampler="Random")).suggestions
    trials = tuple(complete(each, abs(float(each.values[RATE.path]) - 1e-3)) for each in made)
    importance = compute_suggestions(question(trials=trials, numbers=())).importance
    assert max(importance, key=lambda path: importance[path]) == "training.learningRate"
    assert sum(importance.values()) == pytest.approx(1, abs=0.01)
    assert compute_suggestions(question(trials=trials[1:], numbers=())).importance == {}


def test_conditions_come_behind_what_they_ask_and_else_paths_decide() -> None:
    assert [each.path for each in sampling_order(METHODS)] == [
        "method",
        "training.learningRate",
        "lora.dropout",
        "lora.rank",
        "promptTuning.virtualTokens",
    ]


@given(st.randoms(use_true_random=False), st.integers(0, 2**31 - 1))
def test_every_draw_by_chance_is_a_point_whatever_the_order_of_the_space(chance: random.Random, seed: int) -> None:
    mixed = list(METHODS)
    chance.shuffle(mixed)
    asked = question(tuple(mixed), sampler="Random", seed=seed, numbers=(0, 1, 2))
    made = compute_suggestions(asked).suggestions
    assert made == compute_suggestions(question(METHODS, sampler="Random", seed=seed, numbers=(0, 1, 2))).suggestions
    assert [each for each in made if not is_point(METHODS, each.values)] == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("0.05", True), ("5e-2", True), ("0.06", False), ("0.25", False), ("x", False), ("nan", False)],
)
def test_a_text_is_a_value_of_a_stepped_range(text: str, is_one: bool) -> None:
    assert contains(Numeric("lora.dropout", 0.0, 0.2, step=0.05), text) is is_one


def test_random_and_grid_need_no_optuna_and_tpe_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    for sampler in ("Random", "Grid"):
        asked = question(SIXTY, sampler=sampler, trials=history(SIXTY, 40), numbers=(40, 41))
        assert suggest(asked).suggestions == compute_suggestions(asked).suggestions
    with pytest.raises(SuggestionFailed, match=r'pip install "tunery-api\[search\]"'):
        suggest(question())


@pytest.mark.parametrize("seed", range(8))
def test_startup_trials_of_tpe_are_spread_over_every_parameter(seed: int) -> None:
    """Independent draws would leave a third of eight parts without a trial."""
    space = (RATE, Categorical("lora.alpha", ("8", "16", "32", "64")), Numeric("training.epochs", 1, 8, integer=True))
    first, second = (
        compute_suggestions(question(space, seed=seed, startup=8, numbers=tuple(range(at, at + 8)))) for at in (0, 8)
    )
    for made in (first.suggestions, second.suggestions):
        values = [each.values for each in made]
        eighths = [int(8 * math.log(float(each[RATE.path]) / RATE.low) / math.log(1e3)) for each in values]
        assert sorted(eighths) == list(range(8)), "a startup trial in each eighth of the range"
        assert Counter(each["lora.alpha"] for each in values) == {"8": 2, "16": 2, "32": 2, "64": 2}
        assert sorted(each["training.epochs"] for each in values) == list("12345678")
    assert {point_key(each.values) for each in first.suggestions}.isdisjoint(
        point_key(each.values) for each in second.suggestions
    )


@pytest.mark.parametrize(
    ("number", "ended", "learns"),
    [(7, 7, False), (8, 8, True), (8, 4, True), (8, 3, False), (20, 3, False)],
    ids=["a-startup-trial", "all-ended", "four-at-a-time", "too-few-ended", "many-at-a-time"],
)
def test_tpe_learns_from_half_of_the_startup_trials_while_the_others_run(number: int, ended: int, learns: bool) -> None:
    made = compute_suggestions(question(sampler="Random", numbers=tuple(range(number)))).suggestions
    trials = tuple(
        Observation(
            number=each.number,
            values=each.values,
            state=ObservationState.COMPLETE if each.number < ended else ObservationState.RUNNING,
            value=1.0 if each.number < ended else None,
        )
        for each in made
    )
    assert needs_optuna(question(startup=8, trials=trials, numbers=(number,))) is learns
    before = question(startup=8, trials=trials[:ended], numbers=tuple(range(ended, number + 1)))
    assert needs_optuna(before) is learns, "one of the trials that are asked for together"


def no_process(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a process was started")


@pytest.mark.parametrize(
    "asked",
    [
        question(METHODS, numbers=tuple(range(8))),
        question(fixed={0: FixedTrial(origin="Initial", values={"lora.rank": "16"})}, numbers=(0, 1)),
        question(startup=22, trials=history(SPACE, 12), earlier=history(SPACE, 8), numbers=(12, 13)),
        question(SIXTY, sampler="Random", trials=history(SIXTY, 40), numbers=(40, 41)),
        question(SIXTY, sampler="Grid", trials=history(SIXTY, 40), numbers=(40, 41)),
        question(sampler="Random", trials=history(SPACE, 12), numbers=()),
    ],
    ids=["none-yet", "fixed", "below-startup", "random", "grid", "too-few-to-weigh"],
)
def test_what_is_drawn_by_chance_is_drawn_without_a_process_and_alike(
    asked: SuggestionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert not needs_optuna(asked)
    assert suggest(asked) == compute_suggestions(asked)


@pytest.mark.parametrize("sampler", ["Random", "Grid"])
def test_what_mattered_where_nobody_learns_is_told_to_whom_asks_nothing_else(sampler: str) -> None:
    trials = tuple(
        each.model_copy(update={"state": ObservationState.COMPLETE, "value": 1.0}) for each in history(SIXTY, 20)
    )
    assert not needs_optuna(question(SIXTY, sampler=sampler, trials=trials, numbers=(20,)))
    assert needs_optuna(question(SIXTY, sampler=sampler, trials=trials, numbers=()))
    assert needs_optuna(question(SIXTY, trials=trials, numbers=(20,))), "TPE learns"


def test_a_question_is_the_same_after_its_way_through_json() -> None:
    asked = question(
        METHODS, trials=history(METHODS, 10), fixed={3: FixedTrial(origin="Initial", values={"method": "IA3"})}
    )
    assert SuggestionRequest.model_validate_json(json.dumps(json.loads(asked.model_dump_json(by_alias=True)))) == asked
