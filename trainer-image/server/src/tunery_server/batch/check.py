"""Every line is looked at before the first one is asked: a mistake in the last line costs no answer."""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Final

from tunery_api.reasons import FailureReason
from tunery_api.redact import MAX_MESSAGE_BYTES, shorten
from tunery_common.errors import TuneryError
from tunery_server.batch.fitting import fitting
from tunery_server.batch.lines import InputLines, Line
from tunery_server.batch.repeated import Repeated
from tunery_server.batch.requests import BadLine, parse

SHOWN: Final = 20
"""Bad lines that the message names."""
LOGGED: Final = 1000
MOST_PROBLEMS: Final = 10_000
"""Bad lines of each kind that are listed: an input that has more is read no further, however many they are."""
MOST_MODELS: Final = 1000
"""That one file may name; each is looked up at the server."""
PROBLEMS_FILE: Final = "invalid-lines.jsonl"
_LONGEST_URI: Final = 250
"""Bytes of it, and of what else is said beside the lines, in a message."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What was found in an input without a mistake."""

    lines: int
    digest: str
    """SHA-256 of the unpacked content; of an input that was not read to its end nobody's."""
    models: dict[str, int]
    """Each model that is asked for, and the number of the first line that does."""
    read_to: int
    """The number of the last line that was looked at."""


class Problems:
    """Bad lines: in a file, by their number; the first ones in the log and in the message.

    They come in kinds: those that are no requests, those that repeat a name, those whose model cannot be asked. Of each
    kind so many are taken at most, so that a small file of very many bad lines, packed, fills neither disk nor memory.
    A kind comes in runs, each in the order of the lines, that have a file each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: list[Path] = []
        self._run: IO[str] | None = None
        self._last = 0
        self._first: list[tuple[int, str]] = []
        self._hidden = False
        self._of_kind = 0
        self.count = 0
        self.cut_at: int | None = None
        """The number of the last line up to which all of them are taken, where they became too many."""

    def cut(self, number: int) -> None:
        """Take note that behind this line there may be more."""
        self.cut_at = number if self.cut_at is None else min(self.cut_at, number)

    def begin(self) -> None:
        """Begin another kind."""
        self._of_kind = 0

    @property
    def full(self) -> bool:
        """Tell whether of this kind no more are to be looked for."""
        return self._of_kind >= MOST_PROBLEMS

    def add(self, number: int, text: str, *, shown: bool = True) -> None:
        """Take one; one that is not shown stands in the file alone."""
        self._of_kind += 1
        if self._run is None or number < self._last:
            self._run = self._next_run()
        self._run.write(json.dumps({"line": number, "problem": text}) + "\n")
        self._last = number
        self.count += 1
        if not shown:
            self._hidden = True
            return
        self._first.append((number, text))
        if len(self._first) > 4 * SHOWN:
            self._first, self._hidden = sorted(self._first)[:SHOWN], True
        if self.count <= LOGGED:
            _log.error("line %d: %s", number, text)

    def failure(self, uri: str, unchecked: str | None = None) -> TuneryError:
        """Return InputInvalid, with the first lines by their number; all that were taken are in `file` from now on.

        `unchecked`: why nobody knows whether the models can be asked.
        """
        count = self._merge()
        first = [f"line {number}: {text}" for number, text in sorted(self._first)[:SHOWN]]
        lines = "1 line" if count == 1 else f"{count:,} lines"
        begins = f"spec.input.uri: {lines} of {shorten(uri, _LONGEST_URI)} cannot be asked"
        if self.cut_at is not None:
            begins += f", and more may: not all behind line {self.cut_at} are named"
        more = "; …" if self._hidden or len(self._first) > SHOWN else ""
        rest = f"; the models were not checked: {shorten(unchecked, _LONGEST_URI)}" if unchecked is not None else ""
        room = MAX_MESSAGE_BYTES - len(f"{begins}: {more}{rest}".encode())
        message = f"{begins}: {fitting(first, room)}{more}{rest}"
        return TuneryError(FailureReason.INPUT_INVALID, message)

    @property
    def file(self) -> Path:
        """Where all of them are."""
        return self._folder / PROBLEMS_FILE

    def close(self) -> None:
        """Write nothing more."""
        if self._run is not None:
            self._run.close()

    def _next_run(self) -> IO[str]:
        self.close()
        self._runs.append(self._folder / f"problems-{len(self._runs)}")
        return self._runs[-1].open("w", encoding="utf-8")

    def _merge(self) -> int:
        """Write all of them in the order of the lines; return how many lines they are."""
        self.close()
        count = last = 0
        with ExitStack() as stack, self.file.open("w", encoding="utf-8") as file:
            runs = [stack.enter_context(path.open(encoding="utf-8")) for path in self._runs]
            for number, row in heapq.merge(*map(_numbered, runs), key=itemgetter(0)):
                file.write(row)
                count, last = count + (number != last), number
        return count


def _numbered(rows: Iterable[str]) -> Iterator[tuple[int, str]]:
    for row in rows:
        yield json.loads(row)["line"], row


def check(lines: InputLines, default_model: str | None, folder: Path, problems: Problems) -> Checked:
    """Return what is in the input, which is read until there are too many that cannot be asked.

    Each line that is no request, or repeats a name, is added to `problems`.
    """
    repeated, models, count, number = Repeated(folder / "ids"), dict[str, int](), 0, 0
    try:
        for line in lines:
            count, number = count + 1, line.number
            model = _look(line, default_model, repeated, problems)
            if model is not None and len(models) <= MOST_MODELS:
                models.setdefault(model, line.number)
            if problems.full or repeated.known >= MOST_PROBLEMS:
                problems.cut(number)
                break
        _add_repeated(repeated, problems)
    finally:
        repeated.close()
    if len(models) > MOST_MODELS:
        problems.add(max(models.values()), f"more than {MOST_MODELS} different models are asked for")
    return Checked(count, lines.digest, models, number)


def _add_repeated(repeated: Repeated, problems: Problems) -> None:
    """Add the first lines that repeat a name; they are found in no order."""
    problems.begin()
    found = heapq.nsmallest(MOST_PROBLEMS + 1, repeated.found())
    for again, first in found[:MOST_PROBLEMS]:
        problems.add(again, f"custom_id is that of line {first}")
    if len(found) > MOST_PROBLEMS:
        problems.cut(found[MOST_PROBLEMS - 1][0])


def _look(line: Line, default_model: str | None, repeated: Repeated, problems: Problems) -> str | None:
    """Return the model that the line asks for, None where it is no request."""
    try:
        request = parse(line.raw, default_model)
    except BadLine as bad:
        problems.add(line.number, str(bad))
        return None
    repeated.add(request.custom_id, line.number)
    return request.model
