"""Every kind of file gives the same rows; damage is named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.data import read
from tunery_trainer.data.read import read_records
from tunery_trainer.data.rows import Record, RowError
from tunery_trainer.data.sources import find_sources

ROWS = [
    {"prompt": "Why?", "completion": 'Because of ünïcode, "quotes"\nand lines.'},
    {"prompt": "b", "completion": "c"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = 'prompt,completion\nWhy?,"Because of ünïcode, ""quotes""\nand lines."\nb,c\n'.encode()
BOM = b"\xef\xbb\xbf"


def records(path: Path) -> list[Record]:
    return list(read_records(find_sources(path, "", "train")))


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        pytest.param("a.jsonl", LINES, [1, 2], id="lines"),
        pytest.param("a.json", LINES, [1, 2], id="lines-in-json"),
        pytest.param("a.jsonl", BOM + LINES.replace(b"\n", b"\r\n"), [1, 2], id="bom-and-windows-lines"),
        pytest.param("a.jsonl", b"\n" + LINES.replace(b"\n", b"\n\n"), [2, 4], id="blank-lines-are-no-rows"),
        pytest.param("a.jsonl", LINES.rstrip(), [1, 2], id="no-last-newline"),
        pytest.param("a.json", json.dumps(ROWS).encode(), [1, 1], id="array"),
        pytest.param("a.jsonl", BOM + json.dumps(ROWS, indent=1).encode(), [2, 6], id="array-instead-of-lines"),
        pytest.param("a.csv", CSV, [2, 4], id="csv"),
        pytest.param("a.csv", BOM + CSV, [2, 4], id="csv-with-bom"),
        pytest.param("a.jsonl.gz", gzip.compress(LINES), [1, 2], id="gz"),
        pytest.param("a.csv.gz", gzip.compress(BOM + CSV), [2, 4], id="csv-gz"),
        pytest.param("a.jsonl.zst", zstandard.compress(LINES), [1, 2], id="zst"),
        pytest.param(
            "a.jsonl.zst", zstandard.compress(LINES[:20]) + zstandard.compress(LINES[20:]), [1, 2], id="zst-two-frames"
        ),
    ],
)
def test_same_rows(tmp_path: Path, name: str, content: bytes, numbers: list[int]) -> None:
    (tmp_path / name).write_bytes(content)
    found = records(tmp_path / name)
    assert [record.value for record in found] == ROWS
    assert [record.place.number for record in found] == numbers


def test_parquet_counts_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    found = records(tmp_path / "a.parquet")
    assert [record.value for record in found] == ROWS
    assert [str(record.place) for record in found] == ["a.parquet row 1", "a.parquet row 2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "is not valid UTF-8 (byte 8)", id="utf8"),
        pytest.param("a.jsonl", b'{"a": 1}\n{"a": \n', "is not valid JSON: Expecting value", id="json"),
        pytest.param("a.jsonl", b'{"a": 1}\n"text"\n', "must be a JSON object, found string", id="no-object"),
        pytest.param("a.json", b'[{"a": 1},\nnull]', "must be a JSON object, found null", id="no-object-in-array"),
        pytest.param("a.jsonl", b'{"a": 1}\n' + b"[" * 200_000 + b"\n", "nested more than 100 levels", id="too-deep"),
        pytest.param("a.csv", b"a,b\n1\n", "has 1 cells, the header has 2", id="short-csv-row"),
        pytest.param("a.csv", b"a,b\n1,\xff\n", "b: is not valid UTF-8", id="utf8-in-csv"),
    ],
)
def test_a_bad_row_is_one_record(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    last = records(tmp_path / name)[-1]
    assert isinstance(last.value, RowError)
    assert said in str(last.value)
    assert last.place.number == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("a.jsonl.gz", gzip.compress(LINES)[:-9], "a.jsonl.gz: the compressed data", id="truncated-gz"),
        pytest.param("a.jsonl.gz", LINES, "a.jsonl.gz: the compressed data", id="no-gz"),
        pytest.param("a.jsonl.zst", zstandard.compress(LINES)[:-4], "frame is not complete", id="truncated-zst"),
        pytest.param("a.jsonl.zst", LINES, "a.jsonl.zst: the compressed data", id="no-zst"),
        pytest.param(
            "a.json", b'[{"a": 1},\n {"a": 2', "a.json line 2: the JSON array breaks off", id="truncated-array"
        ),
        pytest.param("a.json", b'[{"a": 1}\n {"a": 2}]', "no ',' or ']' after this row", id="array-without-comma"),
        pytest.param("a.json", b'[{"a": 1}]\n{"a": 2}', "more text after the end", id="text-after-array"),
        pytest.param("a.json", b'[{"a": "\xff"}]', "is not valid UTF-8", id="utf8-in-array"),
        pytest.param("a.csv", b'a,b\n1,"2\n3,4\n', "is not valid CSV", id="open-quote"),
        pytest.param("a.csv", b"a,a\n1,2\n", "two columns have the same name", id="same-columns"),
        pytest.param("a.parquet", LINES, "is not a readable parquet file", id="no-parquet"),
    ],
)
def test_a_damaged_file_ends_the_job(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TuneryError) as caught:
        records(tmp_path / name)
    assert caught.value.reason is FailureReason.DATASET_INVALID
    assert said in caught.value.message


def test_an_endless_line_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES + b" " * (3 << 20)))
    with pytest.raises(TuneryError, match=r"a\.jsonl\.gz line 3: is longer than 1 MiB"):
        records(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_large_packed_files_stream(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    rows = [{"text": f"{number} " * 200} for number in range(3000)]
    name = "a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst"
    (tmp_path / name).write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [record.value for record in records(tmp_path / name)] == rows


@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n", ""])
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "Why?",', "Expecting property name enclosed in double quotes (column 19)"),
        ('{"prompt": "Why?"', "Expecting ',' delimiter (column 18)"),
        ('{"prompt": "Why?", x', "Expecting property name enclosed in double quotes (column 20)"),
        ('  {"prompt": "Wh', "Unterminated string starting at (column 14)"),
    ],
)
def test_the_column_is_of_the_line_that_is_named(tmp_path: Path, line: str, problem: str, ending: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "good"}}\n{line}{ending}'.encode())
    found = records(tmp_path / "a.jsonl")[1]
    assert found.place.number == 2
    assert str(found.value) == str(RowError("", f"is not valid JSON: {problem}"))
