"""A fault of a whole file is reported with its place, and its remedy fixes it."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.read import read_records
from tunery_trainer.data.rows import Record, RowError
from tunery_trainer.data.scan import scan
from tunery_trainer.data.sources import find_sources

ROWS = [{"prompt": f"ünï {number}", "completion": "c, d"} for number in range(4)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False)
CSV = "prompt,completion\n" + "".join(f'{row["prompt"]},"{row["completion"]}"\n' for row in ROWS)
THERE = "Correct the file at that place (maxInvalidRows doesn't apply)"


def records(path: Path) -> list[Record]:
    return list(read_records(find_sources(path, "", "train")))


def values(path: Path) -> list[Any]:
    return [record.value for record in records(path)]


def refused(path: Path, content: bytes | str) -> TuneryError:
    """Return the failure of a file with that content; it is one that is not tried again."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TuneryError) as caught:
        records(path)
    assert caught.value.reason is FailureReason.DATASET_INVALID
    assert caught.value.exit_code is ExitCode.USER_ERROR
    return caught.value


def fix_of(found: TuneryError) -> str:
    """Return the first remedy, which is outside of the object."""
    assert found.remedies[0].action == Action.RETRY
    return found.remedies[0].text


def follow(found: TuneryError, path: Path, number: int = 0) -> None:
    """Replace the file by the output of the command in the first remedy."""
    command = re.findall(r"`([^`]+)`", fix_of(found))[number].replace(".NAME[]", ".data[]")
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=path.parent, check=True, capture_output=True)
    path.write_bytes(done.stdout)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            ARRAY.replace('"ünï 2"', "'ünï 2'"),
            'a.json line 11 column 13: row 3 is not valid JSON: Expecting value, found "\'"',
            id="single-quotes",
        ),
        pytest.param(
            ARRAY.replace('"ünï 2"', '"ünï 2" x'),
            "a.json line 11 column 21: row 3 is not valid JSON: Expecting ',' delimiter, found 'x'",
            id="a-word-too-many",
        ),
        pytest.param(
            ARRAY.replace('"ünï 2"', '"ünï 2'),
            r"a.json line 11 column 20: row 3 is not valid JSON: a quoted text holds '\n' as it is "
            "(or its closing quote is missing)",
            id="no-closing-quote",
        ),
        pytest.param(
            ARRAY.replace("ünï 2", "ünï\x002"),
            r"a.json line 11 column 17: row 3 is not valid JSON: a quoted text holds '\x00' as it is "
            "(or its closing quote is missing)",
            id="zero-byte",
        ),
        pytest.param(
            ARRAY.replace("},", "}", 1),
            "a.json line 6 column 2: the JSON array has no ',' or ']' after this row: after row 1 there is '{'",
            id="no-comma",
        ),
        pytest.param(
            ARRAY.replace("},", "},,", 1),
            "a.json line 5 column 4: row 2 is not valid JSON: Expecting value, found ','",
            id="two-commas",
        ),
    ],
)
def test_a_wrong_character_in_an_array_is_told_by_its_place(tmp_path: Path, content: str, message: str) -> None:
    found = refused(tmp_path / "a.json", content)
    assert (found.message, fix_of(found)) == (message, THERE)


def test_text_after_an_array_is_told_by_its_place(tmp_path: Path) -> None:
    found = refused(tmp_path / "a.jsonl", '["a"]\n["b"]\n')
    assert found.message == "a.jsonl line 2 column 1: there is more text after the end of the JSON array"
    assert "use one array for all rows, or one object on each line" in fix_of(found)


def test_an_array_that_ends_too_early_breaks_off_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = ARRAY.encode()
    for end in range(1, len(whole)):
        found = refused(tmp_path / "a.json", whole[:end])
        assert "the JSON array breaks off here" in found.message
        assert fix_of(found).startswith("Upload the complete file again")
    constants = '[{"a": [true, false, null, NaN, -Infinity, 1.5e3, "\\u00fc"]}]'
    for end in range(1, len(constants)):
        assert "breaks off here" in refused(tmp_path / "a.json", constants[:end]).message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le", "utf-32be"])
@pytest.mark.parametrize(("name", "text"), [("a b.jsonl", LINES), ("a.json", ARRAY), ("a.csv", CSV)])
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_another_encoding_is_named_and_converted_by_the_command(
    tmp_path: Path, encoding: str, name: str, text: str, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / (name + ending)
    found = refused(path, pack(text.encode(encoding)))
    assert found.message == f"{path.name}: is {encoding.upper()} and not UTF-8"
    follow(found, path)
    assert values(path) == ROWS


def test_an_array_in_the_encoding_of_windows_is_converted_by_the_command(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    found = refused(path, ARRAY.encode("cp1252"))
    assert found.message == "a.json: is not valid UTF-8 (line 3, byte 14), but may be of Windows"
    follow(found, path)
    assert values(path) == ROWS
    found = refused(path, ARRAY.encode().replace(b" 2", b"\xff2"))
    assert (found.message, fix_of(found)) == ("a.json line 11: is not valid UTF-8 (byte 19)", THERE)


@pytest.mark.parametrize(
    "text", [json.dumps({"data": ROWS}, indent=1), "\n" + "\n".join(json.dumps(row, indent=1) for row in ROWS)]
)
def test_objects_over_several_lines_are_put_on_lines_by_the_command(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    found = refused(path, text)
    assert "a JSON object continues over several lines, and a row is one line" in found.message
    follow(found, path, number=int('"data"' in text))
    assert values(path) == ROWS


def test_a_settings_file_in_a_folder_of_data_may_be_taken_out_or_passed_by(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    stray = tmp_path / "adapter_config.json"
    stray.write_text(json.dumps({"r": 8}, indent=2))
    with pytest.raises(TuneryError) as refused:
        scan(tmp_path, DataOptions())
    _, remove, name = refused.value.remedies
    assert (remove.action, remove.text) == (Action.RETRY, "If this file is no data, remove it from the folder")
    assert (name.action, name.fields) == (Action.RECREATE, ["dataset.uri"])
    assert scan(tmp_path / "data.jsonl", DataOptions()).rows == len(ROWS)
    stray.unlink()
    assert scan(tmp_path, DataOptions()).rows == len(ROWS)


def write_twice(path: Path, names: list[str]) -> None:
    if path.suffix == ".csv":
        path.write_text(f"{','.join(names)}\n1,2,3\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array([text]) for text in "123"], names=names), path)


@pytest.mark.parametrize(("name", "where"), [("a.csv", "a.csv line 1"), ("a.parquet", "a.parquet")])
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["a", "b", "a"], "two columns have the same name: columns 1 and 3 are 'a'"),
        (["", "b", ""], "columns 1 and 3 have no name"),
    ],
)
def test_columns_of_one_name_are_told_by_number(
    tmp_path: Path, name: str, where: str, columns: list[str], said: str
) -> None:
    path = tmp_path / name
    write_twice(path, columns)
    found = refused(path, path.read_bytes())
    assert found.message == f"{where}: {said}"
    assert fix_of(found).startswith("Give each of these columns its own name in the file, or remove it with its cells")
    write_twice(path, ["x", "b", "y"])
    assert values(path) == [{"x": "1", "b": "2", "y": "3"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b\n1;2\n", "a.csv line 1: the cells are separated by semicolons, not by commas"),
        ("a\tb\n1\t2\n", "a.csv line 1: the cells are separated by tabs, not by commas"),
        (
            'a,b\n1,"2\n3,4\n',
            "a.csv line 3: is not valid CSV, in the row that begins in line 2: the file ends within quotes",
        ),
        ('a,b\n1,"2" x\n', "a.csv line 2: is not valid CSV: ',' expected after '\"'"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_told_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    found = refused(tmp_path / "a.csv", text)
    assert found.message == message
    assert re.search("with commas between the cells|Correct the quotes in that row", fix_of(found))


def test_blank_lines_before_the_names_of_columns_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"\n\n{CSV}")
    assert values(path) == ROWS
    assert records(path)[0].place.number == 4
    found = refused(path, b"\nprompt,\xfcber\n1,2\n")
    assert found.message == "a.csv line 2: the names of the columns are not valid UTF-8"


@pytest.mark.parametrize(
    ("name", "content", "said", "better"),
    [
        (
            "a.jsonl",
            gzip.compress(LINES.encode(), mtime=0),
            "is compressed (.gz), and its name does not say so",
            "a.jsonl.gz",
        ),
        (
            "a.csv",
            gzip.compress(CSV.encode(), mtime=0),
            "is compressed (.gz), and its name does not say so",
            "a.csv.gz",
        ),
        ("a.json", zstandard.compress(LINES.encode()), "is compressed (.zst), and its name does not", "a.json.zst"),
        ("a.jsonl.gz", LINES.encode(), "the file is not compressed as .gz says", "a.jsonl"),
        ("a.jsonl.zst", LINES.encode(), "the file is not compressed as .zst says", "a.jsonl"),
        ("a.parquet", LINES.encode(), "is not a readable parquet file: it does not begin as one", "a.jsonl"),
    ],
)
def test_a_name_that_says_the_wrong_kind_is_told_with_a_better_one(
    tmp_path: Path, name: str, content: bytes, said: str, better: str
) -> None:
    found = refused(tmp_path / name, content)
    assert said in found.message
    assert f"Rename it to {better} " in fix_of(found) or "or rename it " in fix_of(found)
    (tmp_path / name).rename(tmp_path / better)
    assert values(tmp_path / better) == ROWS


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize(
    ("name", "text", "better"),
    [
        ("a.csv", LINES, "a.jsonl"),
        ("a.csv", ARRAY, "a.jsonl"),
        ("a.jsonl", CSV, "a.csv"),
        ("a.json", CSV.replace("prompt,completion", '"prompt","completion"'), "a.csv"),
    ],
)
def test_csv_in_the_name_of_json_and_json_in_that_of_csv_are_read_by_the_better_name(
    tmp_path: Path, name: str, text: str, better: str, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(text.encode())
    found = refused(tmp_path / (name + ending), content)
    assert "and its name says that it is" in found.message
    assert re.findall(r"Rename it to ([^, ]+)", fix_of(found)) == [better + ending]
    (tmp_path / (better + ending)).write_bytes(content)
    assert len(values(tmp_path / (better + ending))) == len(ROWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "{a,b\nx,y\n"),
        ("a.csv", "a\n[1]\n"),
        ("a.jsonl", "true\n"),
        ("a.jsonl", "no JSON, but a sentence.\n"),
        ("a.jsonl", '{"text": "a"}, {"text": "b"}\n'),
    ],
)
def test_what_only_looks_a_little_like_another_kind_is_read_by_its_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert len(values(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ("content", "said", "fix"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a pointer of Git LFS", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>\n", "is a web page", "Download the file itself"),
        (b"PK\x03\x04\0\0", "is a zip archive", "Unpack it"),
        (b"\xfd7zXZ\0\0", "is compressed by xz", "Unpack it"),
        (bz2.compress(b"{}"), "is compressed by bzip2", "Unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_is_no_data_at_all_is_named(tmp_path: Path, name: str, content: bytes, said: str, fix: str) -> None:
    found = refused(tmp_path / name, content)
    assert said in found.message
    assert fix in fix_of(found)


def test_files_put_together_may_each_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(2 * f"\ufeff{LINES}")
    assert values(path) == 2 * ROWS


def nested(levels: int) -> str:
    """Return a row that is nested so deep."""
    return '{"a": ' * levels + "1" + "}" * levels


@pytest.mark.parametrize(("name", "levels"), [("a.jsonl", 101), ("a.jsonl", 100_000), ("a.json", 101), ("a.json", 300)])
def test_a_row_that_is_nested_too_deeply_is_a_bad_row(tmp_path: Path, name: str, levels: int) -> None:
    rows = [nested(100), nested(levels)]
    (tmp_path / name).write_text("\n".join(rows) if name == "a.jsonl" else "[" + ",\n".join(rows) + "]")
    first, second = records(tmp_path / name)
    assert isinstance(first.value, dict)
    assert str(second.value) == "is nested more than 100 levels deep"
    assert second.place.number == 2


def test_turns_in_a_cell_that_are_nested_too_deeply_are_a_bad_row(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": json.loads(nested(101))}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(turns)]])
    with pytest.raises(TuneryError, match=r"a\.csv line 2: messages: is nested more than 100 levels deep"):
        scan(tmp_path / "a.csv", DataOptions())


def test_where_an_array_cannot_be_read_on_the_row_that_is_too_deep_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    found = refused(path, f'[{{"a": 1}},\n{nested(100_000)}]')
    assert found.message == "a.json line 2: row 2 is nested more than 100 levels deep"
    assert fix_of(found).startswith("Remove row 2, or its nesting")
    path.write_text('[{"a": 1}]')
    assert values(path) == [{"a": 1}]


def test_numbers_of_too_many_digits_are_told_by_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{{"a": {"1" * 5000}}}\n{{"a": NaN, "b": 1e999}}\n')
    _, bad, odd = records(path)
    assert str(bad.value) == "holds a number of more than 4,300 digits"
    assert isinstance(odd.value, dict)
    found = refused(tmp_path / "a.json", f'[{{"a": 1}},\n{{"a": {"1" * 5000}}}]')
    assert found.message == "a.json line 2: row 2 holds a number of more than 4,300 digits"


def column(cells: Iterable[bytes]) -> pa.Array:
    """Return a column of texts that nobody has checked for UTF-8."""
    _, offsets, data = pa.array(cells).buffers()
    return pa.StringArray.from_buffers(3, offsets, data)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (column([b"a", b"\xff", b"c"]), "odd: is not valid UTF-8"),
        (pa.array([0, 2**62, 0], pa.timestamp("us")), "odd: cannot be read: date value out of range"),
    ],
)
def test_a_cell_of_a_parquet_file_that_cannot_be_read_is_a_bad_row(tmp_path: Path, cells: pa.Array, said: str) -> None:
    pq.write_table(pa.table({"text": ["1", "2", "3"], "odd": cells}), tmp_path / "a.parquet")
    found = records(tmp_path / "a.parquet")
    assert [isinstance(record.value, RowError) for record in found] == [False, True, False]
    assert str(found[1].value) == said
    assert isinstance(found[0].value, dict)
    assert found[0].value["odd"] in ("a", datetime.datetime(1970, 1, 1))


@pytest.mark.parametrize("value", [b"\xff", datetime.datetime(2026, 1, 1)])
def test_what_json_has_not_is_told_where_a_template_would_write_it(tmp_path: Path, value: object) -> None:
    call = {"name": "f", "arguments": {"at": value}}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
    with pytest.raises(TuneryError) as caught:
        scan(tmp_path / "a.parquet", DataOptions())
    assert caught.value.reason is FailureReason.DATASET_INVALID
    assert "a.parquet row 1: messages[1].tool_calls[0].arguments: holds what JSON has not" in caught.value.message


def test_a_parquet_file_that_is_cut_off_is_uploaded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    for content in (b"", whole[:3], whole[:-9], whole[:20] + bytes(40) + whole[60:]):
        found = refused(path, content)
        assert found.message.startswith("a.parquet: is not a readable parquet file: ")
        assert fix_of(found).startswith("Upload the file again, or ")
