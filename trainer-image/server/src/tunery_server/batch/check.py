"""Every line is looked at before the first one is asked: a mistake in the last line costs no answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Problems:
    """Bad lines: all of them in a file, the first ones in the log and in the message."""

    file: IO[str]
    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, text: str) -> None:
        """Take one."""
        self.count += 1
        self.file.write(json.dumps({"line": number, "problem": text}) + "\n")
        self.first.append((number, text))
        if len(self.first) > 4 * SHOWN:
            self.first = sorted(self.first)[:SHOWN]
        if self.count <= LOGGED:
            _log.error("line %d: %s", number, text)

    def failure(self, uri: str) -> TuneryError:
        """Return InputInvalid, with the first lines by their number."""
        shown = "; ".join(f"line {number}: {text}" for number, text in sorted(self.first)[:SHOWN])
        lines = "1 line" if self.count == 1 else f"{self.count:,} lines"
        more = "; …" if self.count > SHOWN else ""
        message = f"spec.input.uri: {lines} of {uri} cannot be asked: {shown}{more}"
        return TuneryError(FailureReason.INPUT_INVALID, message)


@contextmanager
def problems_in(folder: Path) -> Iterator[Problems]:
    """Yield a new list of bad lines, kept below `folder`."""
    with (folder / PROBLEMS_FILE).open("w", encoding="utf-8") as file:
        yield Problems(file)


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
