"""What goes wrong between the operator and the API server: a fault every few seconds, random but the same each time.

Only faults that pass at once: a status may lag behind for five seconds, and each of them must heal within these.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Final

from kit.operator.faults import Answer, Break, Cut, Duplicate, End, ErrorEvent, Fault, Garbage, Rule, Slow
from kit.operator.faults_proxy import FaultProxy

PAUSE_SECONDS: Final = 4.0
"""Between two faults, on the average; looks are a second apart."""
_CALLS: Final = (
    ("create", "jobs"),
    ("patch", "jobs"),
    ("delete", "jobs"),
    ("get", "jobs"),
    ("patch", "lorajobs/status"),
    ("get", "lorajobs"),
    ("list", "pods"),
    ("list", "events"),
    ("create", "events"),
)
_REQUEST_FAULTS: Final[tuple[Fault, ...]] = (
    Answer(429, 1),
    Answer(500),
    Answer(503, 1),
    Cut("before"),
    Cut("middle"),
    Cut("after"),
    Slow(1.0),
)
_WATCHED: Final = ("lorajobs", "jobs", "pods")
_WATCH_FAULTS: Final[tuple[Fault, ...]] = (Break(), End(), Duplicate(), Garbage(), ErrorEvent(410))


class Trouble:
    """Adds the faults, and remembers which of them struck."""

    def __init__(self, proxy: FaultProxy, seed: int) -> None:
        self._proxy = proxy
        self._draw = random.Random(seed)
        self._rules: list[Rule] = []

    def go_on(self) -> None:
        """Let something go wrong, or not; never two at once for the same kind of call."""
        if self._draw.random() >= 1 / PAUSE_SECONDS:
            return
        watched = self._draw.random() < 0.3
        verb, resource = ("watch", self._draw.choice(_WATCHED)) if watched else self._draw.choice(_CALLS)
        fault = self._draw.choice(_WATCH_FAULTS if watched else _REQUEST_FAULTS)
        if not any(rule.active and (rule.verb, rule.resource) == (verb, resource) for rule in self._rules):
            self._rules.append(self._proxy.add(fault, verb, resource))

    def end(self) -> None:
        """Let nothing go wrong any more."""
        self._proxy.clear()

    def struck(self) -> dict[str, int]:
        """Return how often what went wrong, by the name of the fault."""
        counts = Counter({_name(rule.fault): 0 for rule in self._rules})
        for rule in self._rules:
            counts[_name(rule.fault)] += rule.struck
        return dict(sorted(counts.items()))


def _name(fault: Fault) -> str:
    return f"{fault.status}" if isinstance(fault, Answer) else type(fault).__name__
