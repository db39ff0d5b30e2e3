"""Provide the dimensions of a search space: their values, their order, and the grid of all points.

Outside of the sampler, a value is the text in the manifest of the trial. The sampler learns from these texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

Values = Mapping[str, str]
"""The values of a trial by path. A parameter whose condition doesn't hold is absent."""

DIGITS: Final = 4
"""Significant digits of a suggested number."""
DECIMALS: Final = 10
"""Maximum digits after the decimal point, in every numeric field."""


_STEPS_OFF: Final = 1e-6
"""Tolerance for a value on a step, as a share of the step."""


@dataclass(frozen=True)
class Condition:
    """The values of another parameter with which this one is active."""

    path: str
    values: tuple[str, ...]

    def holds(self, values: Values) -> bool:
        """Return whether the condition holds with these values."""
        return values.get(self.path) in self.values


@dataclass(frozen=True)
class Categorical:
    """A parameter with choices."""

    path: str
    choices: tuple[str, ...]
    when: Condition | None = None


@dataclass(frozen=True)
class Numeric:
    """A parameter with a range from `low` to `high`, both included."""

    path: str
    low: float
    high: float
    """With a step, the last number that steps from `low` reach."""
    log: bool = False
    step: float | None = None
    integer: bool = False
    """Only integers."""
    when: Condition | None = None

    def is_on_step(self, value: float) -> bool:
        """Return whether a number is `low` plus full steps. Return true without a step."""
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=_STEPS_OFF)

    def text(self, value: float) -> str:
        """Return a suggested number as text: rounded, within the range, without an exponent."""
        if self.step:
            value = self.low + self.step * round((value - self.low) / self.step)
        elif value and not self.integer:
            value = round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.integer else plain(value)


Dimension = Categorical | Numeric


def plain(value: float) -> str:
    """Return a number as text without an exponent: 0.00001."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return text if text not in ("-0", "") else "0"


Dimensions = Sequence[Dimension]


def sampling_order(space: Dimensions) -> tuple[Dimension, ...]:
    """Return the parameters by path, each after the one of its condition, whatever their order in the manifest."""
    return parents_first(sorted(space, key=lambda dimension: dimension.path))


def parents_first(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """Return the parameters in their order, but each after the one of its condition."""
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
    """Return whether a trial with these values has the parameter."""
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
    """Return whether these values are a point of the space: all active parameters, and no others."""
    active = [dimension for dimension in space if is_active(dimension, values)]
    return {each.path for each in active} == set(values) and all(contains(each, values[each.path]) for each in active)


def point_key(values: Mapping[str, str]) -> str:
    """Return a key that is equal for equal points."""
    return json.dumps(dict(values), sort_keys=True)


def grid_values(dimension: Dimension) -> Sequence[str] | None:
    """Return all values of a parameter. Return None for a range without steps."""
    if isinstance(dimension, Categorical):
        return dimension.choices
    step = step_size(dimension)
    if step is None:
        return None
    count = step_count(dimension, step) + 1
    return _Steps(dimension, step, count)


def step_size(dimension: Numeric) -> float | None:
    """Return the distance of neighboring values. Return None without steps."""
    return dimension.step or (1.0 if dimension.integer else None)


def step_count(dimension: Numeric, step: float) -> int:
    """Return the number of steps from the lowest value to the highest."""
    return math.floor((dimension.high - dimension.low) / step + 1e-9)


class _Steps(Sequence[str]):
    """The values of a range with steps. There may be a million, so each is computed when it is read."""

    def __init__(self, dimension: Numeric, step: float, count: int) -> None:
        self._dimension, self._step, self._count = dimension, step, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices aren't used
        if not 0 <= index < self._count:
            raise IndexError(index)
        value = self._dimension.low + index * self._step
        return str(round(value)) if self._dimension.integer else plain(value)


def grid(space: Dimensions) -> Iterator[dict[str, str]]:
    """Yield every point. An inactive parameter adds no points.

    Yield nothing if a parameter has a range without steps: such a space has no grid.
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
    """Return the number of points of the grid, at most `most`."""
    return sum(1 for _ in islice(grid(space), most))
