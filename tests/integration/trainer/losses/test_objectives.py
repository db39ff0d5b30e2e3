"""What DPO, ORPO and KTO minimise is what TRL's trainers of these names minimise: equal loss, equal gradients."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tunery_trainer.adapter.attach import attach
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.losses.answers import partners
from tunery_trainer.losses.evaluation import Pass
from tunery_trainer.losses.lm_head import head
from tunery_trainer.losses.objectives import Compared, log_odds_ratio, objective_of
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.training.reference_scores import Scoring, task_rows

from kit.preferences import PASS, REPORT, begun, columns, moved, prepared, resolved_task, rows_of, trainer_on
from kit.training import start_for

PROMPTS = ["w3 w4 w5", "w6 w7", "w8 w9 w10 w11", "w12"]
CHOSEN = ["w20 w21 w22", "w23", "w24 w25", "w26 w27 w28 w29 w30"]
REJECTED = ["w40", "w41 w42 w43 w44", "w45 w46", "w47 w48"]
SHARED: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
}

Gradients = dict[str, torch.Tensor]


def texts(answers: list[str]) -> list[str]:
    return [f" {answer}" for answer in answers]


def gradients_of(model: Any, loss: torch.Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and ".default" in name}


def ours(model: Any, rows: Dataset, resolved: RunSettings, start: Any) -> tuple[float, Gradients]:
    """Return loss and gradients of all rows in one step; `start` makes the adapter what the reference is, and back."""
    objective = objective_of(resolved)
    there = task_rows(PreparedData(rows, rows, REPORT, from_cache=False), resolved)
    if isinstance(objective, Compared):
        back = start(model)
        there = there.scored(model, Scoring(objective, Pass(pad_token_id=0)), range(len(rows)))
        back()
    batch = objective.collator(Collator(0), there.train)([there.train[index] for index in range(len(rows))])
    if isinstance(objective, Compared):
        (batch,) = there.compared([batch], model, Scoring(objective, Pass(pad_token_id=0)))
    with head(model):
        here = objective.at(objective.totals(model, [batch]))
        outcome = here.outcome(model, batch)
        loss = (outcome.sums / here.counts(batch).sum(0)).sum()
        return loss.item(), gradients_of(model, loss)


def at_start(state: Gradients) -> Any:
    """Return what gives the adapter this state for a while."""

    def put(model: Any) -> Any:
        now = {name: p.data for name, p in model.named_parameters() if name in state}
        parameters = dict(model.named_parameters())

        def back() -> None:
            for name, tensor in now.items():
                parameters[name].data = tensor

        for name, tensor in state.items():
            parameters[name].data = tensor.clone()
        return back

    return put


def adapted(llama: Path, resolved: RunSettings, *, fresh: bool) -> tuple[Any, Any]:
    """Return a model with an adapter as it is before training, fresh or trained before, and what it was then."""
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, 2))
    if not fresh:
        moved(model)
    return model, {name: p.data.clone() for name, p in model.named_parameters() if p.requires_grad}


def tokenizer_of(llama: Path) -> Any:
    tokenizer = load_tokenizer(llama)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert max(gradient.abs().max().item() for gradient in expected[1].values()) > 1e-3
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fresh", [True, False], ids=["base", "continued"])
@pytest.mark.parametrize(("ours_is", "theirs_is"), [("Sigmoid", "sigmoid"), ("Hinge", "hinge"), ("IPO", "ipo")])
def test_dpo_is_that_of_trl(llama: Path, tmp_path: Path, ours_is: str, theirs_is: str, *, fresh: bool) -> None:
    resolved = resolved_task(llama, "DPO", preference={"lossType": ours_is, "beta": 0.3})
    model, start = adapted(llama, resolved, fresh=fresh)
    data = Dataset.from_dict({"prompt": PROMPTS, "chosen": texts(CHOSEN), "rejected": texts(REJECTED)})
    config = DPOConfig(output_dir=str(tmp_path), beta=0.3, loss_type=[theirs_is], max_length=None, **SHARED)
    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer_of(llama))
    moved(model, seed=9)
    rows = list(trainer.train_dataset)
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    theirs = loss.item(), gradients_of(model, loss)
    good, bad = ([(row["prompt_ids"], row[name]) for row in rows] for name in ("chosen_ids", "rejected_ids"))
    same(ours(model, Dataset.from_dict(columns(good) | columns(bad, "rejected_")), resolved, at_start(start)), theirs)


def test_orpo_is_that_of_trl(llama: Path, tmp_path: Path) -> None:
    resolved = resolved_task(llama, "ORPO", preference={"beta": 0.3})
    model, start = adapted(llama, resolved, fresh=False)
    data = Dataset.from_dict({"prompt": PROMPTS, "chosen": texts(CHOSEN), "rejected": texts(REJECTED)})
    config = ORPOConfig(output_dir=str(tmp_path), beta=0.3, max_length=64, **SHARED)
    trainer = ORPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer_of(llama))
    rows = list(trainer.train_dataset)
    loss, _ = trainer.get_batch_loss_metrics(model, trainer.data_collator(rows))
    theirs = loss.item(), gradients_of(model, loss)
    names = {"input_ids": "chosen_input_ids", "labels": "chosen_labels"}
    names |= {f"rejected_{name}": f"rejected_{name}" for name in ("input_ids", "labels")}
    same(
        ours(
            model, Dataset.from_dict({to: [row[name] for row in rows] for to, name in names.items()}), resolved, start
        ),
        theirs,
    )


@pytest.mark.parametrize("fresh", [True, False], ids=["base", "continued"])
def test_kto_is_that_of_trl(llama: Path, tmp_path: Path, *, fresh: bool) -> None:
    blocks = {"beta": 0.3, "desirableWeight": 1.5, "undesirableWeight": 0.7}
    resolved = resolved_task(llama, "KTO", preference=blocks)
    model, start = adapted(llama, resolved, fresh=fresh)
    labels = [True, False, True, False]
    data = Dataset.from_dict({"prompt": PROMPTS, "completion": texts(CHOSEN), "label": labels})
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    config = KTOConfig(output_dir=str(tmp_path), max_length=None, **weights, **SHARED)
    trainer = KTOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer_of(llama))
    moved(model, seed=2, by=0.1)
    rows = list(trainer.train_dataset)
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    assert trainer._metrics["train"]["kl"][-1] > 0.01, "the reference point must be seen to count"
    theirs = loss.item(), gradients_of(model, loss)
    own = columns([(row["prompt_ids"], row["completion_ids"]) for row in rows])
    same(ours(model, Dataset.from_dict(own | {"desirable": labels}), resolved, at_start(start)), theirs)


def weights_after(llama: Path, folder: Path, task: str, split: tuple[int, int]) -> Gradients:
    """Return the adapter after two steps of four rows in so many forward passes."""
    training = {"batchSize": split[0], "gradientAccumulation": split[1], "learningRate": 1e-2}
    resolved = resolved_task(llama, task, training=training)
    trainer = trainer_on(llama, resolved, begun(llama, resolved, prepared(task)), folder)
    trainer.train()
    return {name: p.data.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.slow(fast=["SFT"])
@pytest.mark.parametrize("task", ["SFT", "DPO", "ORPO", "KTO"])
def test_a_step_is_the_same_however_its_rows_are_split(llama: Path, tmp_path: Path, task: str) -> None:
    """Answers differ in length: a mean of means, or over tokens instead of pairs, would not be the same."""
    whole = weights_after(llama, tmp_path, task, (4, 1))
    for split in ((2, 2), (1, 4)):
        for name, parameter in weights_after(llama, tmp_path, task, split).items():
            torch.testing.assert_close(parameter, whole[name], atol=2e-5, rtol=1e-3, msg=f"{split}: {name}")


@pytest.mark.parametrize(
    ("task", "blocks", "loss"),
    [
        ("DPO", {}, math.log(2)),
        ("DPO", {"lossType": "Hinge"}, 1.0),
        ("DPO", {"lossType": "IPO", "beta": 0.25}, 4.0),
        ("KTO", {"undesirableWeight": 2}, 0.5 * (3 + 2 * 2) / 5),
    ],
)
def test_nothing_is_preferred_before_training(
    llama: Path, tmp_path: Path, task: str, blocks: dict[str, Any], loss: float
) -> None:
    resolved = resolved_task(llama, task, preference=blocks)
    model, rows = begun(llama, resolved, prepared(task))
    found = rows.measure(model, objective_of(resolved), PASS).metrics
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    assert (found["reward_accuracy"], found["reward_margin"]) == (0, 0)


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_the_reference_is_the_base_also_where_the_adapter_changes_it(llama: Path, init: str) -> None:
    """With the adapter switched off such a base is another model, and a preference would be there before training."""
    resolved = resolved_task(llama, "DPO", lora={"dropout": 0, "init": init})
    model, rows = begun(llama, resolved, prepared("DPO"))
    assert rows.measure(model, objective_of(resolved), PASS).metrics["loss"] == pytest.approx(math.log(2), abs=1e-4)
    with model.disable_adapter():
        off = rows.measure(model, objective_of(resolved), PASS).metrics["loss"]
    assert off != pytest.approx(math.log(2), abs=1e-2)


def test_rewards_are_those_of_the_rows(llama: Path) -> None:
    """Said again in plain PyTorch, one answer at a time."""
    resolved = resolved_task(llama, "DPO")
    model, rows = begun(llama, resolved, prepared("DPO"))
    moved(model)
    found = rows.measure(model, objective_of(resolved), PASS).metrics
    margins = []
    for row in rows.evaluation:
        sides = [(row["input_ids"], row["labels"]), (row["rejected_input_ids"], row["rejected_labels"])]
        rewards = []
        for ids, labels in sides:
            now = plain_log_probability(model, ids, labels)
            with model.disable_adapter():
                rewards.append(0.1 * (now - plain_log_probability(model, ids, labels)))
        margins.append(rewards[0] - rewards[1])
    assert 0 < found["reward_accuracy"] < 1, "both kinds must be there for the test to say something"
    assert found["reward_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    assert found["reward_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert found["loss"] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def plain_log_probability(model: Any, ids: list[int], labels: list[int]) -> float:
    logs = model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[place - 1, label]) for place, label in enumerate(labels) if label != -100)


def test_odds_of_a_certain_answer_have_a_gradient() -> None:
    means = torch.tensor([0.0, -20.0, -1e-9, -0.5], requires_grad=True)
    log_odds_ratio(means).sum().backward()
    assert means.grad is not None
    assert torch.isfinite(means.grad).all()


@pytest.mark.parametrize("prompts", ["abcdef", "aabbccdd", "aaab", "abac", "aa", "aaaa", "aaaaab"])
def test_each_answer_stands_after_one_other_prompt(prompts: str) -> None:
    rows = [{"input_ids": [ord(letter), 7], "labels": [-100, 7]} for letter in prompts]
    found = partners(rows)
    assert sorted(found) == list(range(len(prompts))), "each answer once"
    assert all(other != index for index, other in enumerate(found))
    most = max(prompts.count(letter) for letter in prompts)
    if 2 * most <= len(prompts):
        assert all(prompts[other] != prompts[index] for index, other in enumerate(found))
    if most == 1:
        assert found == [(index - 1) % len(prompts) for index in range(len(prompts))], "as TRL"


def test_a_single_held_out_answer_is_compared_with_a_training_row(llama: Path) -> None:
    """Its own answer is no mismatched one: its loss could never fall."""
    resolved = resolved_task(llama, "KTO")
    train = rows_of("KTO", 4)
    data = replace(prepared("KTO"), train=train, evaluation=rows_of("KTO", 1, seed=31))
    _, rows = begun(llama, resolved, data)
    own, other = rows.evaluation[0], rows.others[rows.evaluation[0]["mismatched_with"]]
    assert other["input_ids"] == train[0]["input_ids"] != own["input_ids"]
