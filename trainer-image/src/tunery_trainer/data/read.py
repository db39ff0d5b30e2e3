"""Records, one after the other, from .jsonl, .json, .csv (also .gz and .zst) and .parquet files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from tunery_api.reasons import FailureReason
from tunery_trainer.data.rows import Record, RowError, RowPlace
from tunery_trainer.data.sources import DataFile
from tunery_trainer.data.zstd import ZstdReader
from tunery_trainer.errors import TrainerError

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no row of text but a damaged or hostile file."""

_PARQUET_BATCH = 1024
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"


def read_records(sources: Sequence[DataFile]) -> Iterator[Record]:
    """All rows of all files in order; a row that cannot be read is a Record with its RowError.

    Blank lines are no rows. A JSON file that begins with `[` is read as one array, whatever its name says.

    Raises:
        TrainerError: DatasetInvalid when a file is damaged, so that nobody knows how many rows it had.
    """
    for source in sources:
        try:
            yield from _read(source)
        except _DAMAGE as error:
            raise _damaged(source.name, f"the compressed data is damaged or ends too early ({error})") from error


def _read(source: DataFile) -> Iterator[Record]:
    if source.suffix == ".parquet":
        yield from _parquet(source)
        return
    with _open(source.path, source.suffix) as stream:
        if source.suffix.startswith(".csv"):
            yield from _csv(stream, source.name)
        elif _first_sign(stream) == b"[":
            yield from _json_array(stream, source.name)
        else:
            yield from _json_lines(stream, source.name)


def _open(path: Path, suffix: str) -> io.BufferedReader:
    if suffix.endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb")))
    if suffix.endswith(".zst"):
        return io.BufferedReader(ZstdReader(path))
    return path.open("rb")


def _first_sign(stream: io.BufferedReader) -> bytes:
    return stream.peek(64).removeprefix(_BOM).lstrip()[:1]


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise _damaged(f"{name} line {number}", f"is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _json_lines(stream: IO[bytes], name: str) -> Iterator[Record]:
    for number, line in _lines(stream, name):
        if line.strip():
            yield Record(RowPlace(name, number), _parse(line))


def _parse(line: bytes) -> dict[str, Any] | RowError:
    try:
        # What is cut off at its end would be told at column 1 of the line after it, were its newline still there.
        return _as_object(json.loads(line.decode().rstrip()))
    except UnicodeDecodeError as error:
        return RowError("", f"is not valid UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return RowError("", f"is not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return RowError("", f"is not valid JSON: {error}")


def _as_object(value: Any) -> dict[str, Any] | RowError:
    if isinstance(value, dict):
        return value
    return RowError("", f"must be a JSON object, found {json_type(value)}")


def json_type(value: object) -> str:
    """The name of a value's type as JSON knows it, for messages."""
    names: dict[type, str] = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value), "array" if isinstance(value, list | tuple) else "object")


def _json_array(stream: IO[bytes], name: str) -> Iterator[Record]:
    """An array is one JSON value: its text stands in memory at once, its rows are decoded one by one."""
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _damaged(name, f"is not valid UTF-8 (byte {error.start + 1})") from error
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip(text, text.index("[") + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{name} line {line}", f"the JSON array breaks off here: {error}") from error
        yield Record(RowPlace(name, line), _as_object(value))
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise _damaged(f"{name} line {line}", "the JSON array has no ',' or ']' after this row")
    if text[position + 1 :].strip():
        raise _damaged(name, "there is more text after the end of the JSON array")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _csv(stream: io.BufferedReader, name: str) -> Iterator[Record]:
    # Bytes that are not UTF-8 become lone surrogates, so that one bad row does not end the file.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise _damaged(f"{name} line 1", f"two columns have the same name; columns: {', '.join(header)}")
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield Record(RowPlace(name, start), _csv_row(header, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise _damaged(f"{name} line {reader.line_num}", f"is not valid CSV: {error}") from error


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        return RowError("", f"has {len(cells)} cells, the header has {len(header)}")
    for column, cell in zip(header, cells, strict=True):
        if any("\udc80" <= sign <= "\udcff" for sign in cell):
            return RowError(column, "is not valid UTF-8")
    return dict(zip(header, cells, strict=True))


def _parquet(source: DataFile) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(RowPlace(source.name, number, "row"), value)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(source.name, f"is not a readable parquet file: {error}") from error


def _damaged(where: str, why: str) -> TrainerError:
    return TrainerError(
        FailureReason.DATASET_INVALID, f"{where}: {why}", "Upload the file again; maxInvalidRows cannot help here."
    )
