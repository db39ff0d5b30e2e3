"""Encoded rows on disk while the pass goes on, and the Arrow files that training maps into memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tunery_api.methods import TrainingTask
from tunery_trainer.data.arrange import Block, Counted
from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.spill import Column
from tunery_trainer.data.split import WANTED

_BATCH_TOKENS: Final = 1_000_000
_LIST: Final = pa.list_(pa.int32())
_TEXT: Final = np.dtype([("start", "<u8"), ("length", "<u4")])
_PACK: Final = struct.Struct("<QI").pack


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
        self._texts = Column(_TEXT, folder)
        self._end = 0

    def open(self) -> None:
        self._files = [path.open("w+b", buffering=1 << 20) for path in self._paths]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def add(self, text: Encoded) -> None:
        for file, values in zip(self._files, (text.input_ids, text.labels), strict=True):
            file.write(values.tobytes())
        self._texts.append(_PACK(self._end, len(text.input_ids)))
        self._end += len(text.input_ids)

    def reader(self, numbers: npt.NDArray[np.int64]) -> Callable[[Sequence[Sequence[int]]], list[pa.ListArray]]:
        """Return what gives the two columns of a batch of sequences, each the indexes within `numbers` of its texts.

        It reads what it needs and maps nothing: pages of a mapping count as the process's own memory.
        """
        texts = self._texts.read(int(numbers[0]), int(numbers[-1]) + 1)[numbers - numbers[0]]
        starts, lengths = texts["start"].tolist(), texts["length"].tolist()

        def read(batch: Sequence[Sequence[int]]) -> list[pa.ListArray]:
            chosen = [index for sequence in batch for index in sequence]
            offsets = np.cumsum([0] + [sum(lengths[index] for index in sequence) for sequence in batch])
            return [_lists(offsets, _joined(file, chosen)) for file in self._files]

        def _joined(file: IO[bytes], chosen: Sequence[int]) -> npt.NDArray[np.int32]:
            file.flush()
            size, descriptor = np.dtype(np.int32).itemsize, file.fileno()
            parts = (os.pread(descriptor, size * lengths[index], size * starts[index]) for index in chosen)
            return np.frombuffer(b"".join(parts), np.int32)

        return read

    def remove(self) -> None:
        for path in self._paths:
            path.unlink()


class TokenStore(Counted):
    """Examples on disk, in flat files that grow by example."""

    def __init__(self, folder: Path, name: str, kind: RowKind) -> None:
        super().__init__(folder)
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

    def write(self, blocks: Iterable[Block], path: Path, *, packed: bool) -> None:
        """Write the sequences of blocks of this store's examples as an Arrow stream.

        Columns `input_ids` and `labels`, lists of int32 of equal length, and, if `packed`, `seq_lengths`, the length
        of each example of the sequence. Of pairs also `rejected_input_ids` and `rejected_labels`; of answers that are
        wanted or not `desirable`.
        """
        schema = self._schema(packed=packed)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for block in blocks:
                if block.sequences:
                    for columns in self._columns(block, packed=packed):
                        writer.write_batch(pa.record_batch(columns, schema=schema))

    def _columns(self, block: Block, *, packed: bool) -> Iterator[list[pa.Array]]:
        readers = [side.reader(block.numbers) for side in self._sides]
        lengths = block.examples["length"].tolist()
        for batch in _in_batches(block.sequences, lengths):
            columns: list[pa.Array] = [column for read in readers for column in read(batch)]
            examples = [example for sequence in batch for example in sequence]
            if packed:
                counts = np.cumsum([0] + [len(sequence) for sequence in batch])
                columns.append(_lists(counts, np.array([lengths[example] for example in examples], np.int32)))
            if self._kind is RowKind.LABELLED:
                columns.append(pa.array(block.examples["label"][examples] == WANTED, pa.bool_()))
            yield columns

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


def _in_batches(sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> Iterator[Sequence[Sequence[int]]]:
    """Yield consecutive sequences of about _BATCH_TOKENS tokens together."""
    start = tokens = 0
    for index, sequence in enumerate(sequences):
        tokens += sum(lengths[row] for row in sequence)
        if tokens >= _BATCH_TOKENS:
            yield sequences[start : index + 1]
            start, tokens = index + 1, 0
    if start < len(sequences):
        yield sequences[start:]
