"""The loop, through TRL: the loss that is optimised holds the method's own term, once for each optimizer step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from trainer.methods.families import resolved_for, start_for, token_rows
from tunery_trainer.adapter import attach, training_hooks
from tunery_trainer.model import load_base, load_tokenizer
from tunery_trainer.training import AdapterTrainer, LoopParts, LoopSettings

SPEC: dict[str, Any] = {
    "method": "AdaLoRA",
    "adalora": {"initialRank": 6, "targetRank": 4},
    "lora": {"dropout": "0"},
    "training": {"maxSteps": 2, "batchSize": 2, "packing": False},
}


def first_loss(llama: Path, folder: Path, accumulation: int, *, hooked: bool) -> tuple[float, float]:
    """Return the loss that TRL logs for the first step, and the method's own term before it."""
    resolved = resolved_for(llama, SPEC)
    training = replace(resolved.training, gradient_accumulation=accumulation, gradient_checkpointing=False)
    tokenizer = load_tokenizer(llama)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, 2))
    hooks = training_hooks(model, resolved)
    assert hooks is not None
    term = hooks.extra_loss(model)
    assert term is not None
    ids = token_rows(5, rows=8).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    loop = LoopSettings(training, total_steps=2, evaluate_every_steps=None, keep_checkpoints=1, on_gpu=False)
    trainer = AdapterTrainer(model, loop, LoopParts(rows, tokenizer, folder, None, hooks if hooked else None))
    trainer.train()
    return trainer.state.log_history[0]["loss"], term.item()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_optimised_loss_holds_the_orthogonality_term_once(llama: Path, tmp_path: Path, accumulation: int) -> None:
    with_term, term = first_loss(llama, tmp_path, accumulation, hooked=True)
    without, _ = first_loss(llama, tmp_path, accumulation, hooked=False)
    assert term > 0.1
    assert with_term - without == pytest.approx(term, rel=1e-3)
