"""How rows lie in sequences, several in one or each alone, and what a task asks of those on either side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.data.pack import pack


@dataclass(frozen=True)
class Layout:
    """How examples are trained on."""

    capacity: int | None
    """Tokens of a packed sequence; None: each example is one."""
    sequences: int

    @property
    def packed(self) -> bool:
        """Whether a sequence holds several examples."""
        return self.capacity is not None


@dataclass(frozen=True)
class Labels:
    """How many examples are not labelled, wanted, and not wanted."""

    none: int
    wanted: int
    unwanted: int


def sequences_of(lengths: Sequence[int], capacity: int | None) -> list[list[int]]:
    """Return sequences of examples of so many tokens each, by their indexes.

    Held-out rows always lie alone: each is measured by itself, and batches of like lengths pad little.
    """
    return [[index] for index in range(len(lengths))] if capacity is None else pack(lengths, capacity)


def with_layout(report: DatasetReport, layout: Layout, labels: Labels) -> DatasetReport:
    """Return `report` with what is known of the sequences to train on; `labels` are those of their examples.

    Raises TuneryError(DatasetInvalid) where all of them are wanted, or none is.
    """
    if report.tokens is None:
        return report
    wanted = _both_kinds(labels) if not labels.none and labels.wanted + labels.unwanted else None
    tokens = dataclasses.replace(report.tokens, sequences=layout.sequences, packed=layout.packed, desirable=wanted)
    return dataclasses.replace(report, tokens=tokens)


def check_held_out(labels: Labels, field: str) -> None:
    """Check that KTO is measured on both kinds of answers; raises TuneryError(DatasetInvalid) naming `field`."""
    if labels.none or (labels.wanted > 0) == (labels.unwanted > 0):
        return
    label, other = ("true", "false") if labels.wanted else ("false", "true")
    drawn = ": at least two, one to train on and one to hold out" if field == "spec.dataset" else ""
    raise TuneryError(
        FailureReason.DATASET_INVALID,
        f"{field}: all {labels.wanted + labels.unwanted} rows that are held out have label {label}; "
        "task KTO is measured on both kinds",
        retry(f"Add rows with label {other}{drawn}"),
    )


def _both_kinds(labels: Labels) -> int:
    """Return how many are wanted."""
    if labels.wanted and labels.unwanted:
        return labels.wanted
    label, other = ("true", "false") if labels.wanted else ("false", "true")
    raise TuneryError(
        FailureReason.DATASET_INVALID,
        f"spec.dataset: all {labels.wanted + labels.unwanted} rows to train on have label {label}; "
        "task KTO learns from both kinds",
        retry(f"Add rows with label {other}"),
        recreate("Set task: SFT to train on good answers alone", "task"),
    )
