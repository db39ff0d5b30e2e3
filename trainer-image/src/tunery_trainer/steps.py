"""How many optimizer steps a run takes."""

from __future__ import annotations

import math

from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.resolved import TrainingSettings


def total_steps(rows: int, training: TrainingSettings) -> int:
    """Return the optimizer steps of a run over `rows` sequences, counted as transformers' Trainer does."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(rows / training.batch_size)
    a_pass = max(1, math.ceil(batches / training.gradient_accumulation))
    return max(1, math.ceil((training.epochs or 1.0) * a_pass))


def expected_sequences(report: DatasetReport, options: DataOptions) -> int:
    """Return about how many sequences there will be to train on, before the data set is packed."""
    held_out = options.evaluation_root is None and options.evaluation_split is None
    share = 1 - options.evaluation_fraction if held_out else 1.0
    if not options.packing or report.tokens is None:
        examples = report.tokens.examples if report.tokens else report.rows
        return max(1, round(examples * share))
    return max(1, math.ceil(report.tokens.tokens * share / options.max_length))
