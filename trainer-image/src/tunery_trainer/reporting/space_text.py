"""What a sweep would search, for a look at its manifest before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.methods import Preset
from tunery_search.space import initial_points, space_of
from tunery_search.summary import points_tried, searched_parameters

_GUIDES: Final = frozenset(preset.value for preset in Preset)
"""Names of the guide's configurations, as origins of trials."""


def space_text(spec: LoRASweepSpec, hindrances: Sequence[str]) -> str:
    """Return how many trials there will be, and over what, a line for each."""
    return "\n".join(f"{word:<10} {said}" for word, said in _lines(spec, hindrances))


def _lines(spec: LoRASweepSpec, hindrances: Sequence[str]) -> Iterator[tuple[str, str]]:
    space = space_of(spec)
    at_once = min(spec.parallel_trials, spec.max_trials)
    tried = points_tried(spec)
    shown = f"; tries {tried}" if tried else ""
    yield "Sweep", f"up to {spec.max_trials} trials by {spec.sampler.type}, {at_once} at a time{shown}"
    for each in searched_parameters(space.dimensions):
        yield "Space", f"{each.path}: {each.words}"
    first = [start.origin for start in initial_points(spec, space)]
    if first:
        yield "First", ", ".join(first)
    if spec.preset and not set(first) & _GUIDES:
        yield "First", "none of the guide's configurations: none is a point of this space"
    for hindrance in hindrances:
        yield "Here", f"it would not run: {hindrance}"
