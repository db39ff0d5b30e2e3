"""Encoded rows on disk while the pass goes on, and the Arrow files that training maps into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tunery_api.preference import TrainingTask
from tunery_trainer.data.arrange import Counted
from tunery_trainer.data.encode import Encoded

_BATCH_TOKENS = 4_000_000
_LIST = pa.list_(pa.int32())


class RowKind(Enum):
    """What an example holds."""

    ONE = "one"
    """Tokens to learn."""
    PAIR = "pair"
    """Two answers."""
    LABELLED = "labelled"
    """An answer that is wanted or not."""

    @property
    def sides(self) -> tuple[str, ...]:
        """What the columns of each of its texts begin with."""
        return ("", "rejected_") if self is RowKind.PAIR else ("",)


def row_kind(task: TrainingTask) -> RowKind:
    """What an example of a task holds."""
    if task is TrainingTask.SFT:
        return RowKind.ONE
    return RowKind.LABELLED if task is TrainingTask.KTO else RowKind.PAIR


class _Side:
    """Two flat files of int32, tokens and labels, that grow by text."""

    def __init__(self, folder: Path, name: str, prefix: str) -> None:
        self._paths = (folder / f"{name}.{prefix}tokens", folder / f"{name}.{prefix}labels")
        self.columns = (f"{prefix}input_ids", f"{prefix}labels")
        self.lengths: list[int] = []
        """Of each text its tokens."""

    def open(self) -> None:
        self._tokens, self._labels = (path.open("wb") for path in self._paths)

    def close(self) -> None:
        self._tokens.close()
        self._labels.close()

    def add(self, text: Encoded) -> None:
        self._tokens.write(text.input_ids.tobytes())
        self._labels.write(text.labels.tobytes())
        self.lengths.append(len(text.input_ids))

    def reader(self) -> Callable[[Sequence[Sequence[int]]], list[pa.ListArray]]:
        """Return what gives the two columns of a batch of sequences, each the indexes of its texts."""
        ends = np.cumsum([0, *self.lengths])
        flat = [np.memmap(file, np.int32, "r") for file in self._paths]

        def read(batch: Sequence[Sequence[int]]) -> list[pa.ListArray]:
            texts = [text for sequence in batch for text in sequence]
            offsets = np.cumsum([0] + [sum(self.lengths[text] for text in sequence) for sequence in batch])
            stretches = ([values[ends[text] : ends[text + 1]] for text in texts] for values in flat)
            return [_lists(offsets, np.concatenate(stretch)) for stretch in stretches]

        return read

    def remove(self) -> None:
        for path in self._paths:
            path.unlink()


class TokenStore(Counted):
    """Examples on disk, in flat files that grow by example; memory holds only what is counted."""

    def __init__(self, folder: Path, name: str, kind: RowKind) -> None:
        super().__init__()
        self._kind = kind
        self._sides = tuple(_Side(folder, name, prefix) for prefix in kind.sides)

    def __enter__(self) -> Self:
        for side in self._sides:
            side.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for side in self._sides:
            side.close()

    def add(self, digest: bytes, examples: Sequence[Encoded]) -> None:
        """Append the examples of a row."""
        for example in examples:
            for side, text in zip(self._sides, example.sides, strict=True):
                side.add(text)
        super().add(digest, examples)

    def write(self, sequences: Sequence[Sequence[int]], path: Path, *, packed: bool) -> None:
        """Write the sequences (each the indexes of its examples, in order) as an Arrow stream.

        Columns `input_ids` and `labels`, lists of int32 of equal length, and, if `packed`, `seq_lengths`, the length
        of each example of the sequence. Of pairs also `rejected_input_ids` and `rejected_labels`; of answers that are
        wanted or not `desirable`.
        """
        readers, schema = [side.reader() for side in self._sides], self._schema(packed=packed)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _in_batches(sequences, self.lengths):
                columns: list[pa.Array] = [column for read in readers for column in read(batch)]
                examples = [example for sequence in batch for example in sequence]
                if packed:
                    counts = np.cumsum([0] + [len(sequence) for sequence in batch])
                    columns.append(_lists(counts, np.array([self.lengths[example] for example in examples], np.int32)))
                if self._kind is RowKind.LABELLED:
                    columns.append(pa.array([self.desirable[example] for example in examples], pa.bool_()))
                writer.write_batch(pa.record_batch(columns, schema=schema))

    def _schema(self, *, packed: bool) -> pa.Schema:
        lists = [*(name for side in self._sides for name in side.columns), *(["seq_lengths"] if packed else [])]
        flags = [("desirable", pa.bool_())] if self._kind is RowKind.LABELLED else []
        return pa.schema([*((name, _LIST) for name in lists), *flags])

    def remove(self) -> None:
        """Delete the files."""
        for side in self._sides:
            side.remove()


def _lists(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int32]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))


def _in_batches(sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Sequence[Sequence[int]]]:
    """Consecutive sequences of about _BATCH_TOKENS tokens together."""
    batches, start, tokens = [], 0, 0
    for index, sequence in enumerate(sequences):
        tokens += sum(lengths[row] for row in sequence)
        if tokens >= _BATCH_TOKENS:
            batches.append(sequences[start : index + 1])
            start, tokens = index + 1, 0
    return [*batches, sequences[start:]] if start < len(sequences) else batches
