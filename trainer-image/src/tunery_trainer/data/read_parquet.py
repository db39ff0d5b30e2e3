"""Rows of a parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tunery_common.errors import first_line
from tunery_trainer.data.faults import AGAIN, damaged
from tunery_trainer.data.read_csv import columns_twice
from tunery_trainer.data.rows import Record, RowError, RowPlace
from tunery_trainer.data.sources import DataFile

_BATCH = 1024
_UNREADABLE = (ValueError, ArithmeticError, LookupError)
"""What pyarrow raises for a cell that Python has no value for: no text in UTF-8, a date beyond year 9999, a time zone
that nobody knows."""


def rows_of_parquet(source: DataFile) -> Iterator[Record]:
    """Yield the rows; one with a cell that cannot be read is a Record with its RowError.

    Raises:
        TuneryError: DatasetInvalid where the file is damaged, or has a column's name twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            columns, number = list(file.schema_arrow.names), 0
            name, count = Counter(columns).most_common(1)[0] if columns else ("", 1)
            if count > 1:
                raise columns_twice(source.name, name, columns)
            for batch in file.iter_batches(_BATCH):
                for value in _values(batch):
                    number += 1
                    yield Record(RowPlace(source.name, number, "row"), value)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = f"is not a readable parquet file: {first_line(error)}"
        raise damaged(source.name, why, f"{AGAIN}, or write it again") from error


def _values(batch: Any) -> list[dict[str, Any]] | list[dict[str, Any] | RowError]:
    """Return the rows of a RecordBatch: of all at once where that goes, else each by itself."""
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except _UNREADABLE:
        return [_row(batch, index) for index in range(batch.num_rows)]
    return found


def _row(batch: Any, index: int) -> dict[str, Any] | RowError:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return RowError(name, "is not valid UTF-8")
        except _UNREADABLE as error:
            return RowError(name, f"cannot be read: {first_line(error)}")
    return row
