"""Which examples are trained on, which are held out, and how they lie in sequences: in preflight as in training."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.layout import Labels, Layout, check_held_out, sequences_of, with_layout
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.seen_rows import SeenRows
from tunery_trainer.data.single_pass import Files
from tunery_trainer.data.spill import Column, Records
from tunery_trainer.data.split import UNWANTED, WANTED, held_out

TOGETHER: Final = 1 << 18
"""Examples that are arranged at once: memory does not grow with the rows, and packing them leaves no more room."""

_EXAMPLE: Final = np.dtype([("row", "<u8"), ("length", "<u4"), ("label", "<u4")])
_PACK: Final = struct.Struct("<QII").pack
_LABELS: Final = {None: 0, True: WANTED, False: UNWANTED}


class Counted:
    """What is known of the rows of one side and their examples, without their tokens."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where files without names lie while this lives; None: where temporary ones do."""
        self.rows = SeenRows(folder)
        """Their notes are the labels of their answers."""
        self.examples = Column(_EXAMPLE, folder)
        """Of each its row by number, its tokens (of a pair, those of the chosen answer), and whether it is wanted."""

    def add(self, digest: bytes, examples: Sequence[Encoded]) -> None:
        """Append the examples of a row."""
        labels = 0
        for example in examples:
            label = _LABELS[example.desirable]
            self.examples.append(_PACK(len(self.rows), len(example.input_ids), label))
            labels |= label
        self.rows.add(digest, labels)


@dataclass(frozen=True)
class Block:
    """Examples of one side that stand near each other, and the sequences that they make."""

    numbers: npt.NDArray[np.int64]
    """Of each example its number in the store, ascending. Shape (examples,)."""
    examples: Records
    """What is known of each."""
    sequences: list[list[int]]
    """Of each the indexes of its examples."""


@dataclass(frozen=True)
class Part:
    """The examples that one side of the split uses."""

    source: Counted
    held: npt.NDArray[np.int64]
    """Rows that are held out of `source`, ascending."""
    takes_held: bool
    """Whether it is those, or the others."""

    def chunks(self) -> Iterator[Block]:
        """Yield its examples, in order, in no sequences yet."""
        for index, examples in enumerate(self.source.examples.chunks(TOGETHER)):
            picked = np.flatnonzero(np.isin(examples["row"].astype(np.int64), self.held) == self.takes_held)
            yield Block(picked + index * TOGETHER, examples[picked], [])

    def blocks(self, capacity: int | None) -> Iterator[Block]:
        """Yield its examples in sequences of at most `capacity` tokens; None: each alone."""
        for chunk in self.chunks():
            sequences = sequences_of(chunk.examples["length"].tolist(), capacity)
            yield dataclasses.replace(chunk, sequences=sequences)


@dataclass(frozen=True)
class Arrangement:
    """The examples of both sides."""

    train: Part
    layout: Layout
    """Of those."""
    held: Part
    """Of the evaluation set where there is one, else of the training rows."""
    report: DatasetReport


def arrange(files: Files, options: DataOptions, report: DatasetReport, rows: Counted, apart: Counted) -> Arrangement:
    """Return how the examples of `rows` and of an evaluation set of its own, `apart`, are used.

    Raises:
        TuneryError: DatasetInvalid where too few rows, or of KTO none of one kind, are left on a side.
    """
    nothing = np.empty(0, np.int64)
    drawn = nothing if files.evaluation else held_out(rows.rows, options.evaluation_fraction, options.seed)
    train = Part(rows, drawn, takes_held=False)
    held = Part(apart, nothing, takes_held=False) if files.evaluation else Part(rows, drawn, takes_held=True)
    trained, kept_back = _sums(train), _sums(held)
    layout = _layout(train, trained, options)
    report = with_layout(report, layout, trained.labels)
    check_held_out(kept_back.labels, files.held_field)
    report = _with_tokens(report, trained.tokens, kept_back.tokens)
    return Arrangement(train, layout, held, _with_held_out(report, len(drawn)))


@dataclass(frozen=True)
class _Sums:
    examples: int
    tokens: int
    labels: Labels


def _sums(part: Part) -> _Sums:
    counts, tokens = np.zeros(3, np.int64), 0
    for chunk in part.chunks():
        counts += np.bincount(chunk.examples["label"], minlength=3)
        tokens += int(chunk.examples["length"].sum(dtype=np.int64))
    return _Sums(int(counts.sum()), tokens, Labels(int(counts[0]), int(counts[WANTED]), int(counts[UNWANTED])))


def _layout(part: Part, sums: _Sums, options: DataOptions) -> Layout:
    """Return how training examples lie, packed as `options` ask for it, and how many sequences that makes."""
    if options.packing:
        sequences = sum(len(block.sequences) for block in part.blocks(options.max_length))
        if sequences >= options.min_sequences:
            return Layout(options.max_length, sequences)
    return Layout(None, sums.examples)


def _with_held_out(report: DatasetReport, rows: int) -> DatasetReport:
    if report.tokens is None:
        return report
    return dataclasses.replace(report, tokens=dataclasses.replace(report.tokens, held_out_rows=rows))


def _with_tokens(report: DatasetReport, training: int, held_out: int) -> DatasetReport:
    if report.tokens is None:
        return report
    tokens = dataclasses.replace(report.tokens, training_tokens=training, held_out_tokens=held_out)
    return dataclasses.replace(report, tokens=tokens)
