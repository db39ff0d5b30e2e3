"""What a sweep searches, as cards and pictures show it."""

from __future__ import annotations

from collections.abc import Iterable

from tunery_api.runspec import SearchedParameter
from tunery_api.search.dimensions import Categorical, Condition, Dimension, Numeric, plain


def searched(space: Iterable[Dimension]) -> list[SearchedParameter]:
    """Return each parameter of a space with its values in words, for run.json."""
    return [
        SearchedParameter(
            path=each.path,
            words=_values(each) + (_condition(each.when) if each.when else ""),
            log=isinstance(each, Numeric) and each.log,
            choices=list(each.choices) if isinstance(each, Categorical) else None,
        )
        for each in space
    ]


def _values(dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return ", ".join(dimension.choices)
    text = f"{plain(dimension.low)} to {plain(dimension.high)}"
    if dimension.step:
        return f"{text} in steps of {plain(dimension.step)}"
    return f"{text}, by factors" if dimension.log else text


def _condition(when: Condition) -> str:
    return f"; where {when.path} is {' or '.join(when.values)}"
