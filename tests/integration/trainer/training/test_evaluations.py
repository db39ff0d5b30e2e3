"""Evaluations while training, by default: how often, what they are compared with, and what is published of them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

from tunery_api.measured import change_text
from tunery_api.reasons import ExitCode
from tunery_trainer.diagnosis.answers import Answer, answer_metrics
from tunery_trainer.diagnosis.evaluations import EVALUATIONS_FILE
from tunery_trainer.diagnosis.paired import RowLosses, paired
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.training.callbacks import EvaluationCallback, StopCallback

from kit.peft_reader import held_out_rows, plain_base, plain_peft, single_row_loss
from kit.story import Case, newest_log, run_here

WILD = {"maxSteps": 40, "learningRate": 5e-2, "scheduler": "Constant", "precision": "Float32"}
KEPT = {"everySteps": 10, "keep": 9, "keepAfterSuccess": True}


def run(path: Path) -> dict[str, Any]:
    """Run to the end and return the lineage."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    found: dict[str, Any] = json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return what is published."""
    found: dict[str, torch.Tensor] = load_file(path.parent / "out" / "adapter_model.safetensors")
    return found


@pytest.mark.slow
def test_a_run_is_evaluated_without_being_asked(case: Case) -> None:
    """108 rows to train on and 12 held out, 20 steps of 4: 0.2 times 0.74 passes for each ninth."""
    told = run(case(training={"precision": "Float32"}, dataset={"uri": "file://data.jsonl"}))
    steps = [each["step"] for each in told["evaluations"]]
    times = int(told["hyperparameters"]["evaluation.times"])
    assert times > 1
    assert steps == [math.ceil(count * 20 / times) for count in range(1, times + 1)]
    assert told["metrics"]["evalLoss"] == pytest.approx(min(each["loss"] for each in told["evaluations"]), rel=1e-6)


@pytest.mark.slow
def test_a_line_of_the_log_has_what_was_measured_after_its_step(case: Case) -> None:
    path = case(evaluation={"everySteps": 5}, checkpoint=KEPT | {"everySteps": 20})
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    log = newest_log(path)
    loss = {entry["step"]: f"{entry['loss']:.6g}" for entry in log if "loss" in entry}
    held_out = {entry["step"]: f"{entry['eval_loss']:.6g}" for entry in log if "eval_loss" in entry}
    lines = [line for line in done.stdout.splitlines() if line.startswith("Training  step") and " loss " in line]
    assert lines
    for line in lines:
        step = int(line.split()[2].split("/")[0])
        assert f"  loss {loss[step]}  " in line, line
        measured = max((at for at in held_out if at <= step), default=None)
        if "  eval_loss " in line:
            assert measured is not None, line
            # An evaluation is told as soon as it is there: between it and its step's own line the one before stands.
            known = [held_out[step]] if measured == step else [f"{held_out[measured]} (step {measured})"]
            known += [f"{held_out[step - 5]} (step {step - 5})"] if measured == step and step > 5 else []
            assert any(f"  eval_loss {each}  " in line for each in known), line


def test_the_improvement_and_its_error_are_those_of_the_rows_in_plain_peft(case: Case) -> None:
    path = case(training={"precision": "Float32"}, evaluation={"times": 1})
    metrics, folder = run(path)["metrics"], path.parent
    rows = held_out_rows(folder)
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]

    def measured(model: Any) -> RowLosses:
        sums = [single_row_loss(model, rows.select([at])) * count for at, count in enumerate(counts)]
        found = RowLosses(tuple(sums), tuple(float(count) for count in counts))
        return found.merged([json.dumps([row["input_ids"], row["labels"]]).encode() for row in rows])

    before, after = measured(plain_base(folder).eval()), measured(plain_peft(folder))
    change = paired(after, before)
    assert change is not None
    assert metrics["improvement"] == pytest.approx(-change.value / before.loss, rel=1e-3)
    ratio, whole, count = math.fsum(after.sums) / math.fsum(before.sums), math.fsum(before.sums), len(before.sums)
    spread = math.fsum((now - ratio * old) ** 2 for now, old in zip(after.sums, before.sums, strict=True))
    assert metrics["improvementError"] == pytest.approx(math.sqrt(spread * count / (count - 1)) / whole, rel=1e-2)
    card = (folder / "out" / "README.md").read_text()
    assert change_text(-metrics["improvement"], metrics["improvementError"]) in card


@pytest.mark.slow
def test_copies_of_one_row_tell_no_more_than_it_does_also_after_a_resume(case: Case) -> None:
    dataset = {"uri": "file://data.jsonl", "evaluation": {"uri": "file://held.jsonl"}}
    path = case(dataset=dataset, training=WILD, evaluation={"everySteps": 20, "minImprovement": -10}, checkpoint=KEPT)
    line = (path.parent / "data.jsonl").read_text().splitlines(keepends=True)[0]
    (path.parent / "held.jsonl").write_text(line * 20)
    for attempt in ("run", "resumed"):
        told = run(path)
        assert "improvementError" not in told["metrics"]
        (small,) = [each for each in told["findings"] if each["type"] == "EvaluationTooSmall"]
        assert "20 rows are held out, 1 if copies count once" in small["message"], attempt
        shutil.rmtree(path.parent / "out")
        for step in ("000030", "000040"):
            shutil.rmtree(next((path.parent / "work" / "checkpoints").glob(f"*/step-{step}")))


@pytest.mark.slow
def test_the_best_weights_are_published_or_the_last_where_they_are_asked_for(case: Case) -> None:
    asked, wild = {"everySteps": 6, "minImprovement": -10}, WILD | {"maxSteps": 60}
    best = case(training=wild, evaluation=asked)
    told = run(best)
    losses = {each["step"]: each["loss"] for each in told["evaluations"]}
    lowest = min(losses, key=lambda step: losses[step])
    assert lowest < 60, "the rate is to be one at which the loss rises again"
    assert (told["step"], told["steps"]) == (lowest, 60)
    first = weights(best)
    shutil.rmtree(best.parent / "out")
    last = case(training=wild, evaluation={**asked, "publish": "Last"})
    told = run(last)
    assert told["step"] == 60
    assert told["metrics"]["evalLoss"] == pytest.approx(losses[60], rel=1e-6)
    second = weights(last)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_an_interrupted_run_has_the_evaluations_of_a_straight_one(case: Case) -> None:
    path = case(training=WILD, evaluation={"everySteps": 4, "minImprovement": -10}, checkpoint=KEPT)
    straight, whole = run(path), weights(path)
    shutil.rmtree(path.parent / "out")
    for step in ("000020", "000030", "000040"):
        shutil.rmtree(next((path.parent / "work" / "checkpoints").glob(f"*/step-{step}")))
    resumed, again = run(path), weights(path)
    assert resumed["evaluations"] == straight["evaluations"]
    assert resumed["metrics"] == straight["metrics"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_put_off_is_made_up_for(case: Case) -> None:
    """The step is over and its checkpoint stored; without the evaluation its weights could never be the best."""
    path = case(training=WILD, evaluation={"everySteps": 10, "minImprovement": -10}, checkpoint=KEPT)
    straight = run(path)
    shutil.rmtree(path.parent / "out")
    places = path.parent / "work" / "checkpoints"
    for step in ("000030", "000040"):
        shutil.rmtree(next(places.glob(f"*/step-{step}")))
    _forget_evaluation(next(places.glob("*/step-000020")), 20)
    resumed = run(path)
    assert [each["step"] for each in resumed["evaluations"]] == [10, 20, 30, 40]
    assert resumed["evaluations"] == straight["evaluations"]
    assert [entry["step"] for entry in newest_log(path) if "eval_loss" in entry] == [10, 20, 30, 40]


def _forget_evaluation(checkpoint: Path, step: int) -> None:
    """Let a checkpoint be as one of a run that was told to stop during `step`: without that step's evaluation."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    kept = [entry for entry in state["log_history"] if not ("eval_loss" in entry and entry["step"] == step)]
    (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "log_history": kept}))
    told = json.loads((checkpoint / EVALUATIONS_FILE).read_text())
    told["done"] = [each for each in told["done"] if each["step"] != step]
    (checkpoint / EVALUATIONS_FILE).write_text(json.dumps(told))
    marker = json.loads((checkpoint / "complete.json").read_text())
    for name in ("trainer_state.json", EVALUATIONS_FILE):
        content = (checkpoint / name).read_bytes()
        marker["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (checkpoint / "complete.json").write_text(json.dumps(marker))


def test_a_stop_puts_off_an_evaluation_and_a_resume_asks_for_it() -> None:
    asked: list[str] = []
    callback = EvaluationCallback(frozenset({5}), lambda: asked.append("evaluated"))
    arguments, control = TrainingArguments(output_dir="unused"), TrainerControl()
    state = TrainerState(global_step=5, log_history=[{"step": 5, "loss": 1.0}])
    callback.on_step_end(arguments, state, control)
    assert control.should_evaluate
    stop = StopSignal()
    stop.requested = stop.told = True
    StopCallback(stop).on_step_end(arguments, state, control)
    assert not control.should_evaluate
    callback.on_train_begin(arguments, state, control)
    assert asked == ["evaluated"]
    state.log_history.append({"step": 5, "eval_loss": 1.0})
    callback.on_train_begin(arguments, state, control)
    state.global_step = 6
    callback.on_train_begin(arguments, state, control)
    assert asked == ["evaluated"]


ANSWERED = {"generation": {"rows": 6, "maxNewTokens": 16}, "times": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "PromptTuning"])
def test_held_out_rows_are_answered_before_and_after(case: Case, method: str) -> None:
    """As plain transformers and PEFT answer them with what is published."""
    changes: dict[str, Any] = {} if method != "PromptTuning" else {"lora": None}
    path = case(method=method, evaluation=ANSWERED, training={"maxSteps": 40, "precision": "Float32"}, **changes)
    metrics, folder = run(path)["metrics"], path.parent
    answers = [
        Answer(**json.loads(line)) for line in (folder / "out" / "answers.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(answers) == 6
    for each in answers:
        word, number = each.expected.split()[0], each.expected.split()[2]
        assert f"say {word} {number}" in each.prompt
    if method != "QLoRA":  # whose base is loaded in 4 bits
        assert [each.after for each in answers] == [said(plain_peft(folder), folder, each.prompt) for each in answers]
        base = plain_base(folder).eval()
        assert [each.before for each in answers] == [said(base, folder, each.prompt) for each in answers]
    assert {name: metrics[name] for name in answer_metrics(answers)} == pytest.approx(answer_metrics(answers))
    card = (folder / "out" / "README.md").read_text()
    assert "## Answers" in card
    assert "All 6 are in `answers.jsonl`" in card


def said(model: Any, folder: Path, prompt: str) -> str:
    """Return what plain transformers generates."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**asked, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.slow
def test_a_resumed_run_knows_what_was_said_before_training(case: Case) -> None:
    path = case(evaluation=ANSWERED, checkpoint=KEPT)
    run(path)
    straight = (path.parent / "out" / "answers.jsonl").read_text()
    shutil.rmtree(path.parent / "out")
    shutil.rmtree(next((path.parent / "work" / "checkpoints").glob("*/step-000020")))
    run(path)
    assert (path.parent / "out" / "answers.jsonl").read_text() == straight


@pytest.mark.slow
def test_without_being_asked_nothing_is_answered(case: Case) -> None:
    path = case()
    assert "rougeL" not in run(path)["metrics"]
    assert not (path.parent / "out" / "answers.jsonl").exists()
