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
from tunery_common.errors import TuneryError
from tunery_server.batch.lines import InputLines, Line
from tunery_server.batch.repeated import Repeated
from tunery_server.batch.requests import BadLine, parse

SHOWN: Final = 20
"""Bad lines that the message names."""
LOGGED: Final = 1000
MOST_MODELS: Final = 1000
"""That one file may name; each is looked up at the server."""
PROBLEMS_FILE: Final = "invalid-lines.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What was found in an input without a mistake."""

    lines: int
    digest: str
    """SHA-256 of the unpacked content."""
    models: dict[str, int]
    """Each model that is asked for, and the number of the first line that does."""


class Problems:
    """Bad lines: all of them in a file, by their number; the first ones in the log and in the message.

    They come in runs, each in the order of the lines: those that are no requests, those that repeat a name, those whose
    model cannot be asked. Each run has a file of its own, so that their number costs no memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: list[Path] = []
        self._run: IO[str] | None = None
        self._last = 0
        self._first: list[tuple[int, str]] = []
        self._hidden = False
        self.count = 0

    def add(self, number: int, text: str, *, shown: bool = True) -> None:
        """Take one; one that is not shown stands in the file alone."""
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
        """Return InputInvalid, with the first lines by their number; all of them are in `file` from now on.

        `unchecked`: why nobody knows whether the models can be asked.
        """
        count = self._merge()
        shown = "; ".join(f"line {number}: {text}" for number, text in sorted(self._first)[:SHOWN])
        lines = "1 line" if count == 1 else f"{count:,} lines"
        more = "; …" if self._hidden or len(self._first) > SHOWN else ""
        rest = f"; the models were not checked: {unchecked}" if unchecked is not None else ""
        message = f"spec.input.uri: {lines} of {uri} cannot be asked: {shown}{more}{rest}"
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
    """Return what is in the input; each line that is no request is added to `problems`."""
    repeated, models, count = Repeated(folder / "ids"), dict[str, int](), 0
    try:
        for line in lines:
            count += 1
            model = _look(line, default_model, repeated, problems)
            if model is not None and len(models) <= MOST_MODELS:
                models.setdefault(model, line.number)
        for number, first in repeated.found():
            problems.add(number, f"custom_id is that of line {first}")
    finally:
        repeated.close()
    if len(models) > MOST_MODELS:
        problems.add(max(models.values()), f"more than {MOST_MODELS} different models are asked for")
    return Checked(count, lines.digest, models)


def _look(line: Line, default_model: str | None, repeated: Repeated, problems: Problems) -> str | None:
    """Return the model that the line asks for, None where it is no request."""
    try:
        request = parse(line.raw, default_model)
    except BadLine as bad:
        problems.add(line.number, str(bad))
        return None
    repeated.add(request.custom_id, line.number)
    return request.model
