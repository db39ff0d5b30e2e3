"""How training rows lie in sequences: several in one, or each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.pack import pack


@dataclass(frozen=True)
class Layout:
    """The sequences that are trained on, each the indexes of its examples."""

    packed: bool
    sequences: list[list[int]]


def training_layout(lengths: Sequence[int], options: DataOptions) -> Layout:
    """Return the sequences of training examples of so many tokens each, packed as `options` ask for it."""
    packed = lay(lengths, options.max_length, packed=options.packing)
    if packed.packed and len(packed.sequences) < options.min_sequences:
        return lay(lengths, options.max_length, packed=False)
    return packed


def lay(lengths: Sequence[int], capacity: int, *, packed: bool) -> Layout:
    """Return sequences of at most `capacity` tokens, or, if not packed, of one example each."""
    return Layout(packed, pack(lengths, capacity) if packed else [[index] for index in range(len(lengths))])


def with_layout(report: DatasetReport, layout: Layout) -> DatasetReport:
    """Return `report` with what is known of the sequences."""
    if report.tokens is None:
        return report
    tokens = dataclasses.replace(report.tokens, sequences=len(layout.sequences), packed=layout.packed)
    return dataclasses.replace(report, tokens=tokens)
