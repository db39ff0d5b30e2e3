"""Keeps one operator running, kills it at random, and watches its memory, its log and its writes."""

from __future__ import annotations

import random
import re
import statistics
from pathlib import Path
from typing import Final

from kit.operator.process import OperatorProcess

_LIFE_SECONDS: Final = (20.0, 90.0)
"""How long it lives between two kills."""
_WRITE: Final = re.compile(r'^tunery_api_requests_total\{.*verb="(\w+)".*\} (\S+)$', re.MULTILINE)
_READS: Final = frozenset({"get", "list", "watch", "GET"})
_MIB: Final = 1 << 20


class Keeper:
    """One operator, and what was measured of it."""

    def __init__(self, operator: OperatorProcess, seed: int) -> None:
        self.operator = operator
        self._draw = random.Random(seed)
        self._next_kill = 0.0
        self.kills = 0
        self.unexpected_ends = 0
        self.ready_since: float | None = None
        self.memory: list[tuple[float, float]] = []
        """Seconds and MiB of the life that nobody ends."""
        self.peak_mib = 0.0

    def start(self, now: float) -> None:
        """Start the first life."""
        self.operator.start()
        self._live(now)

    def look(self, now: float, *, may_kill: bool) -> None:
        """Take note of the process, and end and restart it where its time has come."""
        if self.operator.reap():
            self.unexpected_ends += 1
            self._restart(now)
        elif may_kill and now >= self._next_kill:
            self.kills += 1
            if self._draw.random() < 0.5:
                self.operator.kill()
            else:
                self.operator.stop()
            self._restart(now)
        elif self.ready_since is None and self.operator.is_ready():
            self.ready_since = now
        resident = _resident_mib(self.operator.pid)
        self.peak_mib = max(self.peak_mib, resident)
        if not may_kill:
            self.memory.append((now, resident))

    def excused_until(self, now: float) -> float:
        """Return since when there is an operator that can be wrong."""
        return now if self.ready_since is None else self.ready_since

    def writes(self) -> float:
        """Return how many requests of this life changed something in the cluster."""
        found = _WRITE.findall(self.operator.metrics())
        return sum(float(count) for verb, count in found if verb.lower() not in _READS)

    def growth_mib_an_hour(self) -> float | None:
        """Return the slope of the memory while nobody ended the operator; None where that was too short to tell."""
        if len(self.memory) < 2 or self.memory[-1][0] - self.memory[0][0] < 240:
            return None
        half = self.memory[len(self.memory) // 4 :]  # the first quarter fills the caches
        slope = statistics.linear_regression([at for at, _ in half], [mib for _, mib in half]).slope
        return slope * 3600

    def bad_lines(self) -> list[str]:
        """Return the lines of level ERROR, and tracebacks, of all lives."""
        lines = self.operator.log.read_text(errors="replace").splitlines()
        return [line for line in lines if re.match(r"(\S+ (ERROR|CRITICAL) |Traceback )", line)]

    def _restart(self, now: float) -> None:
        self.operator.start(wait=False)
        self._live(now)
        self.ready_since = None

    def _live(self, now: float) -> None:
        self.ready_since = now
        self._next_kill = now + self._draw.uniform(*_LIFE_SECONDS)


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / _MIB
