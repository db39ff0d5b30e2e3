"""Points of a space: which parameters a trial has, in which order they are chosen, and whether values are a point."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from tunery_search.dimensions import Categorical, Dimension, Numeric, Values, plain

Space = Sequence[Dimension]


def in_order(space: Space) -> tuple[Dimension, ...]:
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


def exists(dimension: Dimension, values: Values) -> bool:
    """Tell whether a trial with these values has that parameter."""
    return dimension.when is None or dimension.when.holds(values)


def has(dimension: Dimension, text: str) -> bool:
    """Tell whether `text` is one of the parameter's values."""
    if isinstance(dimension, Categorical):
        return text in dimension.choices
    try:
        value = float(text)
    except ValueError:
        return False
    if not dimension.low <= value <= dimension.high or (dimension.whole and value != int(value)):
        return False
    return dimension.is_on_a_step(value)


def is_point(space: Space, values: Values) -> bool:
    """Tell whether these values are a trial of this space: every parameter that exists, and no other."""
    there = [dimension for dimension in space if exists(dimension, values)]
    return {each.path for each in there} == set(values) and all(has(each, values[each.path]) for each in there)


def key(values: Mapping[str, str]) -> str:
    """Return what two points have in common that are the same."""
    return json.dumps(dict(values), sort_keys=True)


def texts(dimension: Dimension) -> Sequence[str] | None:
    """Return all values of a parameter; None where they are not counted: a range without steps."""
    if isinstance(dimension, Categorical):
        return dimension.choices
    step = spacing(dimension)
    if step is None:
        return None
    count = last_step(dimension, step) + 1
    return _Steps(dimension, step, count)


def spacing(dimension: Numeric) -> float | None:
    """Return the distance of two neighbours; None where there is none."""
    return dimension.step or (1.0 if dimension.whole else None)


def last_step(dimension: Numeric, step: float) -> int:
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
        return str(round(value)) if self._dimension.whole else plain(value)
