"""What a reconcile leaves to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Outcome:
    """Nothing, or another look after so many seconds."""

    after: float | None = None


DONE: Final = Outcome()
