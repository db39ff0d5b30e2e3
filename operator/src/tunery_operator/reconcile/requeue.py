"""What a reconcile leaves to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_operator.views.owner import Key


@dataclass(frozen=True, slots=True)
class Requeue:
    """Nothing, or another look after so many seconds; and the objects that waited for what was written."""

    after: float | None = None
    wake: frozenset[Key] = frozenset()


DONE: Final = Requeue()


def earliest(*times: float | None) -> float | None:
    """Return the least of some numbers of seconds, leaving out what is None."""
    return min((time for time in times if time is not None), default=None)
