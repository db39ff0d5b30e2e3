"""AdaLoRA really reallocates: ranks change, sum to the budget, and the loss counts orthogonality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.methods.families import resolved_for, start_for, take_steps, token_rows, train
from tunery_trainer.adapter import attach, save_published, training_hooks
from tunery_trainer.errors import TrainerError
from tunery_trainer.methods.adalora import ORTHOGONALITY_WEIGHT, schedule
from tunery_trainer.model import load_base
from tunery_trainer.resolved import AdaLoraSettings

SPEC: dict[str, Any] = {"method": "AdaLoRA", "adalora": {"initialRank": 6, "targetRank": 4}}
LAYERS = 2 * 7


def test_ranks_change_and_sum_to_the_budget(llama: Path, tmp_path: Path) -> None:
    run = train(llama, SPEC, steps=20)
    save_published(run.model, tmp_path, "owner/base")
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    ranks = [sum(kept) for kept in pattern.values()]
    assert len(ranks) == LAYERS
    assert sum(ranks) == 4 * LAYERS
    assert len(set(ranks)) > 1


def test_the_loss_term_is_that_of_the_paper(llama: Path) -> None:
    resolved = resolved_for(llama, SPEC)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
    hooks = training_hooks(model, resolved)
    assert hooks is not None
    term = hooks.extra_loss(model)
    assert term is not None
    ids = token_rows(7)
    with torch.no_grad():
        with_term = model(input_ids=ids, labels=ids).loss  # PEFT adds the term where a loop reads outputs.loss
        without = model.base_model.model(input_ids=ids, labels=ids).loss
    assert term.item() == pytest.approx((with_term - without).item(), rel=1e-4)
    factors = [p for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    grams = [p @ p.T if p.shape[0] == 6 else p.T @ p for p in factors]
    expected = ORTHOGONALITY_WEIGHT * sum((gram - torch.eye(6)).norm() for gram in grams) / len(grams)
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    assert term.requires_grad


def test_a_resume_prunes_as_one_run_would(llama: Path) -> None:
    whole = train(llama, SPEC, steps=20, learning_rate=0.0)
    first = train(llama, SPEC, steps=20, learning_rate=0.0)
    hooks = training_hooks(first.model, first.resolved)
    assert hooks is not None
    kept = hooks.state()
    resolved = resolved_for(llama, SPEC)
    again = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, 20))
    restored = training_hooks(again, resolved)
    assert restored is not None
    restored.load_state(kept)
    assert again.peft_config["default"].rank_pattern == whole.model.peft_config["default"].rank_pattern
    for name, tensor in kept["sensitivity"].items():
        assert torch.equal(restored.state()["sensitivity"][name], tensor)
    take_steps(again, resolved, steps=2)


@pytest.mark.parametrize(
    ("asked", "total", "steps"),
    [
        pytest.param((None, None, None), 300, (30, 100, 3), id="defaults"),
        pytest.param((None, None, None), 5, (0, 1, 1), id="few-steps"),
        pytest.param((None, None, None), 1, (0, 0, 1), id="one-step"),
        pytest.param((5, 10, 2), 300, (5, 10, 2), id="asked"),
        pytest.param((0, 0, None), 50, (0, 0, 1), id="zero-is-asked-too"),
    ],
)
def test_the_schedule(asked: tuple[Any, Any, Any], total: int, steps: tuple[int, int, int]) -> None:
    plan = schedule(AdaLoraSettings(6, 4, *asked), total)
    assert (plan.warmup, plan.final, plan.every) == steps


def test_a_schedule_without_room_is_refused() -> None:
    with pytest.raises(TrainerError, match=r"spec\.adalora: warmupSteps \(10\) and finalSteps \(10\) leave none of"):
        schedule(AdaLoraSettings(6, 4, 10, 10, None), 20)
