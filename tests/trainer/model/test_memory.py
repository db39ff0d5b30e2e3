"""The memory estimate moves as memory does: with batch, length, quantisation, checkpointing and optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from tunery_api.training import Optimizer
from tunery_trainer.model.load import meta_model
from tunery_trainer.model.memory import MemoryEstimate, MemoryPlan, estimate_memory
from tunery_trainer.settings.units import human_bytes

PLAN = MemoryPlan(2, 64, None, Optimizer.ADAMW, gradient_checkpointing=False, on_gpu=False)


def estimate(folder: Path, plan: MemoryPlan) -> MemoryEstimate:
    """Return the estimate for LoRA of rank 8 on the tiny model."""
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return estimate_memory(get_peft_model(meta_model(folder), config).train(), plan)


def test_weights_and_moments_are_counted_exactly(tiny_model: Path) -> None:
    found = estimate(tiny_model, PLAN)
    trained = 2 * 8 * ((64 + 64) + (64 + 32))
    assert found.adapter == found.gradients == 4 * trained
    assert found.optimizer == 2 * 4 * trained
    assert found.weights == 2 * meta_model(tiny_model).num_parameters()


def test_activations_grow_with_length_and_shrink_with_checkpointing(tiny_model: Path) -> None:
    short, long = estimate(tiny_model, PLAN), estimate(tiny_model, replace(PLAN, length=128))
    assert long.activations_per_row == pytest.approx(2 * short.activations_per_row, rel=0.05)
    saving = estimate(tiny_model, replace(PLAN, gradient_checkpointing=True))
    assert saving.activations_per_row < short.activations_per_row
    assert short.of(2, gradient_checkpointing=True) == saving


def test_a_pair_takes_two_sequences(tiny_model: Path) -> None:
    single, pair = estimate(tiny_model, PLAN), estimate(tiny_model, replace(PLAN, sequences=2))
    both = estimate(tiny_model, replace(PLAN, batch_size=4))
    assert pair.activations_per_row == 2 * single.activations_per_row
    assert (pair.length, pair.total) == (2 * single.length, both.total)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    found = MemoryEstimate(1000, 10, 10, 20, 100, 30, 50, 500, length=64, batch_size=8, gradient_checkpointing=False)
    largest = found.largest_batch(found.total)
    assert largest is not None
    assert largest >= 8
    assert replace(found, batch_size=largest).total <= found.total + 2
    assert replace(found, batch_size=largest + 1).total > found.total
    assert found.largest_batch(1200) is None


def test_bytes_for_people() -> None:
    assert [human_bytes(count) for count in (0, 900, 1536, 3 * 2**30)] == ["0 B", "900 B", "1.5 KiB", "3.0 GiB"]
