"""Rows of a file that is one JSON array; what is wrong with it is told by line and column."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

from tunery_common.errors import TuneryError
from tunery_trainer.data.faults import damaged
from tunery_trainer.data.first_bytes import not_utf8
from tunery_trainer.data.nesting import TOO_DEEP, too_deep
from tunery_trainer.data.rows import Record, RowError, RowPlace, as_object

TOO_LONG_NUMBER: Final = f"holds a number of more than {sys.get_int_max_str_digits():,} digits"
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"
_WORDS: Final = ("true", "false", "null", "NaN", "-Infinity", "Infinity")
_CUT: Final = re.compile(r"\.|[eE][+-]?|\\?u[0-9a-fA-F]{0,4}")
"""What is left over where a number, or an escape in a text, is cut off."""
_WHOLE: Final = "Upload the complete file again; if its source also ends like this, complete that"
_THERE: Final = "Correct the file at that place"


def rows_of_array(stream: IO[bytes], name: str) -> Iterator[Record]:
    """Yield the rows of an array, which is one JSON value: its text is in memory at once, rows are decoded one by one.

    Raises:
        TuneryError: DatasetInvalid where the text is no JSON array.
    """
    array = _Array(_text(stream, name), name)
    text, position, line, row = array.text, array.skip(array.text.index("[") + 1), 1, 0
    counted = 0
    while text[position : position + 1] != "]":
        line, counted, row = line + text.count("\n", counted, position), position, row + 1
        value, position = array.decoded(position, RowPlace(name, line), row)
        yield Record(RowPlace(name, line), value)
        position = array.after(position, row)
    if text[position + 1 :].strip():
        where = array.where(array.skip(position + 1))
        fix = f"{_THERE}: use one array for all rows, or one object on each line without an array"
        raise damaged(where, "there is more text after the end of the JSON array", fix)


@dataclass(frozen=True)
class _Array:
    text: str
    name: str

    def decoded(self, position: int, place: RowPlace, row: int) -> tuple[dict[str, Any] | RowError, int]:
        """Return the value that begins at `position`, and where it ends; raises TuneryError where none does."""
        try:
            value, end = _DECODER.raw_decode(self.text, position)
        except json.JSONDecodeError as error:
            raise self._fault(error, place, row) from error
        except ValueError as error:
            raise damaged(str(place), f"row {row} {TOO_LONG_NUMBER}", f"Shorten it in {place}, or quote it") from error
        except RecursionError as error:
            raise damaged(str(place), f"row {row} {TOO_DEEP}", f"Remove row {row}, or its nesting") from error
        brackets = self.text.count("[", position, end) + self.text.count("{", position, end)
        return RowError("", TOO_DEEP) if too_deep(value, brackets) else as_object(value), end

    def after(self, position: int, row: int) -> int:
        """Return where the next row begins, or the array ends; `position` is where a row has ended."""
        position = self.skip(position)
        found = self.text[position : position + 1]
        if found == ",":
            return self.skip(position + 1)
        if not found:
            raise damaged(self.where(position), f"the JSON array breaks off here, after row {row}, without ']'", _WHOLE)
        if found != "]":
            why = f"the JSON array has no ',' or ']' after this row: after row {row} there is {found!r}"
            raise damaged(self.where(position), why, _THERE)
        return position

    def skip(self, position: int) -> int:
        """Return where the next character stands that is no white space."""
        while position < len(self.text) and self.text[position] in _SPACE:
            position += 1
        return position

    def where(self, position: int) -> str:
        """Return file, line and column."""
        line = self.text.count("\n", 0, position) + 1
        return f"{self.name} line {line} column {position - self.text.rfind(chr(10), 0, position)}"

    def _fault(self, error: json.JSONDecodeError, place: RowPlace, row: int) -> TuneryError:
        """Return what is wrong: the text ends too early, or holds a wrong character at a place."""
        rest = self.text[error.pos :].strip()
        if "Unterminated" in error.msg or _CUT.fullmatch(rest) or any(word.startswith(rest) for word in _WORDS):
            why = f"the JSON array breaks off here: row {row}, which begins in this line, has no end"
            return damaged(str(place), why, _WHOLE)
        why = f"row {row} is not valid JSON: {error.msg.removesuffix(' at')}, found {rest[0]!r}"
        if "control character" in error.msg:
            sign = self.text[error.pos]
            why = (
                f"row {row} is not valid JSON: a quoted text holds {sign!r} as it is (or its closing quote is missing)"
            )
        return damaged(self.where(error.pos), why, _THERE)


def _text(stream: IO[bytes], name: str) -> str:
    data = stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(error.object)
        line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
        if error.reason == "unexpected end of data":
            why = "the JSON array breaks off here, in the middle of a character"
            raise damaged(f"{name} line {line}", why, _WHOLE) from error
        if data[:start].isascii():
            why = f"is not valid UTF-8 (line {line}, byte {column}), but may be of Windows"
            raise not_utf8(name, why, "WINDOWS-1252") from error
        raise damaged(f"{name} line {line}", f"is not valid UTF-8 (byte {column})", _THERE) from error
