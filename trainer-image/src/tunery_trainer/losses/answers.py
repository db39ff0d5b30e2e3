"""Rows of answers that are weighed: what stands beside each of them in a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch

from tunery_api.methods import TrainingTask
from tunery_trainer.data.mask import IGNORED
from tunery_trainer.model.collator import Collator

Row = Mapping[str, Any]
_CONTENT: Final = ("input_ids", "labels", "seq_lengths", "rejected_input_ids", "rejected_labels", "desirable")


class Rows(Protocol):
    """Rows, each with `input_ids` and `labels`, and what its task has beside them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class PairCollator:
    """Makes one batch of both answers: (2 * rows, longest), the chosen ones first.

    Each row has `rejected_input_ids` and `rejected_labels` beside its own, and `reference`, two log-probabilities,
    where they were measured, or `row`, its number.
    """

    collate: Collator

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the batch, with `reference` of shape (2 * rows,) or `row` (rows,)."""
        rejected = [{"input_ids": row["rejected_input_ids"], "labels": row["rejected_labels"]} for row in rows]
        return self.collate([*rows, *rejected]) | _reference(rows)


@dataclass(frozen=True)
class AnswerCollator:
    """Makes one batch of the rows, and inside it another one of their prompts with the answers of other rows.

    Each row has `desirable` and `mismatched_with`, the number of the other row in `source`; and `reference`, the
    log-probabilities of its own and of the other answer, where they were measured, or `row`, its number.
    """

    collate: Collator
    source: Rows
    max_length: int
    """Tokens that a prompt with another answer is cut to."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the batch, with `desirable` (rows,), `reference` (2 * rows,) or `row` (rows,), and `mismatched`."""
        others = [mismatched(row, self.source[row["mismatched_with"]], self.max_length) for row in rows]
        desirable = torch.tensor([bool(row["desirable"]) for row in rows])
        return self.collate(rows) | _reference(rows) | {"desirable": desirable, "mismatched": self.collate(others)}


def _reference(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    if "reference" in rows[0]:
        return {"reference": torch.tensor([row["reference"] for row in rows], dtype=torch.float32).T.flatten()}
    return {"row": torch.tensor([row["row"] for row in rows])} if "row" in rows[0] else {}


def mismatched(row: Row, other: Row, max_length: int) -> dict[str, list[int]]:
    """Return the prompt of `row` with the answer of `other`."""
    own, theirs = answer_start(row["labels"]), answer_start(other["labels"])
    ids = [*row["input_ids"][:own], *other["input_ids"][theirs:]]
    labels = [*[IGNORED] * own, *other["labels"][theirs:]]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def answer_start(labels: Sequence[int]) -> int:
    """Return where the answer begins: at the first label."""
    found = np.flatnonzero(np.asarray(labels) != IGNORED)
    return int(found[0]) if len(found) else len(labels)


def partners(rows: Rows) -> list[int]:
    """Return for each row the one whose answer stands after its prompt: each once, of another prompt where that can be.

    With two rows or more it is never the row itself. Where every prompt is another one, it is the row before.
    """
    same: dict[bytes, list[int]] = {}
    for index in range(len(rows)):
        same.setdefault(_prompt(rows[index]), []).append(index)
    order = [index for group in same.values() for index in group]
    # So far from each row no other of its prompt is left, unless one prompt has more than half of all rows.
    shift = min(max(map(len, same.values())), len(rows) // 2)
    found = [0] * len(rows)
    for place, index in enumerate(order):
        found[index] = order[place - shift]
    return found


def stranger(row: Row, rows: Rows) -> int:
    """Return the first of `rows` that has another prompt than `row`, or the first of all."""
    return next((index for index in range(len(rows)) if _prompt(rows[index]) != _prompt(row)), 0)


def _prompt(row: Row) -> bytes:
    ids = np.asarray(row["input_ids"][: answer_start(row["labels"])], dtype=np.int32)
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def content(row: Row) -> bytes:
    """Return a digest of what a row teaches, the same for its copies; what stands beside it for a task is left out."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _CONTENT:
        values = np.atleast_1d(np.asarray(row.get(name, []), dtype=np.int64))
        digest.update(len(values).to_bytes(8) + values.tobytes())
    return digest.digest()


def sequences_per_row(task: TrainingTask) -> int:
    """Return how many sequences of a row stand in one forward pass."""
    return 2 if task in (TrainingTask.DPO, TrainingTask.ORPO) else 1


def width(row: Row) -> int:
    """Return the tokens that a row takes in a batch: of a pair twice the longer one."""
    if "rejected_input_ids" in row:
        return 2 * max(len(row["input_ids"]), len(row["rejected_input_ids"]))
    return len(row["input_ids"])
