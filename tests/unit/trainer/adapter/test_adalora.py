"""AdaLoRA really reallocates: ranks change, sum to the budget, and the loss counts orthogonality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.continue_from import attach_published, settings_from
from tunery_trainer.adapter.methods.adalora import ORTHOGONALITY_WEIGHT, schedule
from tunery_trainer.adapter.save import published_rank, save_published
from tunery_trainer.model.load import load_base
from tunery_trainer.settings.types import AdaLoraSettings

from kit.training import logits_of, resolved_for, start_for, take_steps, token_rows, train

SPEC: dict[str, Any] = {"method": "AdaLoRA", "adalora": {"initialRank": 6, "targetRank": 4}}
LAYERS = 2 * 7


def ranks_of(model: Any) -> list[int]:
    """The triplets of each layer that were not pruned."""
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


def test_ranks_change_and_sum_to_the_budget(llama: Path) -> None:
    ranks = ranks_of(train(llama, SPEC, steps=20).model)
    assert len(ranks) == LAYERS
    assert sum(ranks) == 4 * LAYERS
    assert len(set(ranks)) > 1


def test_what_is_published_is_a_plain_lora_of_one_rank(llama: Path, tmp_path: Path) -> None:
    run = train(llama, SPEC, steps=20)
    trained, ranks = run.logits(), ranks_of(run.model)
    save_published(run.model, tmp_path, "owner/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["rank_pattern"]) == ("LORA", max(ranks), {})
    assert config["lora_alpha"] == config["r"]
    assert published_rank(run.model) == config["r"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"}
    assert {t.shape[0] if "lora_A" in name else t.shape[1] for name, t in tensors.items()} == {max(ranks)}
    used = [int((t.abs().sum(dim=1) > 0).sum()) for name, t in tensors.items() if "lora_A" in name]
    assert sorted(used) == sorted(ranks), "pruned triplets are left out, and filled up with zeros"
    published = PeftModel.from_pretrained(load_base(llama, run.resolved, "cpu"), str(tmp_path))
    assert (logits_of(published) - trained).abs().max() <= 1e-5
    assert torch.equal(run.logits(), trained), "the model goes on as it was"


def test_a_published_one_is_trained_on_as_lora(llama: Path, tmp_path: Path) -> None:
    run = train(llama, SPEC, steps=20)
    save_published(run.model, tmp_path, "owner/base")
    resolved = resolved_for(llama, {"method": "LoRA"})
    again = settings_from(resolved, load_base(llama, resolved, "cpu"), tmp_path, "owner/base")
    model = attach_published(load_base(llama, again, "cpu"), again, start_for(llama), tmp_path)
    assert (logits_of(model) - run.logits()).abs().max() <= 1e-5


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


def test_gradients_that_overflowed_weigh_nothing(llama: Path) -> None:
    """The first steps in Float16: the scaler skips them, and pruning must not remember them."""
    resolved = resolved_for(llama, SPEC)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, 20))
    hooks = training_hooks(model, resolved)
    assert hooks is not None
    ids = token_rows(7)
    for step in (1, 2, 3):
        model(input_ids=ids, labels=ids).loss.backward()
        if step == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        hooks.after_step(model, step)
        model.zero_grad()
    remembered = hooks.state()
    for name in ("sensitivity", "uncertainty"):
        assert remembered[name]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in remembered[name].values())


@pytest.mark.slow
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
    with pytest.raises(TuneryError, match=r"spec\.adalora: warmupSteps \(10\) and finalSteps \(10\) leave none of"):
        schedule(AdaLoraSettings(6, 4, 10, 10, None), 20)
