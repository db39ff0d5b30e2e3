"""Rows of a CSV file: its first line names the columns."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from tunery_common.errors import TuneryError
from tunery_trainer.data.faults import damaged
from tunery_trainer.data.rows import Record, RowError, RowPlace

_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_HALF: Final = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as surrogateescape reads it."""
_QUOTES: Final = (
    "Correct the quotes in that row: quote each cell that holds commas, quotes, or line breaks, and double each quote "
    'in it (""); if the file is truncated, upload it again'
)


def rows_of_csv(stream: io.BufferedReader, name: str, max_cell: int) -> Iterator[Record]:
    """Yield the rows; blank lines are none. A cell has at most `max_cell` characters.

    Raises:
        TuneryError: DatasetInvalid where the columns cannot be told apart, or where quotes do not end.
    """
    # Bytes that are not UTF-8 become lone surrogates, so that one bad row does not end the file.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(max_cell)
    reader, start = csv.reader(text, strict=True), 1
    try:
        header = next((cells for cells in reader if cells), [])
        _check_header(header, f"{name} line {reader.line_num}")
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield Record(RowPlace(name, start), _row(header, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        begun = f", in the row that begins in line {start}" if start != reader.line_num else ""
        raise damaged(f"{name} line {reader.line_num}", f"is not valid CSV{begun}: {_said(error)}", _QUOTES) from error


def _said(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return "the file ends within quotes"
    return "a cell does not end; its closing quote seems to be missing" if "field limit" in said else said


def _check_header(header: list[str], where: str) -> None:
    """Raise TuneryError where two columns have the same name, or where something other than commas is between them."""
    between = next((sign for sign in _SEPARATORS if len(header) == 1 and sign in header[0]), None)
    if between is not None:
        why = f"the cells are separated by {_SEPARATORS[between]}, not by commas"
        raise damaged(where, why, "Save the file with commas between the cells")
    if not "".join(header).isascii() and any(_HALF.search(name) for name in header):
        why = "the names of the columns are not valid UTF-8"
        raise damaged(where, why, "Save the file as UTF-8, or give the columns other names")
    name, count = Counter(header).most_common(1)[0] if header else ("", 1)
    if count > 1:
        raise columns_twice(where, name, header)


def columns_twice(where: str, name: str, columns: list[str]) -> TuneryError:
    """Return the failure for a name that several columns have."""
    numbers = [str(number) for number, column in enumerate(columns, 1) if column == name]
    which = f"columns {', '.join(numbers[:-1])} and {numbers[-1]}"
    what = f"{which} have no name" if not name.strip() else f"two columns have the same name: {which} are '{name}'"
    return damaged(where, what, "Give each of these columns its own name in the file, or remove it with its cells")


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        return RowError("", f"has {len(cells)} cells, the header has {len(header)}")
    for column, cell in zip(header, cells, strict=True):
        if _HALF.search(cell):
            return RowError(column, "is not valid UTF-8")
    return dict(zip(header, cells, strict=True))
