"""Provide the dimensions of a search space: their values, their order, and the grid of all points.

Outside of the sampler a value is the text in the manifest of the trial. The sampler learns from what ran.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
        """Return whether it does among these values."""
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
    integer: bool = False
    """Only whole numbers."""
    when: Condition | None = None

    def is_on_step(self, value: float) -> bool:
        """Return whether a number is the lowest one with whole steps on top; any is where there are no steps."""
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=_STEPS_OFF)

    def text(self, value: float) -> str:
        """Return a proposed number as the field writes it: rounded, within the range, never with an exponent."""
        if self.step:
            value = self.low + self.step * round((value - self.low) / self.step)
        elif value and not self.integer:
            value = round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.integer else plain(value)


Dimension = Categorical | Numeric


def plain(value: float) -> str:
    """Return a number without an exponent, as every field takes it: 0.00001."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return text if text not in ("-0", "") else "0"


Dimensions = Sequence[Dimension]


def sampling_order(space: Dimensions) -> tuple[Dimension, ...]:
    """Return the parameters by path, each behind the one that its condition asks: the order of a manifest is none."""
    return parents_first(sorted(space, key=lambda dimension: dimension.path))


def parents_first(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """Return the parameters as they come, but each behind the one that its condition asks."""
    waiting, ordered = list(dimensions), []
    known = {dimension.path for dimension in waiting}
    placed: set[str] = set()
    while waiting:
        ready = [item for item in waiting if item.when is None or item.when.path in placed | ({item.when.path} - known)]
        ordered += ready or waiting
        placed |= {item.path for item in ready or waiting}
        waiting = [item for item in waiting if item.path not in placed]
    return tuple(ordered)


def is_active(dimension: Dimension, values: Values) -> bool:
    """Return whether a trial with these values has that parameter."""
    return dimension.when is None or dimension.when.holds(values)


def contains(dimension: Dimension, text: str) -> bool:
    """Return whether `text` is one of the parameter's values."""
    if isinstance(dimension, Categorical):
        return text in dimension.choices
    try:
        value = float(text)
    except ValueError:
        return False
    if not dimension.low <= value <= dimension.high or (dimension.integer and value != int(value)):
        return False
    return dimension.is_on_step(value)


def is_point(space: Dimensions, values: Values) -> bool:
    """Return whether these values are a trial of this space: every parameter that exists, and no other."""
    there = [dimension for dimension in space if is_active(dimension, values)]
    return {each.path for each in there} == set(values) and all(contains(each, values[each.path]) for each in there)


def point_key(values: Mapping[str, str]) -> str:
    """Return what two points have in common that are the same."""
    return json.dumps(dict(values), sort_keys=True)


def grid_values(dimension: Dimension) -> Sequence[str] | None:
    """Return all values of a parameter; None where they are not counted: a range without steps."""
    if isinstance(dimension, Categorical):
        return dimension.choices
    step = step_size(dimension)
    if step is None:
        return None
    count = step_count(dimension, step) + 1
    return _Steps(dimension, step, count)


def step_size(dimension: Numeric) -> float | None:
    """Return the distance of two neighbours; None where there is none."""
    return dimension.step or (1.0 if dimension.integer else None)


def step_count(dimension: Numeric, step: float) -> int:
    """Return how many steps lead from the lowest value to the highest that is one."""
    return math.floor((dimension.high - dimension.low) / step + 1e-9)


class _Steps(Sequence[str]):
    """The values of a stepped range: there may be a million, of which a few are looked at."""

    def __init__(self, dimension: Numeric, step: float, count: int) -> None:
        self._dimension, self._step, self._count = dimension, step, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nobody asks for a slice
        if not 0 <= index < self._count:
            raise IndexError(index)
        value = self._dimension.low + index * self._step
        return str(round(value)) if self._dimension.integer else plain(value)


def grid(space: Dimensions) -> Iterator[dict[str, str]]:
    """Yield every point; a parameter whose condition does not hold makes no points of its own.

    Nothing where a parameter has values without number: such a space has no grid.
    """
    order = sampling_order(space)
    if all(grid_values(dimension) is not None for dimension in order):
        yield from _expand(order, {})


def _expand(order: tuple[Dimension, ...], values: dict[str, str]) -> Iterator[dict[str, str]]:
    if not order:
        yield dict(values)
        return
    first, rest = order[0], order[1:]
    if not is_active(first, values):
        yield from _expand(rest, values)
        return
    for text in grid_values(first) or ():
        yield from _expand(rest, {**values, first.path: text})


def grid_size(space: Dimensions, most: int) -> int:
    """Return how many points the grid has; `most` where there are as many or more."""
    return sum(1 for _ in islice(grid(space), most))
