"""What a sweep searches, as cards and pictures show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tunery_api.lorasweep import LoRASweepSpec, SamplerType
from tunery_api.runspec import SearchedParameter
from tunery_search import grid
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric, plain
from tunery_search.space import space_of

MOST_COUNTED: Final = 1000
"""Points of a grid that are counted: who looks at a sweep does so again and again."""


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


def points_tried(spec: LoRASweepSpec) -> str | None:
    """Return which share of its grid a sweep tries, such as `20 of 64 points of the grid`; None where it has none."""
    if spec.sampler.type is not SamplerType.GRID:
        return None
    points = grid.size(space_of(spec).dimensions, MOST_COUNTED + 1)
    if points <= spec.max_trials:
        return f"all {points} points of the grid"
    counted = f"more than {MOST_COUNTED}" if points > MOST_COUNTED else f"{points}"
    return f"{spec.max_trials} of {counted} points of the grid"
