"""The bad rows of a data set: counted, the first ones named, and all of them listed in a file as they are met."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.remedies import Remedy, recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.notes import InvalidKind, Place
from tunery_trainer.data.rows import RowError, RowPlace

SHOWN_INVALID: Final = 5
"""So many bad rows are named in a message; all are counted."""

_MAX_MESSAGE: Final = 200
"""Bytes of what is said of one row: five of them, and the rest of the message, fit into the termination message."""
_MAX_FIELD: Final = 200
_MAX_REASON: Final = 500
"""Bytes of what the listing says of one row."""
_MAX_KINDS: Final = 50
"""Kinds of faults that are told apart: memory stays flat whatever the rows hold."""
_SHOWN_KIND: Final = 160
_VARYING: Final = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
"""What differs from row to row in one and the same fault."""
_OTHER: Final = "other faults"
_NAME_COLUMNS: Final = (
    retry("Correct the rows"),
    recreate(
        "If only the names of the columns differ, set dataset.columns, such as {prompt: question, completion: answer}",
        "dataset.columns",
    ),
)


class Listing:
    """Bad rows one by one in a file, a JSON object a line, up to `max_bytes` (None: all)."""

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        self.path = path
        self.rows = 0
        """Rows that stand in it."""
        self._left = max_bytes
        self._file: IO[bytes] | None = None
        self._full = False

    def add(self, place: RowPlace, error: RowError) -> None:
        """Write one more, where there is room; a disk that is full ends the listing and not the pass."""
        if self._full:
            return
        said = Place.of(place).to_json_dict()
        said |= {"field": shorten(error.field, _MAX_FIELD)} if error.field else {}
        said["reason"] = shorten(error.why, _MAX_REASON)
        line = json.dumps(said).encode() + b"\n"
        if self._left is not None and len(line) > self._left:
            self._full = True
            return
        try:
            self._file = self._file or self.path.open("wb")
            self._file.write(line)
        except OSError:
            self._full = True
            return
        self.rows += 1
        self._left = None if self._left is None else self._left - len(line)

    def close(self) -> None:
        """Let the file hold all that was written."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._full = True


class InvalidRows:
    """The bad rows so far. Reading goes on after the limit, so that the message gives the total."""

    def __init__(self, limit: int, listing: Listing | None = None) -> None:
        self._limit = limit
        self.listing = listing
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._alike: dict[str, list[RowPlace]] = {}
        """Of the first ones, by what is said of them."""
        self._all_of_columns = True
        self.count = 0
        self.first: list[str] = []

    def add(self, place: RowPlace, error: RowError) -> None:
        """Count one more, list it, and keep its message if it is among the first."""
        self.count += 1
        self._all_of_columns = self._all_of_columns and error.columns
        if len(self.first) < SHOWN_INVALID:
            self.first.append(shorten(f"{place}: {error}", _MAX_MESSAGE))
            self._alike.setdefault(str(error), []).append(place)
        if self.listing is not None:
            self.listing.add(place, error)
        kind = (_kind(error.field), _kind(error.why))
        self._kinds[kind if kind in self._kinds or len(self._kinds) < _MAX_KINDS else ("", _OTHER)] += 1

    def kinds(self) -> list[InvalidKind]:
        """Return what is wrong with how many rows, the most frequent first."""
        return [
            InvalidKind(field=field or None, reason=reason, rows=rows)
            for (field, reason), rows in self._kinds.most_common()
        ]

    def check(self, valid: int) -> None:
        """Raise DatasetInvalid when there are more bad rows than allowed, or no valid one."""
        if self.count <= self._limit and valid:
            return
        named, remedies = self._named(), () if valid else self._of_columns()
        if self.count <= self._limit:
            if not named:
                raise TuneryError(FailureReason.DATASET_INVALID, "spec.dataset: has no row", retry("Add rows"))
            raise TuneryError(FailureReason.DATASET_INVALID, f"spec.dataset: has no valid row: {named}", *remedies)
        total = self.count + valid
        raise TuneryError(
            FailureReason.DATASET_INVALID,
            f"{self.count} of {total} rows are invalid, spec.dataset.maxInvalidRows allows {self._limit}: {named}",
            *remedies,
        )

    def _named(self) -> str:
        """Return the first ones with what is wrong with them, which is said once where it is the same."""
        more = self.count - len(self.first)
        said, rest = [], ""
        for text, (first, *others) in self._alike.items():
            rest = f" and {more} more" if more and len(self._kinds) == len(self._alike) == 1 else ""
            same = f" (the same in {_places(others, first)}{rest})" if others else ""
            said.append(shorten(f"{first}: {text}", _MAX_MESSAGE) + same)
        return "; ".join(said) + ("; ..." if more and not rest else "")

    def _of_columns(self) -> tuple[Remedy, ...]:
        """Return the remedies where all rows have the same columns, and not those of a format; else none."""
        return _NAME_COLUMNS if self._all_of_columns and len(self._kinds) == 1 else ()


def _places(rows: Sequence[RowPlace], first: RowPlace) -> str:
    """Return where rows stand; the file's name is said once."""
    if any(row.file != first.file for row in rows):
        return ", ".join(map(str, rows))
    return f"{first.unit}{'s' if len(rows) > 1 else ''} {', '.join(str(row.number) for row in rows)}"


def _kind(text: str) -> str:
    """Return what is said of a row without what is this very row's."""
    return shorten(_VARYING.sub("…", text), _SHOWN_KIND)
