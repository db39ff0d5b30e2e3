"""What a sweep searches: each parameter's values, and how a manifest writes them.

Everywhere outside of the sampler a value is the text that stands in the manifest of the trial: what the sampler is told
is then what ran, to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Values = Mapping[str, str]
"""The values of a trial by path; a parameter whose condition does not hold is not there."""

DIGITS: Final = 4
"""Significant digits of a number that is proposed."""
DECIMALS: Final = 10
"""Digits after the point that every field of numbers has room for."""


_STEPS_OFF: Final = 1e-6
"""Share of a step that a value may be off its place."""


@dataclass(frozen=True)
class Condition:
    """What another parameter must be for this one to exist."""

    path: str
    values: tuple[str, ...]

    def holds(self, values: Values) -> bool:
        """Tell whether it does among these values."""
        return values.get(self.path) in self.values


@dataclass(frozen=True)
class Categorical:
    """A parameter that is one of several texts."""

    path: str
    choices: tuple[str, ...]
    when: Condition | None = None


@dataclass(frozen=True)
class Numeric:
    """A parameter that is a number from `low` to `high`, both included."""

    path: str
    low: float
    high: float
    """With a step, the last number that steps from `low` come to."""
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Only whole numbers."""
    when: Condition | None = None

    def is_on_a_step(self, value: float) -> bool:
        """Tell whether a number is the lowest one with whole steps on top; any is where there are no steps."""
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=_STEPS_OFF)

    def text(self, value: float) -> str:
        """Return a proposed number as the field writes it: rounded, within the range, never with an exponent."""
        if self.step:
            value = self.low + self.step * round((value - self.low) / self.step)
        elif value and not self.whole:
            value = round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.whole else plain(value)


Dimension = Categorical | Numeric


def plain(value: float) -> str:
    """Return a number without an exponent, as every field takes it: 0.00001."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return text if text not in ("-0", "") else "0"
