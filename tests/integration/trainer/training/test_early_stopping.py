"""Early stopping: training ends when the evaluation loss gets no better, and the best weights are published."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from tunery_api.reasons import ExitCode
from tunery_trainer.training.best_weights import BEST_FILE, BestAdapter
from tunery_trainer.training.callbacks import PatienceCallback

from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.story import Case, newest_log, run_here

# A rate at which the loss soon rises again.
WILD = {"maxSteps": 60, "learningRate": 5e-2, "scheduler": "Constant", "precision": "Float32"}


def run(path: Path) -> dict[str, float]:
    """Run to the end and return the metrics of the manifest."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    metrics: dict[str, float] = lineage(path)["metrics"]
    return metrics


def lineage(path: Path) -> dict[str, Any]:
    """Return what the manifest tells."""
    found: dict[str, Any] = json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]
    return found


def evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the evaluations that the newest checkpoint remembers."""
    return [entry for entry in newest_log(path) if "eval_loss" in entry]


@pytest.mark.slow
def test_the_best_weights_are_published_also_after_a_rerun(case: Case) -> None:
    path = case(
        training=WILD,
        evaluation={"everySteps": 3, "earlyStoppingPatience": 2, "minImprovement": -10},
        checkpoint={"keepAfterSuccess": True},
    )
    published = run(path)["evalLoss"]
    losses = [entry["eval_loss"] for entry in evaluations(path)]
    last, best = (evaluations(path)[at]["step"] for at in (-1, losses.index(min(losses))))
    assert last < WILD["maxSteps"]
    told = lineage(path)
    assert (told["steps"], told["step"]) == (last, best)
    said = f"| Steps | {last} of 60, {told['epochs']:.3g} epochs, published as it was after step {best}, "
    assert said in (path.parent / "out" / "README.md").read_text()
    assert losses.index(min(losses)) == len(losses) - 3
    assert published == pytest.approx(min(losses), rel=1e-5)
    folder = path.parent
    assert single_row_loss(plain_peft(folder), held_out_rows(folder)) == pytest.approx(min(losses), rel=1e-3)
    before = load_file(folder / "out" / "adapter_model.safetensors")
    shutil.rmtree(folder / "out")
    assert run(path)["evalLoss"] == pytest.approx(published, rel=1e-6)
    after = load_file(folder / "out" / "adapter_model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.slow
def test_adalora_publishes_the_weights_and_the_ranks_of_its_best_step(case: Case) -> None:
    """Between the best step and the last one its ranks were pruned further."""
    asked = {"initialRank": 8, "targetRank": 2, "warmupSteps": 1, "finalSteps": 5, "updateEverySteps": 1}
    path = case(
        method="AdaLoRA",
        lora=None,
        adalora=asked,
        training=WILD,
        evaluation={"everySteps": 3, "earlyStoppingPatience": 2, "minImprovement": -10},
        checkpoint={"keepAfterSuccess": True},
    )
    published, folder = run(path)["evalLoss"], path.parent
    losses = [entry["eval_loss"] for entry in evaluations(path)]
    assert losses.index(min(losses)) < len(losses) - 1
    assert published == pytest.approx(min(losses), rel=1e-5)
    assert single_row_loss(plain_peft(folder), held_out_rows(folder)) == pytest.approx(published, rel=1e-3)
    weights = load_file(folder / "out" / "adapter_model.safetensors")
    kept = [int((tensor.abs().sum(dim=1) > 0).sum()) for name, tensor in weights.items() if "lora_A" in name]
    assert sum(kept) > asked["targetRank"] * len(kept)


def test_what_another_job_measured_on_the_way_does_not_end_this_one() -> None:
    """Of those evaluations nobody kept the weights."""
    theirs, own = [(3, 5.0), (6, 5.1), (9, 5.2), (12, 5.3)], [(15, 5.2), (18, 5.3), (21, 5.3)]

    def stops(callback: PatienceCallback, losses: list[tuple[int, float]]) -> bool:
        state = TrainerState(log_history=[{"step": step, "eval_loss": loss} for step, loss in losses])
        control = TrainerControl()
        callback.on_evaluate(TrainingArguments(output_dir="unused"), state, control)
        return control.should_training_stop

    callback = PatienceCallback(2, since=12)
    assert [stops(callback, theirs + own[:count]) for count in (1, 2, 3)] == [False, False, True]
    assert stops(PatienceCallback(2), theirs + own[:1]), "its own history counts from its beginning"


def test_weights_that_a_checkpoint_does_not_have_are_not_counted_from(tmp_path: Path) -> None:
    best = BestAdapter(torch.nn.Linear(1, 1), None)
    best.load(tmp_path, 15)
    assert (best.since, best.loss) == (15, math.inf)
    torch.save({"loss": 1.0, "step": 9, "state": {}, "hooks": {}}, tmp_path / BEST_FILE)
    again = BestAdapter(torch.nn.Linear(1, 1), None)
    again.load(tmp_path, 15)
    assert (again.since, again.loss, again.step) == (0, 1.0, 9)
