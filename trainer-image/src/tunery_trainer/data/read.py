"""Records, one after the other, from .jsonl, .json, .csv (also .gz and .zst) and .parquet files."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, cast

from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.zstd import ZstdReader
from tunery_trainer.data.faults import AGAIN, damaged, reading
from tunery_trainer.data.first_bytes import BOM, LENGTH, check_encoding, check_name, check_text
from tunery_trainer.data.json_array import TOO_LONG_NUMBER, rows_of_array
from tunery_trainer.data.nesting import TOO_DEEP, too_deep
from tunery_trainer.data.read_csv import rows_of_csv
from tunery_trainer.data.read_parquet import rows_of_parquet
from tunery_trainer.data.rows import Record, RowError, RowPlace, as_object
from tunery_trainer.data.sources import DataFile

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no row of text but a damaged or hostile file."""

_DAMAGE: Final = (EOFError, zlib.error, gzip.BadGzipFile)


def read_records(sources: Sequence[DataFile]) -> Iterator[Record]:
    """All rows of all files in order; a row that cannot be read is a Record with its RowError.

    Blank lines are no rows. A JSON file that begins with `[` is read as one array, whatever its name says.

    Raises:
        TuneryError: DatasetInvalid when a file is damaged, so that nobody knows how many rows it had; what
            `faults.reading` makes of one that cannot be read.
    """
    for source in sources:
        try:
            with reading(source.name):
                yield from _read(source)
        except _DAMAGE as error:
            why = f"the compressed data is damaged or ends too early ({error})"
            raise damaged(source.name, why, f"{AGAIN}, or compress it again") from error


def _read(source: DataFile) -> Iterator[Record]:
    with source.path.open("rb") as file:
        check_name(source, file.read(LENGTH))
    if source.suffix == ".parquet":
        yield from rows_of_parquet(source)
        return
    with _open(source.path, source.suffix) as stream:
        check_encoding(source, stream)
        check_text(source, stream)
        if source.suffix.startswith(".csv"):
            yield from rows_of_csv(stream, source.name, MAX_LINE_BYTES)
        elif _first_sign(stream) == b"[":
            yield from rows_of_array(stream, source.name)
        else:
            yield from _json_lines(stream, source.name)


def _open(path: Path, suffix: str) -> io.BufferedReader:
    if suffix.endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb")))
    if suffix.endswith(".zst"):
        return io.BufferedReader(ZstdReader(path))
    return path.open("rb")


def _first_sign(stream: io.BufferedReader) -> bytes:
    return stream.peek(64).removeprefix(BOM).lstrip()[:1]


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            fix = "Write each row on its own line, and shorten or remove a row that is longer"
            raise damaged(f"{name} line {number}", f"is longer than {MAX_LINE_BYTES >> 20} MiB", fix)
        # Also within the file: files that begin with one were put together.
        yield number, line.removeprefix(BOM)


def _json_lines(stream: IO[bytes], name: str) -> Iterator[Record]:
    is_first = True
    for number, line in _lines(stream, name):
        if stripped := line.strip():
            if is_first and stripped == b"{":
                raise _over_several_lines(name, number)
            is_first = False
            yield Record(RowPlace(name, number), _parse(line))


def _over_several_lines(name: str, number: int) -> TuneryError:
    """Return the failure for rows that are written over several lines, or stand within an object: each line is bad."""
    path = shlex.quote(name)
    why = "a JSON object continues over several lines, and a row is one line"
    return damaged(
        f"{name} line {number}",
        why,
        f"Replace the file by the output of `jq -c . {path}`, or of `jq -c '.NAME[]' {path}` if the array NAME of the "
        "object has the rows",
        retry("If this file is no data, remove it from the folder"),
        recreate("Name the data file itself in dataset.uri", "dataset.uri"),
    )


def _parse(line: bytes) -> dict[str, Any] | RowError:
    try:
        # What is cut off at its end would be told at column 1 of the line after it, were its newline still there.
        value = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        return RowError("", f"is not valid UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return RowError("", f"is not valid JSON: {error.msg} (column {error.colno})")
    except ValueError:
        return RowError("", TOO_LONG_NUMBER)
    except RecursionError:
        return RowError("", TOO_DEEP)
    return RowError("", TOO_DEEP) if too_deep(value, line.count(b"[") + line.count(b"{")) else as_object(value)
