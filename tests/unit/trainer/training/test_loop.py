"""The loop, through TRL: the loss that is optimised holds the method's own term, once for each optimizer step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from kit.training import resolved_for, start_for, token_rows

SPEC: dict[str, Any] = {
    "method": "AdaLoRA",
    "adalora": {"initialRank": 6, "targetRank": 4},
    "lora": {"dropout": 0},
    "training": {"maxSteps": 2, "batchSize": 2, "packing": False},
}


def parts(llama: Path, folder: Path) -> LoopParts:
    """Return eight rows, and a measure of nothing."""
    tokenizer = load_tokenizer(llama)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = token_rows(5, rows=8).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    return LoopParts(rows, tokenizer, folder, lambda step: {"loss": 1.0})


def first_loss(llama: Path, folder: Path, accumulation: int, *, hooked: bool) -> tuple[float, float]:
    """Return the loss that TRL logs for the first step, and the method's own term before it."""
    resolved = resolved_for(llama, SPEC)
    training = replace(resolved.training, gradient_accumulation=accumulation, gradient_checkpointing=False)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, 2))
    hooks = training_hooks(model, resolved)
    assert hooks is not None
    term = hooks.extra_loss(model)
    assert term is not None
    loop = LoopSettings(training, total_steps=2, keep_checkpoints=1, on_gpu=False)
    trainer = AdapterTrainer(model, loop, replace(parts(llama, folder), hooks=hooks if hooked else None))
    trainer.train()
    return trainer.state.log_history[0]["loss"], term.item()


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_optimised_loss_holds_the_orthogonality_term_once(llama: Path, tmp_path: Path, accumulation: int) -> None:
    with_term, term = first_loss(llama, tmp_path, accumulation, hooked=True)
    without, _ = first_loss(llama, tmp_path, accumulation, hooked=False)
    assert term > 0.1
    assert with_term - without == pytest.approx(term, rel=1e-3)


def resumable(llama: Path, folder: Path, steps: int, **changes: Any) -> AdapterTrainer:
    """Return the trainer of so many steps on a plain LoRA."""
    resolved = resolved_for(llama, {"training": SPEC["training"] | {"maxSteps": steps}})
    training = replace(resolved.training, gradient_checkpointing=False)
    loop = LoopSettings(training, total_steps=steps, keep_checkpoints=1, on_gpu=False)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, steps))
    return AdapterTrainer(model, replace(loop, **changes), parts(llama, folder))


@pytest.mark.slow
def test_a_checkpoint_does_not_say_when_to_log(llama: Path, tmp_path: Path) -> None:
    """transformers takes its state whole from the checkpoint, with the other job's intervals."""
    source = resumable(llama, tmp_path, 2)
    source.train()
    # 3,000 steps are logged at every third, whatever the end of this one is.
    longer = resumable(llama, tmp_path, 8, total_steps=3000, evaluated_after=frozenset({4, 8}))
    longer.train(resume_from_checkpoint=str(source.save_now()))
    told = longer.state.log_history
    assert [entry["step"] for entry in told if "loss" in entry] == [1, 2, 3, 6]
    assert [entry["step"] for entry in told if "eval_loss" in entry] == [4, 8]
