"""Provide text for terminals and pipes: characters that every terminal can show, tables, durations."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL: Final = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t")
_PLAIN: Final = {"−": "-", "…": "...", "✓": "ok", "✗": "FAILED", "→": "->"}
"""ASCII for characters that an output encoding such as Windows-1252 may not have."""
_ERRORS: Final = "tunery-plain"
_GAP: Final = "   "
_STYLES: Final = {
    "Succeeded": "green", "Ready": "green", "Failed": "red", "Invalid": "red", "Degraded": "yellow",
    "Waiting": "yellow", "Queued": "yellow", "Pending": "dim", "Suspended": "dim", "Stopped": "dim",
}  # fmt: skip


class Column(NamedTuple):
    """A column of a table."""

    header: str
    optional: bool = False
    """Whether a terminal that is too narrow for the table omits it."""


def printable(text: str) -> str:
    """Return text without control characters, which could change the terminal."""
    return text.translate(_CONTROL)


def use_plain_characters() -> None:
    """Let stdout and stderr replace characters that their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _replacement)


def encodable(text: str, encoding: str | None) -> str:
    """Return text with the characters that an encoding does not have replaced."""
    return text.encode(encoding or "utf-8", _ERRORS).decode(encoding or "utf-8")


def phase_style(phase: str) -> str:
    """Return the style of a phase for rich; phases of objects that make progress are cyan."""
    return _STYLES.get(phase, "cyan")


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    style: Callable[[str], str] | None = None,
) -> None:
    """Print rows below the headers of their columns, without empty columns.

    A terminal that is too narrow omits optional columns, the last one first. If the others don't fit either, each row
    is a block of lines. `style` returns the style of the cells of column PHASE.
    """
    from rich.cells import cell_len
    from rich.text import Text

    lines = [[each.header for each in columns], *([" ".join(printable(cell).split()) for cell in row] for row in rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    filled = [index for index in range(len(columns)) if any(line[index] for line in lines[1:])]
    shown = _fitting(columns, widths, filled, console.width) if console.is_terminal else filled
    text = Text()
    for number, line in enumerate(lines if shown else ()):
        for index in shown:
            is_phase = style is not None and number > 0 and columns[index].header == "PHASE"
            text.append(line[index], style(line[index]) if style is not None and is_phase else None)
            text.append(" " * (widths[index] - cell_len(line[index])) + _GAP if index != shown[-1] else "\n")
    for line in () if shown else lines[1:]:
        text.append(f"{line[filled[0]]}\n", "bold")
        for index in filled[1:]:
            text.append(f"  {columns[index].header}: {line[index]}\n" if line[index] else "")
    console.print(text, end="")


def _fitting(columns: Sequence[Column], widths: Sequence[int], filled: Sequence[int], width: int) -> list[int]:
    """Return the indices of the columns that fit into a width; empty if not even those that are not optional do."""
    shown = list(filled)
    for index in (None, *reversed([index for index in filled if columns[index].optional])):
        if index is not None:
            shown.remove(index)
        if sum(widths[each] + len(_GAP) for each in shown) - len(_GAP) <= width:
            return shown
    return []


def duration_text(seconds: float) -> str:
    """Return a duration as kubectl shows an age: 45s, 12m, 3h10m, 2d4h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if seconds < 120:
        return f"{max(0, int(seconds))}s"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 48:
        return f"{hours}h{minutes % 60}m" if hours < 8 and minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if days < 8 and hours % 24 else f"{days}d"


def bytes_text(size: int) -> str:
    """Return a number of bytes in readable form: 512 B, 24.0 MiB, 5.2 GiB."""
    if size < 2**20:
        return f"{size} B" if size < 2**10 else f"{size / 2**10:.1f} KiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
