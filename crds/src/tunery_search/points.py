"""Whether values are a point of a space, or a part of one, and how the space itself writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tunery_api.errors import FieldError, near
from tunery_search.dimensions import Categorical, Dimension, plain
from tunery_search.lattice import exists, has, is_point, parents_first
from tunery_search.paths import canonical


def ends(dimension: Dimension) -> tuple[str, ...]:
    """Return the choices of a parameter, or both ends of its range."""
    if isinstance(dimension, Categorical):
        return dimension.choices
    return dimension.text(dimension.low), dimension.text(dimension.high)


def value_in(dimension: Dimension, text: str) -> str:
    """Return a value of a parameter in its canonical text.

    Raises ValueError, whose message begins with "must", where it is none.
    """
    value = canonical(dimension.path, text)
    if not has(dimension, value):
        raise ValueError(_unfit(dimension, value, text))
    return value


def _unfit(dimension: Dimension, value: str, text: str) -> str:
    """Return what a value must be that is none of a parameter's."""
    if isinstance(dimension, Categorical):
        return f"must be {listed(dimension.choices)}, is {text!r}{near(value, dimension.choices)}"
    low, high = ends(dimension)
    if dimension.step and dimension.low <= float(value) <= dimension.high:
        return f"must be {low} and a multiple of {plain(dimension.step)} on top, is {text!r}"
    return f"must be from {low} to {high}, is {text!r}"


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence takes them: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def misfits(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> Iterator[FieldError]:
    """Yield, by path, what of the values is no part of a point: a value, or one that may not exist beside the others.

    A parameter that the values leave open is no misfit.
    """
    known = {dimension.path: dimension for dimension in dimensions}
    placed: dict[str, str] = {}
    for path, text in values.items():
        if path not in known:
            yield FieldError(path, f"is no parameter of this sweep{near(path, known) or '; leave it out'}")
            continue
        try:
            placed[path] = value_in(known[path], text)
        except ValueError as error:
            yield FieldError(path, str(error))
    for path in placed:
        when = known[path].when
        if when is None or when.holds(placed):
            continue
        if when.path not in values:
            yield FieldError(path, f"exists only in some trials: say here, too, that {when.path} is {when.values[0]}")
        elif when.path in placed:
            yield FieldError(path, f"exists only where {when.path} is {listed(when.values)}; leave it out")


def part_of_point(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values as the space writes them, None where they are no part of any point of it."""
    known = {dimension.path: dimension for dimension in dimensions}
    if any(misfits(known.values(), values)):
        return None
    return {path: value_in(known[path], text) for path, text in sorted(values.items())}


def point(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values as the space writes them, None where they are no point of it: one lacks, or does not fit."""
    known = tuple(dimensions)
    placed = part_of_point(known, values)
    return placed if placed is not None and is_point(known, placed) else None


def point_with(dimensions: Iterable[Dimension], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the point with the wanted values, and the first value of every other parameter that then exists."""
    values: dict[str, str] = {}
    for dimension in parents_first(dimensions):
        if exists(dimension, values):
            values[dimension.path] = wanted.get(dimension.path) or ends(dimension)[0]
    return values


def with_parents(dimensions: Iterable[Dimension], path: str, text: str) -> dict[str, str]:
    """Return a value with the values of other parameters that its own parameter needs to exist."""
    by_path, wanted = {item.path: item for item in dimensions}, {path: text}
    above = by_path.get(path)
    while above and above.when:
        wanted[above.when.path] = above.when.values[0]
        above = by_path.get(above.when.path)
    return wanted
