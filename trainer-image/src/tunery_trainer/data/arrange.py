"""Which examples are trained on, which are held out, and how they lie in sequences: in preflight as in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.layout import Layout, check_held_out, training_layout, with_layout
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.single_pass import Files
from tunery_trainer.data.split import held_out, kinds_of


class Counted:
    """What is known of the rows of one side and their examples, without their tokens."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []
        """Of each row."""
        self.rows: list[int] = []
        """Of each example the number of its row, from 0."""
        self.lengths: list[int] = []
        """Of each example its tokens; of a pair, those of the chosen answer."""
        self.desirable: list[bool | None] = []
        """Of each example whether it is wanted, where anybody says."""

    def add(self, digest: bytes, examples: Sequence[Encoded]) -> None:
        """Append the examples of a row."""
        for example in examples:
            self.rows.append(len(self.digests))
            self.lengths.append(len(example.input_ids))
            self.desirable.append(example.desirable)
        self.digests.append(digest)

    def kinds(self) -> list[frozenset[bool]]:
        """Return the labels of each row's answers; empty where the task has none."""
        labels: list[list[bool | None]] = [[] for _ in self.digests]
        for row, desirable in zip(self.rows, self.desirable, strict=True):
            labels[row].append(desirable)
        return kinds_of(labels)


@dataclass(frozen=True)
class Arrangement:
    """The examples of both sides, by their numbers."""

    train: list[int]
    layout: Layout
    """Of those; its numbers count in `train`."""
    held: list[int]
    """Of the evaluation set where there is one, else of the training rows."""
    report: DatasetReport


def arrange(files: Files, options: DataOptions, report: DatasetReport, rows: Counted, apart: Counted) -> Arrangement:
    """Return how the examples of `rows` and of an evaluation set of its own, `apart`, are used.

    Raises:
        TrainerError: DatasetInvalid where too few rows, or of KTO none of one kind, are left on a side.
    """
    every = range(len(rows.lengths))
    if files.evaluation:
        train, source, held = list(every), apart, list(range(len(apart.lengths)))
    else:
        drawn = held_out(rows.digests, options.evaluation_fraction, options.seed, rows.kinds())
        source, held = rows, [example for example in every if drawn[rows.rows[example]]]
        train = [example for example in every if not drawn[rows.rows[example]]]
    layout = training_layout([rows.lengths[example] for example in train], options)
    report = with_layout(report, layout, [rows.desirable[example] for example in train])
    report = _with_tokens(report, sum(rows.lengths[each] for each in train), sum(source.lengths[each] for each in held))
    check_held_out([source.desirable[example] for example in held], files.held_field)
    return Arrangement(train, layout, held, report)


def _with_tokens(report: DatasetReport, training: int, held_out: int) -> DatasetReport:
    if report.tokens is None:
        return report
    tokens = dataclasses.replace(report.tokens, training_tokens=training, held_out_tokens=held_out)
    return dataclasses.replace(report, tokens=tokens)
