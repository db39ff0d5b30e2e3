"""The reference of DPO and KTO: what the model was before training, each row asked once, when a step needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler
from trl import SFTTrainer

from tunery_api.methods import Method
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach
from tunery_trainer.losses import objectives
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.model.load import load_base
from tunery_trainer.training import reference_scores
from tunery_trainer.training.recovery import train_to_the_end
from tunery_trainer.training.reference_scores import Scoring, as_before, task_rows
from tunery_trainer.training.row_order import reached
from tunery_trainer.training.weights import trained_state

from kit.models_of_today import write_mixture
from kit.preferences import PASS, begun, moved, prepared, resolved_task, rows_of, trainer_on
from kit.tiny_models import write_family
from kit.training import logits_of, resolved_for, start_for, train

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA rsLoRA": {"lora": {"useRslora": True}},
    "LoRA Gaussian": {"lora": {"init": "Gaussian"}},
    "LoRA EVA": {"lora": {"init": "EVA"}},
    "LoRA saved modules": {"lora": {"modulesToSave": ["lm_head", "embed_tokens"]}},
    "DoRA": {},
    "QLoRA": {},
    "QLoRA LoftQ": {"lora": {"init": "LoftQ"}},
    "QDoRA": {},
    "AdaLoRA": {"adalora": {"initialRank": 6, "targetRank": 4, "warmupSteps": 1, "finalSteps": 1}},
    "IA3": {},
    "PromptTuning": {},
    "PrefixTuning": {},
    "PrefixTuning projected": {"prefixTuning": {"projection": True}},
}
EXACT = {"maxSteps": 4, "batchSize": 2, "learningRate": 1e-1}
Scored = list[list[int]]


def state_of(model: Any) -> dict[str, tuple[bool, torch.Tensor]]:
    return {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[name][0] == other[name][0] and torch.equal(one[name][1], other[name][1]) for name in one
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_with_the_adapter_off_the_base_is_there_bit_for_bit(llama: Path, tmp_path: Path, name: str) -> None:
    resolved = resolved_task(llama, "DPO", method=name.split()[0], **{"training": EXACT} | METHODS[name])
    before = logits_of(load_base(llama, resolved, "cpu"))
    trainer = trainer_on(llama, resolved, begun(llama, resolved, prepared("DPO")), tmp_path)
    trainer.train()
    model, trained = trainer.model, state_of(trainer.model)
    learned = logits_of(model)
    assert not torch.equal(learned, before), "there must be something to switch off"
    with as_before(model, None):
        assert torch.equal(logits_of(model), before)
    assert torch.equal(logits_of(model), learned)
    assert same_state(state_of(model), trained), "neither a weight nor what is trained has changed"


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_it_is_behind_a_mixtures_experts(tmp_path: Path, method: str) -> None:
    folder = write_mixture(tmp_path, "qwen3_moe")
    resolved = resolved_for(folder, {"method": method})
    before, run = logits_of(load_base(folder, resolved, "cpu")), train(folder, {"method": method}, steps=4)
    assert run.model.peft_config["default"].target_parameters
    learned = run.logits()
    assert not torch.equal(learned, before)
    with as_before(run.model, None):
        assert torch.equal(logits_of(run.model), before)
    assert torch.equal(run.logits(), learned)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_it_is_behind_saved_modules_that_are_tied(tmp_path: Path, saved: str) -> None:
    folder = write_family(tmp_path / "model", "llama", tie_word_embeddings=True)
    resolved = resolved_task(folder, "DPO", lora={"modulesToSave": [saved], "dropout": 0}, training=EXACT)
    before, data = logits_of(load_base(folder, resolved, "cpu")), prepared("DPO")
    trainer = trainer_on(folder, resolved, begun(folder, resolved, data), tmp_path / "loop")
    trainer.train()
    with as_before(trainer.model, None):
        assert torch.equal(logits_of(trainer.model), before)


@pytest.mark.slow(fast=["LoRA"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_step_asks_is_what_the_base_says(llama: Path, tmp_path: Path, name: str) -> None:
    """Through the head of the loop, after steps, and bit for bit: both score the same rows in the same batches."""
    resolved = resolved_task(llama, "DPO", method=name.split()[0], **{"training": EXACT} | METHODS[name])
    objective = objective_of(resolved)
    assert isinstance(objective, Compared)
    scoring, data = Scoring(objective, PASS), prepared("DPO")
    base = load_base(llama, resolved, "cpu")
    expected = task_rows(data, resolved).scored(base, scoring, range(len(data.train)))
    model, rows = begun(llama, resolved, data)
    trainer_on(llama, resolved, (model, rows), tmp_path).train()
    asked = task_rows(data, resolved)
    asked.compared([{"row": torch.arange(len(data.train))}], model, scoring)
    assert torch.equal(asked.scores["train"], expected.scores["train"])
    torch.testing.assert_close(rows.scores["train"], expected.scores["train"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_where_the_adapter_changes_the_base_it_is_not_asked_for(llama: Path, init: str) -> None:
    resolved = resolved_task(llama, "DPO", lora={"init": init, "dropout": 0})
    base = load_base(llama, resolved, "cpu")
    before = logits_of(base)
    model = attach(base, resolved, start_for(llama))
    with model.disable_adapter():
        assert not torch.allclose(logits_of(model), before, atol=1e-2)
    with pytest.raises(ValueError, match="no base behind the adapter"), as_before(model, None):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LoRA", "LoRA saved modules", "DoRA", "QLoRA", "IA3", "PromptTuning", "PrefixTuning"])
def test_a_continued_adapter_is_there_as_it_was_bit_for_bit(llama: Path, tmp_path: Path, name: str) -> None:
    resolved = resolved_task(llama, "DPO", method=name.split()[0], **{"training": EXACT} | METHODS[name])
    model = moved(attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama)))
    before, data = logits_of(model), prepared("DPO")
    objective = objective_of(resolved)
    assert isinstance(objective, Compared)
    scoring = Scoring(objective, PASS)
    rows = replace(task_rows(data, resolved), start=trained_state(model)).scored(model, scoring)
    trainer_on(llama, resolved, (model, rows), tmp_path).train()
    trained, learned = state_of(model), logits_of(model)
    assert not torch.equal(learned, before)
    with as_before(model, rows.start):
        assert torch.equal(logits_of(model), before)
    assert torch.equal(logits_of(model), learned)
    assert same_state(state_of(model), trained)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Scored:
    """The numbers of the training rows that are scored, call by call."""
    found: Scored = []
    scored = reference_scores.scored

    def noted(model: Any, rows: Any, *others: Any) -> Any:
        if "row" in rows.column_names:
            found.append(list(rows["row"]))
        return scored(model, rows, *others)

    monkeypatch.setattr(reference_scores, "scored", noted)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", ["DPO", "KTO"])
@pytest.mark.parametrize("by_length", [False, True])
def test_each_row_is_asked_once_and_only_when_a_step_takes_it(
    llama: Path, tmp_path: Path, asked: Scored, task: str, *, by_length: bool
) -> None:
    training = {"batchSize": 2, "gradientAccumulation": 2, "maxSteps": 1, "groupByLength": by_length}
    resolved = resolved_task(llama, task, training=training)
    model, rows = begun(llama, resolved, prepared(task, 10))
    trainer_on(llama, resolved, (model, rows), tmp_path).train()
    assert [sorted(part) for part in asked] == [sorted(reached(rows.train, resolved.training, 1))]
    assert rows.missing("train") == sorted(set(range(10)) - set(asked[0]))
    asked.clear()
    resolved = resolved_task(llama, task, training=training | {"maxSteps": 7})
    model, rows = begun(llama, resolved, prepared(task, 10))
    trainer_on(llama, resolved, (model, rows), tmp_path).train()
    assert [len(part) for part in asked] == [4, 4, 2], "a step a call; the second pass over the data asks nothing"
    assert sorted(row for part in asked for row in part) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("by_length", [False, True])
def test_the_order_is_known_before_training(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_length: bool
) -> None:
    seen: list[int] = []
    step = SFTTrainer.training_step

    def noted(trainer: Any, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        seen.extend(inputs["row"].tolist())
        return step(trainer, model, inputs, *others, **named)

    monkeypatch.setattr(SFTTrainer, "training_step", noted)
    training = {"batchSize": 2, "gradientAccumulation": 2, "maxSteps": 3, "groupByLength": by_length, "seed": 7}
    for rows_there in (11, 20):
        seen.clear()
        resolved = resolved_task(llama, "DPO", training=training)
        model, rows = begun(llama, resolved, prepared("DPO", rows_there))
        trainer_on(llama, resolved, (model, rows), tmp_path).train()
        assert reached(rows.train, resolved.training, 3) == seen


def test_the_order_is_that_of_transformers_own_sampler(llama: Path, tmp_path: Path) -> None:
    """By which earlier versions went: their checkpoints must see the rows that are left."""
    resolved = resolved_task(llama, "DPO", training={"seed": 7})
    trainer = trainer_on(llama, resolved, begun(llama, resolved, prepared("DPO", 20)), tmp_path)
    orders = []
    for sampler in (trainer._get_train_sampler, lambda *_: RandomSampler(trainer.train_dataset)):
        trainer._get_train_sampler = sampler
        loader = trainer.get_train_dataloader()
        orders.append([batch["row"].tolist() for epoch in range(3) for batch in (loader.set_epoch(epoch), loader)[1]])
    assert orders[0] == orders[1]
    assert len({str(orders[0][part : part + 10]) for part in (0, 10, 20)}) == 3


@pytest.mark.slow(fast=["DPO-LoRA-Float32"])
@pytest.mark.parametrize("precision", ["Float32", "BFloat16"])
@pytest.mark.parametrize(
    ("task", "method"),
    [("DPO", "LoRA"), ("KTO", "LoRA"), ("DPO", "QDoRA"), ("DPO", "AdaLoRA"), ("KTO", "IA3"), ("KTO", "PromptTuning")],
)
def test_training_goes_as_if_all_rows_were_scored_before(
    llama: Path, tmp_path: Path, task: str, method: str, precision: str
) -> None:
    training = {"batchSize": 2, "gradientAccumulation": 2, "maxSteps": 5, "learningRate": 1e-2}
    blocks = {"training": training | {"precision": precision}} | METHODS[method]
    resolved = resolved_task(llama, task, method=method, **blocks)
    how = replace(PASS, dtype=torch.float32 if precision == "Float32" else torch.bfloat16)
    losses = []
    for ahead in ((), range(10)):
        model, rows = begun(llama, resolved, prepared(task, 10), how, ahead=ahead)
        trainer = trainer_on(llama, resolved, (model, rows), tmp_path, how)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], abs=1e-5 if precision == "Float32" else 1e-2)


@contextmanager
def room_for(rows: int, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let memory be enough for so many sequences of a pass without gradients; gives the sizes that were tried."""
    forward, sizes = objectives.log_probabilities, []

    def tight(model: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            return forward(model, batch)
        sizes.append(len(batch["input_ids"]))
        if len(batch["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return forward(model, batch)

    with patch.context() as here:
        here.setattr(objectives, "log_probabilities", tight)
        yield sizes


@pytest.mark.slow
def test_where_memory_runs_out_in_scoring_it_goes_in_halves(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolved_task(llama, "DPO", training={"batchSize": 4, "maxSteps": 2})
    how = replace(PASS, tokens=1000)
    model, rows = begun(llama, resolved, prepared("DPO"), how)
    trainer = trainer_on(llama, resolved, (model, rows), tmp_path, how)
    with room_for(2, monkeypatch) as sizes:
        train_to_the_end(trainer, None, Method.LORA)
    assert sizes == [8, 4, 2, 2, 2, 2, 8, 4, 2, 2, 2, 2]
    assert trainer.split is None, "the steps are as planned"
    assert rows.missing("train") == []


@pytest.mark.slow
def test_one_row_that_cannot_be_scored_ends_the_job_as_one_that_cannot_be_trained_on(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolved_task(llama, "DPO")
    begin = begun(llama, resolved, prepared("DPO"))
    trainer = trainer_on(llama, resolved, begin, tmp_path)
    with room_for(0, monkeypatch), pytest.raises(TuneryError, match="not even one row of up to 64 tokens fits"):
        train_to_the_end(trainer, None, Method.LORA)


@pytest.mark.slow
def test_a_step_that_memory_cut_off_does_not_ask_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Scored
) -> None:
    step = SFTTrainer.training_step

    def tight(trainer: Any, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        if trainer.state.global_step == 1 and len(inputs["row"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return step(trainer, model, inputs, *others, **named)

    monkeypatch.setattr(SFTTrainer, "training_step", tight)
    resolved = resolved_task(llama, "KTO", training={"batchSize": 4, "maxSteps": 3})
    trainer = trainer_on(llama, resolved, begun(llama, resolved, prepared("KTO", 12)), tmp_path)
    train_to_the_end(trainer, None, Method.LORA)
    assert trainer.split is not None
    assert trainer.split.batch_size == 1
    assert [len(part) for part in asked] == [4, 4, 4]


@pytest.mark.slow
def test_a_checkpoint_knows_what_was_asked_and_no_more(llama: Path, tmp_path: Path) -> None:
    resolved = resolved_task(llama, "DPO")
    model, rows = begun(llama, resolved, prepared("DPO"))
    trainer_on(llama, resolved, (model, rows), tmp_path / "loop").train()
    rows.store(tmp_path)
    again = task_rows(prepared("DPO"), resolved).known(tmp_path)
    assert again.missing("train") == rows.missing("train") != []
    assert again.missing("evaluation") == []
    assert again.start is None
    started = replace(rows, start=trained_state(model))
    started.store(tmp_path)
    again = task_rows(prepared("DPO"), resolved).known(tmp_path)
    assert again.start is not None
    assert all(torch.equal(again.start[name], tensor) for name, tensor in trained_state(model).items())
    other = replace(prepared("DPO"), train=rows_of("DPO", 9))
    assert len(task_rows(other, resolved).known(tmp_path).missing("train")) == 9
