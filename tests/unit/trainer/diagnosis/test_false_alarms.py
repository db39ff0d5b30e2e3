"""Healthy runs raise no alarm: noise of a fixed seed, and 468 real trainings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.findings import FindingType, Severity
from tunery_trainer.diagnosis.judge import Judge
from tunery_trainer.diagnosis.learning import still_learning

from kit.diagnosed import GRID_STEPS, grid, grid_log, history_of, judged, logged, noisy, subject_of

RUNS = [(steps, rows, spread) for steps in (60, 300) for rows in (1, 4, 16) for spread in (0.35, 0.6)]
USELESS = 0.9
"""Of the base's loss: what ends above it has not learned what there was to learn."""
HIGH_RATE = 5e-3


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    return grid()


def ended(run: dict[str, Any]) -> Judge:
    judge = judged(grid_log(run), subject_of(GRID_STEPS, run["base"]))
    judge.end()
    return judge


def types(judge: Judge) -> set[str]:
    return {finding.type for finding in judge.findings}


@pytest.mark.slow
def test_noise_is_no_rise_and_hardly_ever_a_spike() -> None:
    draw = random.Random(1)
    seen = [
        judged(logged(noisy(draw, steps, rows, spread), base=2.4), subject_of(steps, 2.4))
        for steps, rows, spread in RUNS
        for _ in range(26)
    ]
    assert len(seen) > 300
    assert [judge for judge in seen if FindingType.LOSS_RISING in types(judge)] == []
    spiky = [judge.findings[0] for judge in seen if FindingType.LOSS_SPIKES in types(judge)]
    assert len(spiky) <= 0.02 * len(seen)
    assert {finding.severity for finding in spiky} <= {Severity.INFO}


def test_the_best_quarter_of_the_real_runs_raises_nothing_above_info(runs: list[dict[str, Any]]) -> None:
    told = [finding for run in runs[: len(runs) // 4] for finding in ended(run).findings]
    assert {finding.severity for finding in told} <= {Severity.INFO}
    assert [finding.type for finding in told] == [FindingType.STILL_LEARNING] * 2


@pytest.mark.slow
def test_no_real_run_has_a_spike_and_only_one_of_the_worst_has_risen(runs: list[dict[str, Any]]) -> None:
    """Its held-out loss was 2.90 at step 8 and 3.32 from step 15 on, above the base's 3.07."""
    told = [types(ended(run)) for run in runs]
    assert set.union(*told) == {FindingType.WORSE_THAN_BASE, FindingType.STILL_LEARNING, FindingType.LOSS_RISING}
    risen = [place for place, found in enumerate(told) if FindingType.LOSS_RISING in found]
    assert len(risen) == 1
    assert risen[0] > 0.9 * len(runs)


def test_useless_runs_are_found_at_their_first_evaluation_or_their_second(runs: list[dict[str, Any]]) -> None:
    useless = [run for run in runs if run["final"] >= USELESS * run["base"] and run["lr"] > HIGH_RATE]
    first = []
    for run in useless:
        judge = Judge(subject_of(GRID_STEPS, run["base"]))
        for entry in grid_log(run):
            judge.log(entry)
            if FindingType.WORSE_THAN_BASE in types(judge):
                first.append(entry["step"])
                break
    assert len(useless) == 51
    assert sorted(first) == [8] * 50 + [15]


@pytest.mark.slow
def test_without_errors_of_rows_none_of_the_real_runs_is_called_worse_than_the_base(runs: list[dict[str, Any]]) -> None:
    """As with fewer than 8 held-out rows: the worst evaluation of the 468 was at 2.2 times the base's loss."""

    def bare(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for entry in grid_log(run):
            yield {key: value for key, value in entry.items() if not key.startswith(("base_", "mark_"))}

    told = [types(judged(bare(run), subject_of(GRID_STEPS, run["base"]))) for run in runs]
    assert [found for found in told if FindingType.WORSE_THAN_BASE in found] == []


def test_a_higher_rate_helps_those_that_are_told_so(runs: list[dict[str, Any]]) -> None:
    """134 are told; of these, what learned at 3.2 times the rate is better by more than 5 % in 122, and worse in 12."""
    rates = sorted({run["lr"] for run in runs})
    by = {(rates.index(run["lr"]), run["rank"], run["alpha"], run["targets"]): run for run in runs}
    told = [
        key for key, run in by.items() if still_learning(history_of(grid_log(run), GRID_STEPS, run["base"])) is not None
    ]
    higher = [(by[key], by[(key[0] + 2, *key[1:])]) for key in told]
    assert len(told) == 134
    assert sum(new["final"] < 0.95 * old["final"] for old, new in higher) == 122
    assert sum(new["final"] > old["final"] for old, new in higher) == 12
