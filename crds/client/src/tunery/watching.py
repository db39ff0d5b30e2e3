"""Show an object while it is followed: one live line in a terminal, otherwise a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from tunery.describe import Line, blocker, news, progress, result
from tunery.objects import View
from tunery.text import encodable, phase_style, printable
from tunery_api.kinds import Kind
from tunery_api.serverstatus import ServerPhase
from tunery_api.status import Phase

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

BAR: Final = 20
"""The most characters of the bar."""
_SEPARATOR: Final = "  "


class Display(Protocol):
    """Where the states of an object are shown."""

    def tell(self, line: Line) -> None:
        """Print a line once."""

    def update(self, view: View) -> None:
        """Show the progress."""


def show(states: Iterable[View], display: Display) -> View:
    """Show the states of one object as they come, and return the last one.

    A server never finishes: it is followed until it serves everything, is scaled to 0, or its spec has errors.
    """
    before: View | None = None
    for now in states:
        display.update(now)
        for line in news(before, now):
            display.tell(line)
        before = now
        if now.kind is Kind.ADAPTERSERVER and now.phase in _SETTLED and not _unobserved(now):
            break
    if before is None:
        raise ValueError("no state to show")
    if before.finished or before.kind is Kind.ADAPTERSERVER:
        for line in result(before):
            display.tell(line)
    return before


_SETTLED: Final = frozenset({ServerPhase.READY.value, ServerPhase.STOPPED.value, ServerPhase.INVALID.value})


def _unobserved(view: View) -> bool:
    """Return whether the status is that of an earlier spec."""
    return bool(view.status.get("observedGeneration") != view.metadata.get("generation"))


class Lines:
    """Prints a line with the time whenever something has changed, for pipes and logs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = ""

    def tell(self, line: Line) -> None:
        """Print a line."""
        self._write(f"{time.strftime('%H:%M:%S')} {printable(line.text)}")

    def update(self, view: View) -> None:
        """Print the progress if it has changed; a new estimate of the remaining time alone is no change."""
        parts = progress(view)
        changed = _SEPARATOR.join([view.phase, *(part for part in parts if not part.startswith("ETA "))])
        if changed != self._shown:
            self._shown = changed
            self.tell(Line(_SEPARATOR.join([view.phase, *parts])))


class LiveLine:
    """Shows one line that changes in place at the bottom of a terminal."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._view: View | None = None
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)

    @contextmanager
    def running(self) -> Iterator[LiveLine]:
        """Show the line; it is removed at the end."""
        with self._live:
            yield self

    def tell(self, line: Line) -> None:
        """Print a line above the live one."""
        text = encodable(printable(line.text), self._console.encoding)
        self._console.print(text, style=line.style or None, markup=False, soft_wrap=True)

    def update(self, view: View) -> None:
        """Show the progress."""
        self._view = view
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._view is not None:
            yield live_line(self._view, options.max_width, ascii_only=options.ascii_only)


def live_line(view: View, width: int, *, ascii_only: bool = False) -> Text:
    """Return the progress as one line of less than `width` characters; what does not fit is omitted, the bar first."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop", end="")
    text.append(f"{view.name[: max(8, width // 6)]} ", "bold")
    text.append(view.phase, phase_style(view.phase))
    parts = progress(view)
    waits = blocker(view)
    if waits is not None:
        parts.insert(0, waits.reason)
    percent = view.at("status.progress.percent")
    if percent is not None and view.phase == Phase.TRAINING:
        parts.insert(0, f"{percent:.0f} %")
    room, shown = width - 1 - len(text), []
    for part in parts:
        if len(_SEPARATOR) + len(part) <= room:
            shown.append(part)
            room -= len(_SEPARATOR) + len(part)
    size = min(BAR, room - len(_SEPARATOR))
    if percent is not None and view.phase == Phase.TRAINING and size >= 5:
        done, left = ("#", ".") if ascii_only else ("━", "─")
        full = round(size * percent / 100)
        text.append(f"{_SEPARATOR}{done * full}", "green").append(left * (size - full), "dim")
    text.append("".join(f"{_SEPARATOR}{part}" for part in shown))
    text.truncate(max(1, width - 1))
    return text
