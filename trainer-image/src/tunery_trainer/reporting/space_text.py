"""What a sweep would search, for a look at its manifest before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.methods import Preset
from tunery_search.corners import corner_count
from tunery_search.describe import points_tried, searched
from tunery_search.space import space_of, starts

_GUIDES: Final = frozenset(preset.value for preset in Preset)
"""Names of the guide's configurations, as origins of trials."""


def space_text(spec: LoRASweepSpec, hindrances: Sequence[str]) -> str:
    """Return how many trials there will be, over what, and what was held to the rules beforehand, a line for each."""
    return "\n".join(f"{word:<10} {said}" for word, said in _lines(spec, hindrances))


def _lines(spec: LoRASweepSpec, hindrances: Sequence[str]) -> Iterator[tuple[str, str]]:
    space = space_of(spec)
    at_once = min(spec.parallel_trials, spec.max_trials)
    tried = points_tried(spec)
    shown = f"; tries {tried}" if tried else ""
    yield "Sweep", f"up to {spec.max_trials} trials by {spec.sampler.type}, {at_once} at a time{shown}"
    for each in searched(space.dimensions):
        yield "Space", f"{each.path}: {each.words}"
    first = [start.origin for start in starts(spec, space)]
    if first:
        yield "First", ", ".join(first)
    if spec.preset and not set(first) & _GUIDES:
        yield "First", "none of the guide's configurations: none is a point of this space"
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
