"""How many rows an optimizer step sees, how often the data is passed, and how many steps that makes.

Small data sets must get steps enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tunery_trainer.settings.types import TrainingSettings

ENOUGH_STEPS: Final = 100
"""Optimizer steps that a run should have; with fewer, the rate has hardly risen before it falls again."""
FEWEST_STEPS: Final = 10
"""With fewer a run is refused, unless its manifest asks for so few."""
MOST_ROWS: Final = 16
"""Rows of an optimizer step where the data has enough of them."""
_FEWEST_ROWS: Final = 4
"""Below this a step follows single rows; the data is rather passed again. A packed row holds many examples."""
MOST_EPOCHS: Final = 3
"""Passes over a small data set, as the guide's preset for instructions makes them."""


@dataclass(frozen=True)
class DataFacts:
    """What the data is like once it is tokenised."""

    sequences: int
    """Rows to train on: of several examples each if packed, else of one."""
    packed: bool
    held_out_share: float | None = None
    """Tokens held out for each token of one pass over the rows to train on; None: not known."""
    step_rows: int | None = None
    """Rows of an optimizer step that a checkpoint fixes; None: they follow from the data."""


@dataclass(frozen=True)
class Sizing:
    """What follows from the data: the rows of an optimizer step, and the passes."""

    rows: int
    epochs: float | None
    """None: the run is as long as maxSteps."""


def size(data: DataFacts, epochs: float | None, max_steps: int | None) -> Sizing:
    """Return how large a step is and how many passes there are; `epochs` and `max_steps` as asked, None if left open.

    The largest step that leaves ENOUGH_STEPS, in one pass if possible. With maxSteps the largest that passes the data
    at most MOST_EPOCHS times.
    """
    if data.step_rows is not None:
        return replace(size(replace(data, step_rows=None), epochs, max_steps), rows=data.step_rows)
    if max_steps is not None:
        return Sizing(_largest(lambda rows: max_steps * rows <= MOST_EPOCHS * data.sequences), None)
    if epochs is not None:
        return Sizing(_enough(data.sequences, epochs), epochs)
    fewest = 1 if data.packed else _FEWEST_ROWS
    for passes in range(1, MOST_EPOCHS + 1):
        rows = _enough(data.sequences, passes)
        if rows >= fewest and passes * math.ceil(data.sequences / rows) >= ENOUGH_STEPS:
            return Sizing(rows, float(passes))
    return Sizing(_enough(data.sequences, MOST_EPOCHS), float(MOST_EPOCHS))


def sequences_to_pack(epochs: float | None) -> int:
    """Return with how many packed sequences there are still ENOUGH_STEPS; with fewer the rows stay alone."""
    return math.ceil(ENOUGH_STEPS / (epochs or 1))


def total_steps(rows: int, training: TrainingSettings) -> int:
    """Return the optimizer steps of a run over `rows` sequences, counted as transformers' Trainer does."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(rows / training.batch_size)
    a_pass = max(1, math.ceil(batches / training.gradient_accumulation))
    return max(1, math.ceil((training.epochs or 1.0) * a_pass))


def _enough(sequences: int, epochs: float) -> int:
    return _largest(lambda rows: epochs * math.ceil(sequences / rows) >= ENOUGH_STEPS)


def _largest(fits: Callable[[int], bool]) -> int:
    """Return the largest power of two up to MOST_ROWS that fits, or 1."""
    rows = MOST_ROWS
    while rows > 1 and not fits(rows):
        rows //= 2
    return rows
