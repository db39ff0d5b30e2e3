"""The corners of a space, and which parameter it is that an error at one of them comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

from tunery_api.errors import FieldError
from tunery_search.dimensions import Categorical, Dimension, Values
from tunery_search.lattice import exists, parents_first
from tunery_search.paths import TYPES, FieldType
from tunery_search.points import ends

COMBINATIONS: Final = 64
_APART: Final = 0.618
"""Combinations that are too many to try all are taken by steps of this share of them: spread over all of them."""
TOGETHER: Final = frozenset({FieldType.NAME, FieldType.SWITCH})
"""What goes with what is said of such fields above all: their combinations come first."""


Errors = frozenset[FieldError]
ErrorsOf = Callable[[Values], Errors]


@dataclass(frozen=True)
class Blame:
    """An error of some corners, and whose value it comes from."""

    error: FieldError
    values: Values
    """The corner."""
    path: str | None = None
    """The parameter whose value here it comes from; None where every corner has it, or it comes from no single one."""
    fitting: tuple[str, ...] = ()
    """Its other values, with which nothing is said of the error's field."""


def blames(dimensions: Iterable[Dimension], errors_of: ErrorsOf) -> Iterator[Blame]:
    """Yield the errors of the corners of a space, each where it comes from; one that all corners have once.

    The corners are each value of each parameter in turn, the others at their first, and combinations of choices: all
    where they are at most 64, else so many. An error of a combination is left out where a single value has it, too.
    """
    ordered = parents_first(dimensions)
    lines = _lines(ordered)
    base = _point(ordered, {})
    found = {key: (values, errors_of(values)) for key, values in _all(ordered, lines).items()}
    everywhere = frozenset.intersection(*(errors for _, errors in found.values()))
    for error in sorted(everywhere):
        yield Blame(error, base)
    table = [
        _Line(item, {value: (values, found[_key(values)][1]) for value, values in line.items()})
        for item, line in lines.items()
    ]
    blamed = set(everywhere)
    at_first = found[_key(base)][1]
    for error in dict.fromkeys(error for line in table for error in line.errors if error not in blamed):
        for line in _guilty(error, table, error in at_first):
            blamed.add(error)
            yield from line.blames(error)
    for values, errors in found.values():
        for error in sorted(errors - blamed):
            blamed.add(error)
            yield Blame(error, values, _needed(ordered, values, partial(_has, error, errors_of)))


def corner_count(dimensions: Iterable[Dimension]) -> tuple[int, int, int]:
    """Return how many corners of a space are looked at, how many combinations of choices, and of how many."""
    ordered = parents_first(dimensions)
    total = math.prod(len(item.choices) for item in ordered if isinstance(item, Categorical))
    return len(_all(ordered, _lines(ordered))), min(total, COMBINATIONS), total


def _lines(ordered: Sequence[Dimension]) -> dict[Dimension, dict[str, Values]]:
    """Return for each parameter the corners that differ in it alone, by its value."""
    return {item: {value: _with(ordered, item, value) for value in ends(item)} for item in ordered}


def _all(
    ordered: Sequence[Dimension], lines: Mapping[Dimension, Mapping[str, Values]]
) -> dict[frozenset[tuple[str, str]], Values]:
    """Return every corner that is looked at once, the first one first."""
    combined = (_point(ordered, wanted) for wanted in _combinations(ordered))
    return {_key(values): values for values in (_point(ordered, {}), *_values(lines), *combined)}


def _has(error: FieldError, errors_of: ErrorsOf, values: Values) -> bool:
    return error in errors_of(values)


@dataclass(frozen=True)
class _Line:
    """The corners that differ in one parameter alone, by its value, with their errors."""

    dimension: Dimension
    corners: Mapping[str, tuple[Values, Errors]]

    @cached_property
    def errors(self) -> Mapping[FieldError, None]:
        """Those that some of its corners have, and others not: that come from this parameter."""
        every = [errors for _, errors in self.corners.values()]
        shared = frozenset.intersection(*every)
        return dict.fromkeys(error for errors in every for error in sorted(errors - shared))

    def blames(self, error: FieldError) -> Iterator[Blame]:
        """Yield a blame for each value with which there is this error."""
        fitting = tuple(
            value for value, (_, errors) in self.corners.items() if all(other.path != error.path for other in errors)
        )
        for values, errors in self.corners.values():
            if error in errors:
                yield Blame(error, values, self.dimension.path, fitting)


def _guilty(error: FieldError, table: Sequence[_Line], at_first: bool) -> list[_Line]:
    """Return the lines on which an error comes and goes; of one at the first corner that of its own field, or one."""
    lines = [line for line in table if error in line.errors]
    own = [line for line in lines if error.path == f"spec.{line.dimension.path}"]
    return (own or lines)[:1] if at_first else lines


def _values(lines: Mapping[Dimension, Mapping[str, Values]]) -> Iterator[Values]:
    for line in lines.values():
        yield from line.values()


def _key(values: Values) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def first_point(dimensions: Iterable[Dimension]) -> Values:
    """Return the point at which every parameter has its first value."""
    return _point(parents_first(dimensions), {})


def _point(ordered: Sequence[Dimension], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the point with the wanted values, and the first of every other parameter that then exists."""
    values: dict[str, str] = {}
    for dimension in ordered:
        if exists(dimension, values):
            values[dimension.path] = wanted.get(dimension.path) or ends(dimension)[0]
    return values


def _with(ordered: Sequence[Dimension], dimension: Dimension, value: str) -> dict[str, str]:
    """Return the point with one value, and what that parameter needs to exist."""
    by_path, wanted = {item.path: item for item in ordered}, {dimension.path: value}
    above: Dimension | None = dimension
    while above and above.when:
        wanted[above.when.path] = above.when.values[0]
        above = by_path.get(above.when.path)
    return _point(ordered, wanted)


def _combinations(ordered: Sequence[Dimension]) -> Iterator[dict[str, str]]:
    """Yield combinations of choices: all, or some that are spread over all."""
    searched = [item for item in ordered if isinstance(item, Categorical)]
    searched.sort(key=lambda item: TYPES[item.path] not in TOGETHER)
    sizes = [len(item.choices) for item in searched]
    total = math.prod(sizes)
    first = math.prod(size for item, size in zip(searched, sizes, strict=True) if TYPES[item.path] in TOGETHER)
    stride = _stride(total)
    for number in range(min(total, COMBINATIONS)):
        index = number
        if total > COMBINATIONS:
            spread = number * stride % total
            # The names in full where they are few enough, the rest spread.
            index = spread // first * first + number % first if first <= COMBINATIONS else spread
        yield {item.path: item.choices[digit] for item, digit in zip(searched, _digits(index, sizes), strict=True)}


def _stride(total: int) -> int:
    stride = max(1, int(total * _APART))
    while math.gcd(stride, total) > 1:
        stride += 1
    return stride


def _digits(index: int, sizes: Iterable[int]) -> Iterator[int]:
    for size in sizes:
        index, digit = divmod(index, size)
        yield digit


def _needed(ordered: Sequence[Dimension], values: Values, fails: Callable[[Values], bool]) -> str | None:
    """Return the last parameter whose first value would end what fails at a combination, else the last that differs.

    None where none differs: what fails at the first corner needs more than one other value to end.
    """
    differing = [item for item in ordered if values.get(item.path, ends(item)[0]) != ends(item)[0]]
    ending = [item.path for item in differing if not fails(_point(ordered, {**values, item.path: ends(item)[0]}))]
    return next(reversed(ending or [item.path for item in differing]), None)
