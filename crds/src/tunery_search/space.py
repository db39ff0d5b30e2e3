"""The space of a LoRASweep: from its spec to what is searched, from values to a trial's spec, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tunery_api.lorasweep import LoRASweepSpec, ParameterSpec, RangeSpec, WhenSpec
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric, Values, plain
from tunery_search.guide import guide_dimensions, guide_points
from tunery_search.paths import TYPES, FieldType, canonical, read, written
from tunery_search.points import part_of_point, point

INITIAL: Final = "Initial"
"""The origin of a trial that the manifest itself asks for."""
_ROUNDING: Final = 1e-6
"""Share of a step that floats may lack to the last one."""


@dataclass(frozen=True)
class Space:
    """What a sweep searches."""

    dimensions: tuple[Dimension, ...]
    """Sorted by path: a sampler of the same seed then proposes the same, in whatever order a manifest lists them."""

    def point(self, values: Mapping[str, str]) -> Values | None:
        """Return values as this space writes them, None where they are no point of it: one lacks, or does not fit."""
        return point(self.dimensions, values)

    def holds(self, values: Mapping[str, str]) -> bool:
        """Tell whether values are a point of the space."""
        return self.point(values) is not None


@dataclass(frozen=True)
class Start:
    """Values that are tried first; what they leave open is proposed."""

    origin: str
    """As in the status: Initial, or the name of the guide's configuration."""
    values: Values


def space_of(spec: LoRASweepSpec) -> Space:
    """Return the space of a spec that the door has let in."""
    own = tuple(dimension_of(parameter) for parameter in spec.parameters)
    guide = guide_dimensions(spec.template, own) if spec.preset else ()
    return Space(tuple(sorted((*guide, *own), key=lambda dimension: dimension.path)))


def dimension_of(parameter: ParameterSpec) -> Dimension:
    """Return what a parameter searches, each value in its canonical text.

    Raises ValueError where it has neither choices nor a range, or a value that its field cannot have.
    """
    when = _condition(parameter.when) if parameter.when else None
    if parameter.choices:
        return Categorical(parameter.path, tuple(canonical(parameter.path, text) for text in parameter.choices), when)
    if parameter.range is None:
        raise ValueError("takes exactly one of range and choices")
    return _numeric(parameter.path, parameter.range, when)


def _condition(when: WhenSpec) -> Condition:
    return Condition(when.path, tuple(canonical(when.path, text) for text in when.values))


def _numeric(path: str, given: RangeSpec, when: Condition | None) -> Numeric:
    low, high = (float(canonical(path, text)) for text in (given.min, given.max))
    step = float(canonical(path, given.step)) if given.step else None
    if step:
        high = float(plain(low + step * math.floor((high - low) / step + _ROUNDING)))
    return Numeric(path, low, high, given.log, step, TYPES[path] is FieldType.WHOLE, when)


def starts(spec: LoRASweepSpec, space: Space) -> tuple[Start, ...]:
    """Return what is tried first, in order: the guide's configurations, then what the manifest asks for.

    The guide's come first, as `preset` promises them as the first trials, whatever else is asked for.
    """
    guide = guide_points(spec.template, space.dimensions) if spec.preset else ()
    asked = (part_of_point(space.dimensions, values) for values in spec.initial)
    return (
        *(Start(name, values) for name, values in guide),
        *(Start(INITIAL, values) for values in asked if values is not None),
    )


def trial_spec(spec: LoRASweepSpec, values: Values) -> dict[str, Any]:
    """Return the spec of the LoRAJob that tries the values: the template with them in it; without an output."""
    return written(spec.template.to_json_dict(), values)


def final_spec(spec: LoRASweepSpec, values: Values) -> dict[str, Any]:
    """Return the spec of the LoRAJob that trains the best values once more: a trial's with `final` on top."""
    trial = trial_spec(spec, values)
    on_top = spec.final.training.to_json_dict() if spec.final else {}
    return trial | {"training": trial.get("training", {}) | on_top}


def read_values(space: Space, trial: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that the spec of a trial's LoRAJob was made from."""
    found = {dimension.path: read(trial, dimension.path) for dimension in space.dimensions}
    return {path: text for path, text in found.items() if text is not None}
