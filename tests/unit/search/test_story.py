"""A whole sweep, from its first trial to its best adapter, by an operator that is killed now and then."""

from __future__ import annotations

import math
import random

import pytest

from tunery_api.sweepstatus import EndReason
from tunery_search.decision import Decision
from tunery_search.dimensions import Values
from tunery_search.history import FixedTrial
from tunery_search.space import space_of
from tunery_search.summary import best, convergence, gpu_seconds_saved
from tunery_search.trials import Trial

from bench.simulated import Simulated
from kit.landscapes import Run
from kit.sweeps import sweep

RATE = "training.learningRate"
GUIDE = {
    number: FixedTrial(origin=origin, values={"lora.rank": rank, RATE: rate})
    for number, (origin, rank, rate) in enumerate(
        [("InstructionTuning", "16", "2e-4"), ("DomainAdaptation", "64", "1e-4"), ("StyleTransfer", "8", "3e-4")]
    )
}
SPEC = sweep(
    parameters=[
        {"path": "lora.rank", "choices": ["8", "16", "64"]},
        {"path": RATE, "range": {"min": 1e-5, "max": 1e-1, "log": True}},
    ],
    maxTrials=20,
    parallelTrials=3,
    seed=3,
    budget={"gpuSeconds": 100_000},
)


def trained(values: Values) -> Run:
    """Return losses that end best at a rate of 0.005; a rate above 0.03 diverges."""
    rate = float(values[RATE])
    end = 1 + 0.3 * abs(math.log10(rate / 5e-3))
    losses = tuple(end + (3 - end) * 0.6**eighth for eighth in range(1, 9))
    return Run(losses[:1], 3.0, "LossDiverged") if rate > 0.03 else Run(losses, 3.0)


def played(killed: float) -> tuple[Simulated, tuple[Trial, ...], Decision]:
    """Play a sweep whose operator is killed between its deeds and its status with that probability."""
    world, chance = Simulated(SPEC, trained, GUIDE, space_of(SPEC), preflight=True), random.Random(killed)
    for _ in range(400):
        trials, decision = world.reconcile(killed=chance.random() < killed)
        assert sum(not each.has_ended for each in trials) <= SPEC.parallel_trials
        if decision.publish is not None or decision.fail is not None:
            return world, trials, decision
        world.live()
    raise AssertionError("it does not end")


def test_a_sweep_comes_to_the_best_that_it_found_and_that_is_better_than_the_guides() -> None:
    world, trials, decision = played(0.0)
    assert [each.row.number for each in trials] == list(range(20)) == list(world.children)
    assert decision.end_reason is EndReason.MAX_TRIALS
    assert [each.row.origin for each in trials[:4]] == [*(fixed.origin for fixed in GUIDE.values()), "TPE"]
    assert [each.row.state for each in trials[:3]] == ["Complete"] * 3, "they are never ended early"
    states = {each.row.state for each in trials}
    assert states == {"Complete", "Pruned", "Infeasible"}
    chosen = best(trials)
    assert chosen is not None
    assert chosen.number == decision.publish == convergence(trials)[-1].trial
    guides = min(float(each.row.value or "nan") for each in trials[:3])
    assert float(chosen.value or "nan") < 0.9 * guides
    assert all(float(each.row.value or "9") >= float(chosen.value or "nan") for each in trials if each.row.adapter)
    assert gpu_seconds_saved(trials)


def test_the_first_of_a_rank_is_checked_and_the_others_are_not() -> None:
    world, _, _ = played(0.0)
    checked: dict[int, list[str]] = {}
    for child in world.children.values():
        checked.setdefault(int(child["spec"]["lora"]["rank"]), []).append(child["spec"]["preflight"])
    assert all(policies[0] == "Required" for policies in checked.values())
    assert all(policies[-1] == "Skip" for policies in checked.values() if len(policies) > 3)


@pytest.mark.parametrize("killed", [0.3, 0.6, 0.9])
def test_an_operator_that_is_killed_makes_the_same_trials(killed: float) -> None:
    world, trials, decision = played(killed)
    again, theirs, other = played(0.0)
    assert world.children == again.children
    assert (decision, [each.row for each in trials]) == (other, [each.row for each in theirs])
