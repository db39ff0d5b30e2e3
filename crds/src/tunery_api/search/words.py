"""What is searched, for people."""

from __future__ import annotations

from collections.abc import Iterable

from tunery_api.runspec import SearchedParameter
from tunery_api.search.dimensions import Categorical, Dimension, Numeric, plain


def searched(space: Iterable[Dimension]) -> list[SearchedParameter]:
    """Return each parameter with its values in words, as cards and pictures show it."""
    return [_parameter(dimension) for dimension in space]


def _parameter(dimension: Dimension) -> SearchedParameter:
    words = ", ".join(dimension.choices) if isinstance(dimension, Categorical) else _range(dimension)
    if dimension.when is not None:
        words = f"{words} (where {dimension.when.path} is {' or '.join(dimension.when.values)})"
    choices = list(dimension.choices) if isinstance(dimension, Categorical) else None
    log = isinstance(dimension, Numeric) and dimension.log
    return SearchedParameter(path=dimension.path, words=words, log=log, choices=choices)


def _range(dimension: Numeric) -> str:
    low, high = dimension.text(dimension.low), dimension.text(dimension.high)
    step = f" in steps of {plain(dimension.step)}" if dimension.step else ""
    return f"{low} to {high}{step}{', by factors' if dimension.log else ''}"
