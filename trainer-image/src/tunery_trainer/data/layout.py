"""How training rows lie in sequences: several in one, or each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tunery_api.reasons import FailureReason
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.pack import pack
from tunery_trainer.errors import TrainerError


@dataclass(frozen=True)
class Layout:
    """The sequences that are trained on, each the indexes of its examples."""

    packed: bool
    sequences: list[list[int]]


def training_layout(lengths: Sequence[int], options: DataOptions) -> Layout:
    """Return the sequences of training examples of so many tokens each, packed as `options` ask for it."""
    if options.packing:
        sequences = pack(lengths, options.max_length)
        if len(sequences) >= options.min_sequences:
            return Layout(packed=True, sequences=sequences)
    return alone(len(lengths))


def alone(examples: int) -> Layout:
    """Return sequences of one example each.

    Held-out rows always lie so: each is measured by itself, and batches of like lengths pad little.
    """
    return Layout(packed=False, sequences=[[index] for index in range(examples)])


def with_layout(report: DatasetReport, layout: Layout, desirable: Sequence[bool | None]) -> DatasetReport:
    """Return `report` with what is known of the sequences; `desirable` says of each example whether it is wanted.

    Raises TrainerError(DatasetInvalid) where all of them are wanted, or none is.
    """
    if report.tokens is None:
        return report
    wanted = _both_kinds(desirable) if desirable and None not in desirable else None
    tokens = dataclasses.replace(report.tokens, sequences=len(layout.sequences), packed=layout.packed, desirable=wanted)
    return dataclasses.replace(report, tokens=tokens)


def check_held_out(desirable: Sequence[bool | None], field: str) -> None:
    """Check that KTO is measured on both kinds of answers; raises TrainerError(DatasetInvalid) naming `field`."""
    if not desirable or None in desirable or 0 < sum(map(bool, desirable)) < len(desirable):
        return
    label, other = ("true", "false") if desirable[0] else ("false", "true")
    drawn = ": there have to be two at least, one to train on and one to hold out" if field == "spec.dataset" else ""
    raise TrainerError(
        FailureReason.DATASET_INVALID,
        f"{field}: all {len(desirable)} rows that are held out have label {label}; task KTO is measured on both kinds",
        f"Add rows with label {other}{drawn}.",
    )


def _both_kinds(desirable: Sequence[bool | None]) -> int:
    """Return how many are wanted."""
    wanted = sum(map(bool, desirable))
    if 0 < wanted < len(desirable):
        return wanted
    label, other = ("true", "false") if wanted else ("false", "true")
    raise TrainerError(
        FailureReason.DATASET_INVALID,
        f"spec.dataset: all {len(desirable)} rows to train on have label {label}; task KTO learns from both kinds",
        f"Add rows with label {other}, and retry; good answers alone are for task: SFT, in a new job.",
    )
