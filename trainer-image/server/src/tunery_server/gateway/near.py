"""What somebody may have meant who asks for a model that is not there: found cheaply, or not at all."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from itertools import takewhile
from typing import Final

from tunery_server.gateway.errors import Refusal, unknown_model
from tunery_server.routes import Routes

LONGEST: Final = 128
"""Characters of a name that is looked at: no model has a longer one."""
COMPARED: Final = 32
"""Names that are compared in earnest; of more those are that begin and end most alike."""
CLOSE: Final = 0.75
"""How much of two names is the same: a letter of four may be wrong."""
REST: Final = 20
"""After each look the next is not taken for so many times as long: whoever asks for many names delays nobody."""
LEAST_REST: Final = 0.02


class Near:
    """Finds the closest name."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._rests_until = -float("inf")

    def refusal(self, routes: Routes, client: str, model: str) -> Refusal:
        """Return the refusal of an unknown model, which names a close one that this client may ask for now."""
        return unknown_model(self.find(model, lambda: routes.names_for(client)))

    def find(self, asked: str, names: Callable[[], Iterable[str]]) -> str | None:
        """Return the name closest to `asked`, in any case of letters; None where none is close, or it must rest.

        `names` is called only where a look is taken.
        """
        began = self._clock()
        if len(asked) > LONGEST or began < self._rests_until:
            return None
        close = closest(asked, list(names()))
        ended = self._clock()
        self._rests_until = ended + max(LEAST_REST, REST * (ended - began))
        return close


def closest(asked: str, names: Sequence[str]) -> str | None:
    """Return the name closest to `asked`, in any case of letters; None where none is close."""
    asked = asked.lower()
    if len(names) > COMPARED:
        names = nlargest(COMPARED, names, key=lambda name: _alike(asked, name.lower()))
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(asked, by_lower, n=1, cutoff=CLOSE)
    return by_lower[close[0]] if close else None


def _alike(one: str, other: str) -> int:
    """Return how many letters are the same at the beginning and at the end."""
    return _same(zip(one, other, strict=False)) + _same(zip(reversed(one), reversed(other), strict=False))


def _same(pairs: Iterable[tuple[str, str]]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
