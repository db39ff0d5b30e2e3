"""Encoded rows on disk while the pass goes on, and the Arrow files that training maps into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tunery_trainer.data.encode import Encoded

_BATCH_TOKENS = 4_000_000
_LIST = pa.list_(pa.int32())


class TokenStore:
    """Two flat files of int32, tokens and labels, that grow by example; memory holds only digests and lengths."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = (folder / f"{name}.tokens", folder / f"{name}.labels")
        self.digests: list[bytes] = []
        """Of each row."""
        self.rows: list[int] = []
        """Of each example the number of its row, from 0."""
        self.lengths: list[int] = []
        """Of each example its tokens."""

    def __enter__(self) -> Self:
        self._tokens, self._labels = (path.open("wb") for path in self._paths)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._labels.close()

    def add(self, digest: bytes, examples: Sequence[Encoded]) -> None:
        """Append the examples of a row."""
        for example in examples:
            self._tokens.write(example.input_ids.tobytes())
            self._labels.write(example.labels.tobytes())
            self.rows.append(len(self.digests))
            self.lengths.append(len(example.input_ids))
        self.digests.append(digest)

    def write(self, sequences: Sequence[Sequence[int]], path: Path, *, packed: bool) -> None:
        """Write the sequences (each the indexes of its examples, in order) as an Arrow stream.

        Columns `input_ids` and `labels`, lists of int32 of equal length, and, if `packed`, `seq_lengths`, the length
        of each example of the sequence.
        """
        ends = np.cumsum([0, *self.lengths])
        flat = [np.memmap(file, np.int32, "r") for file in self._paths]
        names = ["input_ids", "labels", *(["seq_lengths"] if packed else [])]
        schema = pa.schema([(name, _LIST) for name in names])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _in_batches(sequences, self.lengths):
                rows = [row for sequence in batch for row in sequence]
                offsets = np.cumsum([0] + [sum(self.lengths[row] for row in sequence) for sequence in batch])
                columns = [
                    _lists(offsets, np.concatenate([values[ends[row] : ends[row + 1]] for row in rows]))
                    for values in flat
                ]
                if packed:
                    counts = np.cumsum([0] + [len(sequence) for sequence in batch])
                    columns.append(_lists(counts, np.array([self.lengths[row] for row in rows], np.int32)))
                writer.write_batch(pa.record_batch(columns, schema=schema))

    def remove(self) -> None:
        """Delete both files."""
        for path in self._paths:
            path.unlink()


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
