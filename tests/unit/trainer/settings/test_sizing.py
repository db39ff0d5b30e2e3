"""Small data sets get steps enough, at a rate above 0, and preflight knows how many there will be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tunery_api.training import Scheduler
from tunery_trainer.adapter.attach import attach
from tunery_trainer.model.load import load_base, load_tokenizer, model_facts
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.sizing import ENOUGH_STEPS, MOST_EPOCHS, DataFacts, sequences_to_pack, size
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from kit.training import CPU, resolved_for, spec_of, start_for, token_rows


@pytest.mark.parametrize(
    ("sequences", "packed", "rows", "epochs"),
    [
        pytest.param(10, False, 1, 3, id="10 rows"),
        pytest.param(48, False, 1, 3, id="50 rows"),
        pytest.param(95, False, 2, 3, id="100 rows"),
        pytest.param(190, False, 4, 3, id="200 rows"),
        pytest.param(475, False, 4, 1, id="500 rows"),
        pytest.param(950, False, 8, 1, id="1,000 rows"),
        pytest.param(4750, False, 16, 1, id="5,000 rows"),
        pytest.param(100, True, 1, 1, id="100 packed sequences"),
        pytest.param(342, True, 2, 1, id="342 packed sequences"),
        pytest.param(50_000, True, 16, 1, id="many"),
    ],
)
def test_what_data_gets(sequences: int, packed: bool, rows: int, epochs: int) -> None:
    sizing = size(DataFacts(sequences, packed), None, None)
    assert (sizing.rows, sizing.epochs) == (rows, epochs)


@pytest.mark.parametrize("sequences", [1, 7, 33, 100, 101, 800, 12_345])
@pytest.mark.parametrize("packed", [True, False])
def test_there_are_enough_steps_unless_there_are_too_few_rows(sequences: int, packed: bool) -> None:
    sizing = size(DataFacts(sequences, packed), None, None)
    assert sizing.epochs is not None
    steps = sizing.epochs * math.ceil(sequences / sizing.rows)
    assert steps >= ENOUGH_STEPS or (sizing.epochs, sizing.rows) == (MOST_EPOCHS, 1)


def test_what_is_asked_for_is_kept() -> None:
    data = DataFacts(200, packed=False)
    assert size(data, 1.0, None).epochs == 1.0
    assert size(data, 1.0, None).rows == 2
    assert size(data, None, 30).epochs is None
    assert size(data, None, 30).rows == 16
    assert size(data, None, 1000).rows == 1
    assert sequences_to_pack(None) == 100
    assert sequences_to_pack(3.0) == 34


@pytest.mark.parametrize(
    ("training", "batch", "accumulation"),
    [
        ({}, 4, 2),
        ({"batchSize": 8}, 8, 1),
        ({"batchSize": 2}, 2, 4),
        ({"gradientAccumulation": 4}, 2, 4),
        ({"gradientAccumulation": 32}, 1, 32),
        ({"batchSize": 5, "gradientAccumulation": 3}, 5, 3),
    ],
)
def test_what_the_manifest_leaves_open_makes_up_the_step(
    llama: Path, training: dict[str, Any], batch: int, accumulation: int
) -> None:
    spec = spec_of({"method": "LoRA", "training": training})
    chosen = Chosen(DataFacts(950, packed=False))
    found = resolve(spec, model_facts(llama), CPU, method_choices(spec, 1000, CPU)[0], chosen).training
    assert (found.batch_size, found.gradient_accumulation) == (batch, accumulation)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_rate_is_above_0_at_every_step(llama: Path, tmp_path: Path, steps: int, scheduler: Scheduler) -> None:
    resolved = resolved_for(llama, {"method": "LoRA", "training": {"maxSteps": steps, "packing": False}})
    training = replace(resolved.training, gradient_checkpointing=False, scheduler=scheduler, batch_size=1)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, steps))
    rows = Dataset.from_dict({"input_ids": token_rows(5).tolist(), "labels": token_rows(5).tolist()})
    loop = LoopSettings(training, total_steps=steps, keep_checkpoints=1, on_gpu=False)
    trainer = AdapterTrainer(model, loop, LoopParts(rows, load_tokenizer(llama), tmp_path, None))
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(rates) == steps
    assert min(rates) > 0
    assert max(rates) == pytest.approx(training.learning_rate, rel=0.15)
