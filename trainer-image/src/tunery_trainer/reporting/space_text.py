"""What a sweep would search, for a look at its manifest before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunery_api.lorasweep import LoRASweepSpec, SamplerType
from tunery_api.search import grid
from tunery_api.search.corners import corner_count
from tunery_api.search.dimensions import Dimension
from tunery_api.search.space import space_of, starts
from tunery_api.search.words import searched


def space_text(spec: LoRASweepSpec, hindrances: Sequence[str]) -> str:
    """Return how many trials there will be, over what, and what was held to the rules beforehand, a line for each."""
    return "\n".join(f"{word:<10} {said}" for word, said in _lines(spec, hindrances))


def _lines(spec: LoRASweepSpec, hindrances: Sequence[str]) -> Iterator[tuple[str, str]]:
    space = space_of(spec)
    at_once = min(spec.parallel_trials, spec.max_trials)
    yield (
        "Sweep",
        f"up to {spec.max_trials} trials by {spec.sampler.type}, {at_once} at a time{_points(spec, space.dimensions)}",
    )
    for each in searched(space.dimensions):
        yield "Space", f"{each.path}: {each.words}"
    first = [start.origin for start in starts(spec, space)]
    if first:
        yield "First", ", ".join(first)
    corners, combined, of = corner_count(space.dimensions)
    combinations = f"all {of}" if combined == of else f"{combined} of the {of}"
    yield (
        "Corners",
        (
            f"{corners} were held to the rules of a LoRAJob: every choice and both ends of every range in turn, and "
            f"{combinations} combinations of choices"
        ),
    )
    for hindrance in hindrances:
        yield "Here", f"it would not run: {hindrance}"


def _points(spec: LoRASweepSpec, dimensions: Sequence[Dimension]) -> str:
    """Return how many points a grid has, and how many of them are left out."""
    if spec.sampler.type is not SamplerType.GRID:
        return ""
    most = spec.max_trials + 1
    points = grid.size(dimensions, most)
    return f"; the grid has {'more points' if points == most else f'{points} points'}"
