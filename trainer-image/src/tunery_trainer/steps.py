"""How many optimizer steps a run takes."""

from __future__ import annotations

import math

from tunery_trainer.resolved import TrainingSettings


def total_steps(rows: int, training: TrainingSettings) -> int:
    """Return the optimizer steps of a run over `rows` sequences, counted as transformers' Trainer does."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(rows / training.batch_size)
    a_pass = max(1, math.ceil(batches / training.gradient_accumulation))
    return max(1, math.ceil((training.epochs or 1.0) * a_pass))
