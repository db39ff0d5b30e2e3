"""The grid of a space: every point once, in an order that is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tunery_search.dimensions import Dimension
from tunery_search.lattice import Space, exists, in_order, texts


def grid(space: Space) -> Iterator[dict[str, str]]:
    """Yield every point; a parameter whose condition does not hold makes no points of its own.

    Nothing where a parameter has values without number: such a space has no grid.
    """
    order = in_order(space)
    if all(texts(dimension) is not None for dimension in order):
        yield from _below(order, {})


def _below(order: tuple[Dimension, ...], values: dict[str, str]) -> Iterator[dict[str, str]]:
    if not order:
        yield dict(values)
        return
    first, rest = order[0], order[1:]
    if not exists(first, values):
        yield from _below(rest, values)
        return
    for text in texts(first) or ():
        yield from _below(rest, {**values, first.path: text})


def point(space: Space, number: int) -> dict[str, str] | None:
    """Return the grid point of that number, from 0 on; None where there are not so many."""
    return next(islice(grid(space), number, None), None)


def size(space: Space, most: int) -> int:
    """Return how many points the grid has; `most` where there are as many or more."""
    return sum(1 for _ in islice(grid(space), most))
