"""A whole sweep, from its first trial to its best adapter, by an operator that is killed now and then."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.lorajob import PreflightPolicy
from tunery_api.sweepstatus import EndReason, TrialStatus
from tunery_search.decision import Decision, DecisionContext, decide
from tunery_search.dimensions import Categorical, Dimension, Numeric
from tunery_search.history import Fixed, question
from tunery_search.optuna_sampler import answer
from tunery_search.summary import best, convergence, gpu_seconds_saved
from tunery_search.trial_rows import merge
from tunery_search.trial_spec import on_terms, preflight_of
from tunery_search.trials import Trial

from kit.sweeps import START, STEPS, sweep

SPACE: tuple[Dimension, ...] = (
    Categorical("lora.rank", ("8", "16", "64")),
    Numeric("training.learningRate", 1e-5, 1e-1, log=True),
)
GUIDE = {
    number: Fixed(origin=origin, values={"lora.rank": rank, "training.learningRate": rate})
    for number, (origin, rank, rate) in enumerate(
        [("InstructionTuning", "16", "2e-4"), ("DomainAdaptation", "64", "1e-4"), ("StyleTransfer", "8", "3e-4")]
    )
}
SPEC = sweep(maxTrials=20, parallelTrials=3, seed=3, budget={"gpuSeconds": 100_000})


def read(spec: Any) -> dict[str, str]:
    return {"lora.rank": str(spec["lora"]["rank"]), "training.learningRate": spec["training"]["learningRate"]}


def loss_at(values: dict[str, str], eighth: int) -> float:
    """Return a held-out loss: best at a rate of 0.005; a rate above 0.03 diverges."""
    end = 1 + 0.3 * abs(math.log10(float(values["training.learningRate"]) / 5e-3))
    return end + (3 - end) * 0.6**eighth


@dataclass
class World:
    """The LoRAJobs of a sweep, its status, and the time."""

    children: dict[int, dict[str, Any]] = field(default_factory=dict)
    rows: list[TrialStatus] = field(default_factory=list)
    recorded: EndReason | None = None
    seconds: int = 0
    made: list[int] = field(default_factory=list)

    def reconcile(self, *, killed_before_its_status: bool) -> tuple[list[Trial], Decision]:
        trials = list(merge(self.rows, self.children.values(), read))
        decision = decide(SPEC, trials, DecisionContext(START + timedelta(seconds=self.seconds), START, self.recorded))
        for number, why in decision.stop.items():
            self.children[number]["spec"]["stop"] = why
        for each in answer(question(SPEC, SPACE, trials, decision.create, GUIDE)).suggestions:
            policy = preflight_of(SPEC.preflight, trials, each.values)
            self.make(each.number, each.origin, each.values, policy)
        if not killed_before_its_status:
            self.rows, self.recorded = [each.row for each in trials], decision.end_reason
        return trials, decision

    def make(self, number: int, origin: str, values: dict[str, str], policy: PreflightPolicy) -> None:
        assert number not in self.children
        spec = {"lora": {"rank": values["lora.rank"]}, "training": {"learningRate": values["training.learningRate"]}}
        labels = {"tunery.dev/trial": f"{number:03}"}
        metadata = {"name": f"s-{number:03}", "labels": labels, "annotations": {"tunery.dev/origin": origin}}
        self.children[number] = {"metadata": metadata, "spec": on_terms(spec, policy, SPEC.pruner), "status": {}}
        self.made.append(number)

    def live(self) -> None:
        """Let a minute pass: preflight takes one, each eighth of the steps takes one."""
        self.seconds += 60
        for child in self.children.values():
            spec, status = child["spec"], child["status"]
            if status.get("phase") in ("Succeeded", "Failed", "Stopped"):
                continue
            if spec.get("stop"):
                status.update(phase="Stopped", stopped={"afterStep": status["evaluations"][-1]["step"]})
            elif not status and spec["preflight"] == "Required":
                status.update(phase="Preflight")
            else:
                train(status, read(spec))
            if "evaluations" in status:
                taken = 60 * len(status["evaluations"])
                status.update(gpuSeconds=taken, runSeconds=taken, attempts=1)


def train(status: dict[str, Any], values: dict[str, str]) -> None:
    done = status.setdefault("evaluations", [])
    passed = {"type": "Preflight", "status": "True"}
    status.update(phase="Training", conditions=[passed], progress={"totalSteps": STEPS, "step": 10 * len(done) + 10})
    done.append({"step": 10 * len(done) + 10, "loss": f"{loss_at(values, len(done) + 1):.6g}"})
    if float(values["training.learningRate"]) > 0.03:
        status.update(phase="Failed", failure={"reason": "LossDiverged", "message": "the loss became nan"})
    elif len(done) == 8:
        adapter = {"uri": "s3://out", "manifestSha256": "0" * 64}
        status.update(phase="Succeeded", metrics={"evalLoss": done[-1]["loss"], "baseEvalLoss": "3"}, adapter=adapter)


def played(killed: float) -> tuple[World, list[Trial], Decision]:
    """Play a sweep whose operator is killed between its deeds and its status with that probability."""
    world, chance = World(), random.Random(killed)
    for _ in range(400):
        trials, decision = world.reconcile(killed_before_its_status=chance.random() < killed)
        assert sum(not each.is_final for each in trials) <= SPEC.parallel_trials
        if decision.publish is not None or decision.fail is not None:
            return world, trials, decision
        world.live()
    raise AssertionError("it does not end")


def test_a_sweep_comes_to_the_best_that_it_found_and_that_is_better_than_the_guides() -> None:
    world, trials, decision = played(0.0)
    assert [each.row.number for each in trials] == list(range(20)) == world.made
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
