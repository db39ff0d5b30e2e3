"""Show each step with its seconds: live on a terminal, elsewhere one line at its end and some while it runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

WORD_SECONDS = 10.0
"""Seconds until the first line of a running step; the pause doubles, up to a minute."""
_LONGEST_SILENCE = 60.0
_TICK_SECONDS = 0.5
MARKS = {"running": "[yellow]…[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


@dataclass
class Step:
    """One step, from its start on."""

    title: str
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    state: str = "running"
    next_word: float = WORD_SECONDS
    """Seconds after its start at which the next line is due."""

    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class Progress:
    """Steps that may run side by side; to be used as a context."""

    def __init__(self, word_seconds: float = WORD_SECONDS) -> None:
        self._word_seconds = word_seconds
        self._steps: list[Step] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
        self._console = Console(stderr=True)
        # Read again at each refresh, so that times tick by themselves.
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._over.set()
            self._teller.join()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step while the block runs."""
        step = Step(title, next_word=self._word_seconds)
        with self._lock:
            self._steps.append(step)
        try:
            yield
            step.state = "done"
        except BaseException:
            step.state = "failed"
            raise
        finally:
            step.ended = time.monotonic()
            if not self._console.is_terminal:
                with self._lock:
                    _write(step, step.state)

    def _tell(self) -> None:
        """Write a line for each step that takes long, until all steps have ended."""
        while not self._over.wait(min(_TICK_SECONDS, self._word_seconds / 2)):
            with self._lock:
                for step in self._steps:
                    if step.ended is None and step.seconds() >= step.next_word:
                        _write(step, "running")
                        step.next_word += min(step.next_word, _LONGEST_SILENCE)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            for step in self._steps:
                table.add_row(MARKS[step.state], step.title, f"[dim]{step.seconds():.1f} s[/]")
        return table


def _write(step: Step, word: str) -> None:
    sys.stderr.write(f"{word:7} {step.title} ({step.seconds():.0f} s)\n")
    sys.stderr.flush()
