"""One line for each step, with its time: live on a terminal, plain elsewhere."""

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

MARKS = {"running": "[yellow]…[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


@dataclass
class Step:
    """One step, from its start on."""

    title: str
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    state: str = "running"

    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class Progress:
    """Steps that may run side by side; to be used as a context."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._lock = threading.Lock()
        self._console = Console(stderr=True)
        # Read again at each refresh, so that times tick by themselves.
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step while the block runs."""
        step = Step(title)
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
                    sys.stderr.write(f"[{step.seconds():6.1f} s] {step.state:6} {step.title}\n")
                    sys.stderr.flush()

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            for step in self._steps:
                table.add_row(MARKS[step.state], step.title, f"[dim]{step.seconds():.1f} s[/]")
        return table
