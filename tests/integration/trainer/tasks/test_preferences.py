"""Preference tuning by the command line: what is learned, measured, published, continued, and taken up again."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunery_api.reasons import ExitCode
from tunery_common.inputs.location import DataFiles, FetchedDataset
from tunery_trainer.local import load_run_spec
from tunery_trainer.plan.disk import estimate_disk

from kit.peft_reader import held_out_rows, plain_peft
from kit.story import WORDS, Case, newest_log, run_here, start, write_rows

QUICK = {"maxSteps": 30, "learningRate": 5e-3}


def pairs(count: int = 80) -> list[dict[str, Any]]:
    """Return questions with an answer in small letters that is preferred, and one in capitals, likelier at first."""
    draw = random.Random(3)
    said = [f"{draw.choice(WORDS)} {draw.randint(0, 999)}" for _ in range(count)]
    return [{"prompt": f"say {words}", "chosen": words, "rejected": words.upper()} for words in said]


def answers(count: int = 80) -> list[dict[str, Any]]:
    """Return the same as single answers."""
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs(count // 2)
        for side in ("chosen", "rejected")
    ]


def job(case: Case, task: str, **changes: Any) -> Path:
    """Write a manifest of a task and its rows."""
    path = case(**{"task": task, "training": QUICK, **changes})
    write_rows(path.parent / "data.jsonl", answers() if task == "KTO" else pairs())
    return path


def run(path: Path) -> str:
    """Run to the end and return what was printed."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout


def lineage(path: Path, out: str = "out") -> dict[str, Any]:
    """Return the lineage of what was published."""
    found: dict[str, Any] = json.loads((path.parent / out / "manifest.json").read_text())["lineage"]
    return found


@pytest.mark.slow(fast=["ORPO"])
@pytest.mark.parametrize("task", ["DPO", "ORPO", "KTO"])
def test_what_is_preferred_is_learned_and_told(case: Case, task: str) -> None:
    faster = {**QUICK, "learningRate": 3e-2} if task == "ORPO" else QUICK  # the prompt's likelihood comes first
    asked = {"everySteps": 10, "publish": "Last"}  # of ORPO, the lowest loss comes before the best preference
    path = job(case, task, training=faster, evaluation=asked, tracking={"tensorboard": True})
    printed = run(path)
    metrics, card = lineage(path)["metrics"], (path.parent / "out" / "README.md").read_text()
    if task != "ORPO":
        assert metrics["baseEvalLoss"] == pytest.approx(math.log(2) if task == "DPO" else 0.5, abs=1e-6)
        assert "baseEvalRewardAccuracy" not in metrics, "compared with itself it prefers nothing"
    else:
        assert 0 <= metrics["baseEvalRewardAccuracy"] < metrics["evalRewardAccuracy"]
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    assert metrics["evalRewardAccuracy"] >= 0.875, "seven of the eight that are held out"
    assert metrics["evalRewardMargin"] > 0
    assert f"| Reward accuracy on held-out rows | {metrics['evalRewardAccuracy']:.6g} |" in card
    assert "eval_reward_accuracy" in printed
    events = EventAccumulator(str(path.parent / "out" / "runs")).Reload()
    assert [event.step for event in events.Scalars("eval/reward_accuracy")] == [10, 20, 30]
    assert [event.step for event in events.Scalars("train/reward_accuracy")] == list(range(1, 31))


@pytest.mark.slow
def test_anyone_can_repeat_the_numbers_with_plain_peft(case: Case) -> None:
    path = job(case, "DPO", preference={"beta": 0.2}, training={**QUICK, "maxSteps": 6})
    run(path)
    metrics, model, rewards = lineage(path)["metrics"], plain_peft(path.parent), []
    for row in held_out_rows(path.parent):
        both = [log_ratio(model, row[f"{side}input_ids"], row[f"{side}labels"]) for side in ("", "rejected_")]
        rewards.append([0.2 * ratio for ratio in both])
    margins = [good - bad for good, bad in rewards]
    assert metrics["evalRewardMargin"] == pytest.approx(sum(margins) / len(margins), rel=0.05)
    assert metrics["evalRewardAccuracy"] == sum(margin > 0 for margin in margins) / len(margins)
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert metrics["evalLoss"] == pytest.approx(loss, rel=0.01)


@torch.no_grad()
def log_ratio(model: Any, ids: list[int], labels: list[int]) -> float:
    """Return how much likelier an answer is with the adapter than without it."""

    def log_probability() -> float:
        logs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return sum(float(logs[place - 1, label]) for place, label in enumerate(labels) if label != -100)

    now = log_probability()
    with model.disable_adapter():
        return now - log_probability()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["DPO", "ORPO", "KTO"])
def test_a_resume_is_exact(case: Case, task: str) -> None:
    """20 straight steps end in the weights of 10 steps, a resume, and 10 more; the reference is not asked again.

    72 rows to train on are taken at 18 steps, so that some are known from before the resume, and some are not.
    """
    kept = {"everySteps": 10, "keep": 2, "keepAfterSuccess": True}
    path = job(case, task, checkpoint=kept, evaluation={"everySteps": 5}, training={**QUICK, "maxSteps": 20})
    printed = run(path)
    assert ("Reference  scoring 8 rows before training" in printed) == (task != "ORPO"), "those held out"
    straight, before = load_file(path.parent / "out" / "adapter_model.safetensors"), lineage(path)["metrics"]
    history = logged(path)
    shutil.rmtree(path.parent / "out")
    shutil.rmtree(next((path.parent / "work" / "checkpoints").glob("*/step-000020")))
    printed = run(path)
    assert "Resuming from the checkpoint of step 10" in printed
    assert "Reference" not in printed
    before_steps, _, steps = printed.partition("Training")
    assert "Evaluating" not in before_steps
    assert "Evaluating" in steps, "while the held-out rows are measured"
    if task != "ORPO":
        assert known(path, 10) == 40
        assert known(path, 20) == 72
    resumed = load_file(path.parent / "out" / "adapter_model.safetensors")
    assert max(float((straight[name] - resumed[name]).abs().max()) for name in straight) == 0.0
    assert lineage(path)["metrics"] == before
    assert logged(path) == history


def known(path: Path, step: int, work: str = "work") -> int:
    """Return of how many training rows a checkpoint knows the reference."""
    folder = next((path.parent / work / "checkpoints").glob(f"*/step-{step:06}"))
    return int((~load_file(folder / "reference.safetensors")["train"].isnan()).all(1).sum())


def logged(path: Path) -> list[tuple[int, float, float]]:
    """Return step, loss and reward accuracy of what the newest checkpoint remembers."""
    found = [(entry["step"], entry["loss"], entry["reward_accuracy"]) for entry in newest_log(path) if "loss" in entry]
    assert [step for step, *_ in found] == list(range(1, 21))
    return found


@pytest.mark.slow
def test_a_published_adapter_is_its_own_reference(case: Case) -> None:
    """SFT, then DPO on it: what was learned first is where preferring begins, not the base."""
    first = case()
    run(first)
    later = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "lora": None}
    path = job(case, "DPO", **later)
    done = run_here("run", path, "--work-dir", path.parent / "work2")
    assert done.returncode == ExitCode.OK, done.stderr
    metrics = lineage(path, "out2")["metrics"]
    assert metrics["baseEvalLoss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    assert metrics["evalRewardAccuracy"] >= 0.875, "seven of the eight that are held out"


@pytest.mark.slow
def test_a_published_adapter_stays_the_reference_wherever_training_goes_on(case: Case) -> None:
    """Straight, after a resume, and in another job by resumeFrom, which does not have the adapter any more."""
    run(case())
    kept = {"everySteps": 5, "keep": 4, "keepAfterSuccess": True}
    later = {"output": {"uri": "file://out2"}, "lora": None, "checkpoint": kept, "training": {**QUICK, "maxSteps": 15}}
    path = job(case, "DPO", **later, continueFrom={"uri": "file://out"})

    def weights(work: str, out: str) -> dict[str, torch.Tensor]:
        done = run_here("run", path, "--work-dir", path.parent / work)
        assert done.returncode == ExitCode.OK, done.stderr
        assert "Reference" not in done.stdout.partition("Resuming")[2]
        return load_file(path.parent / out / "adapter_model.safetensors")

    straight = weights("work2", "out2")
    assert [known(path, step, "work2") for step in (5, 10, 15)] == [20, 40, 60]
    place = next((path.parent / "work2" / "checkpoints").glob("*/step-000005")).parent
    shutil.rmtree(path.parent / "out2")
    for step in (10, 15):
        shutil.rmtree(place / f"step-{step:06}")
    resumed = weights("work2", "out2")
    shutil.rmtree(path.parent / "out")
    other = {**later, "output": {"uri": "file://out3"}, "lora": {"rank": 8}}
    path = job(case, "DPO", **other, resumeFrom={"uri": (place / "step-000005").as_uri()})
    elsewhere = weights("work3", "out3")
    for found in (resumed, elsewhere):
        assert max(float((straight[name] - found[name]).abs().max()) for name in straight) == 0.0


@pytest.mark.slow
def test_a_stop_in_the_first_steps_keeps_what_was_scored(case: Case) -> None:
    """Of many rows: a step needs no more than its own."""
    path = job(case, "DPO", training={**QUICK, "maxSteps": 400}, checkpoint={"everySteps": 1000})
    write_rows(path.parent / "data.jsonl", pairs(2000))
    process = start(path)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"Training  step [1-9]", line):
            break
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == ExitCode.TERMINATED, printed
    folder = next((path.parent / "work" / "checkpoints").glob("*/step-*"))
    step = int(folder.name.removeprefix("step-"))
    assert step < 400
    assert known(path, step) == 4 * step


def test_the_disk_has_room_for_it(case: Case, tmp_path: Path) -> None:
    def checkpoints(**changes: Any) -> int:
        spec = load_run_spec(job(case, **changes), tmp_path, None).lora_job
        model: Any = SimpleNamespace(folder=Path("/models"), weight_bytes=0)
        basis, report = SimpleNamespace(spec=spec, base=model), SimpleNamespace(tokens=None, rows=9, evaluation_rows=0)
        plan: Any = SimpleNamespace(basis=basis, data=report, trainable_parameters=1000)
        files = DataFiles(FetchedDataset(Path("/data"), ""))
        return estimate_disk(tmp_path, plan, files).checkpoints

    later = {"continueFrom": {"uri": "file://first"}}
    assert checkpoints(task="DPO") == checkpoints(task="SFT", **later) == checkpoints(task="ORPO", **later)
    assert 16 * checkpoints(task="DPO", **later) == 20 * checkpoints(task="DPO")


@pytest.mark.slow
@pytest.mark.parametrize("by_length", [False, True])
def test_where_the_adapter_changes_the_base_the_rows_that_steps_take_are_scored_before(
    case: Case, *, by_length: bool
) -> None:
    path = job(
        case,
        "DPO",
        lora={"rank": 8, "init": "PiSSA"},
        training={**QUICK, "maxSteps": 4, "groupByLength": by_length},
        checkpoint={"everySteps": 2, "keep": 3, "keepAfterSuccess": True},
    )
    printed = run(path)
    assert "Reference  scoring 24 rows before training" in printed
    told = re.findall(r"^Evaluating  (\d+) %", printed, re.MULTILINE)
    assert told, printed
    assert [known(path, step) for step in (2, 4)] == [16, 16]
    shutil.rmtree(path.parent / "out")
    shutil.rmtree(next((path.parent / "work" / "checkpoints").glob("*/step-000004")))
    assert "Reference" not in run(path)


@pytest.mark.slow
def test_the_base_models_own_dropout_is_off(case: Case) -> None:
    """With it the first step, at which nothing is preferred yet, would not be at ln 2."""
    path = job(case, "DPO", training={**QUICK, "maxSteps": 10}, checkpoint={"keepAfterSuccess": True})
    model = path.parent / "model"
    copied = shutil.copytree(model.resolve(), path.parent / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model.unlink()
    copied.rename(model)
    run(path)
    assert newest_log(path)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
def test_training_stops_at_the_best_loss_of_the_pairs(case: Case) -> None:
    wild = {"maxSteps": 60, "learningRate": 3e-1, "scheduler": "Constant", "precision": "Float32"}
    early = {"everySteps": 3, "earlyStoppingPatience": 2, "minImprovement": -1000}
    path = job(case, "DPO", training=wild, evaluation=early, checkpoint={"keepAfterSuccess": True})
    run(path)
    losses = [e["eval_loss"] for e in newest_log(path) if "eval_loss" in e]
    assert len(losses) < 20
    assert lineage(path)["metrics"]["evalLoss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_too_little_is_not_published(case: Case) -> None:
    path = job(case, "DPO", training={**QUICK, "maxSteps": 2}, evaluation={"minImprovement": 0.99})
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode != ExitCode.OK
    assert "NotImproved: the evaluation loss went from 0.6931 to" in done.stderr
    assert not (path.parent / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_row_at_a_time_is_enough_for_kto(case: Case) -> None:
    """TRL asks for two in a forward pass: its reference point is that of the pass, ours that of the step."""
    path = job(case, "KTO", training={**QUICK, "batchSize": 1, "gradientAccumulation": 4})
    run(path)
    assert lineage(path)["metrics"]["evalRewardAccuracy"] > 0.9
