"""Provide the search space of a LoRASweep, including that of `preset: Guide`, and its points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tunery_api.errors import FieldError, did_you_mean
from tunery_api.fields import decimal_text
from tunery_api.lorasweep import LoRASweepSpec, ParameterSpec, RangeSpec, TrialTemplate, WhenSpec
from tunery_api.methods import (
    LORA_FAMILY,
    LORA_LEARNING_RATES,
    PRESETS,
    RANK_GUIDELINES,
    Method,
    PresetValues,
    method_learning_rate,
    usual_learning_rates,
)
from tunery_search.dimensions import (
    Categorical,
    Condition,
    Dimension,
    Numeric,
    Values,
    contains,
    is_active,
    is_point,
    parents_first,
    plain,
)
from tunery_search.fields import FIELD_TYPES, FieldType, canonical, read_value, with_values


def boundary_values(dimension: Dimension) -> tuple[str, ...]:
    """Return the choices of a parameter, or both ends of its range."""
    if isinstance(dimension, Categorical):
        return dimension.choices
    return dimension.text(dimension.low), dimension.text(dimension.high)


def canonical_value(dimension: Dimension, text: str) -> str:
    """Return a value of a parameter as canonical text.

    Raises ValueError, with a message that begins with "must", if the parameter can't have the value.
    """
    value = canonical(dimension.path, text)
    if not contains(dimension, value):
        raise ValueError(_value_problem(dimension, value, text))
    return value


def _value_problem(dimension: Dimension, value: str, text: str) -> str:
    """Return what the value of a parameter must be."""
    if isinstance(dimension, Categorical):
        return f"must be {listed(dimension.choices)}, is {text!r}{did_you_mean(value, dimension.choices)}"
    low, high = boundary_values(dimension)
    if dimension.step and dimension.low <= float(value) <= dimension.high:
        return f"must be {low} plus a multiple of {plain(dimension.step)}, is {text!r}"
    return f"must be from {low} to {high}, is {text!r}"


def listed(words: Iterable[str]) -> str:
    """Return words as in a sentence: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def value_errors(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> Iterator[FieldError]:
    """Yield the errors of values by path: an unknown parameter, an invalid value, or an inactive parameter.

    A missing value is no error.
    """
    known = {dimension.path: dimension for dimension in dimensions}
    placed: dict[str, str] = {}
    for path, text in values.items():
        if path not in known:
            yield FieldError(path, f"isn't a parameter of this sweep{did_you_mean(path, known) or '; remove it'}")
            continue
        try:
            placed[path] = canonical_value(known[path], text)
        except ValueError as error:
            yield FieldError(path, str(error))
    for path in placed:
        when = known[path].when
        if when is None or when.holds(placed):
            continue
        if when.path not in values:
            yield FieldError(path, f"exists only in some trials; also set {when.path} is {when.values[0]}")
        elif when.path in placed:
            yield FieldError(path, f"exists only if {when.path} is {listed(when.values)}; remove it")


def partial_point(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values as canonical texts. Return None if no point of the space has them."""
    known = {dimension.path: dimension for dimension in dimensions}
    if any(value_errors(known.values(), values)):
        return None
    return {path: canonical_value(known[path], text) for path, text in sorted(values.items())}


def point(dimensions: Iterable[Dimension], values: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values as canonical texts. Return None if they are no point: one is missing, or invalid."""
    known = tuple(dimensions)
    placed = partial_point(known, values)
    return placed if placed is not None and is_point(known, placed) else None


def complete_point(dimensions: Iterable[Dimension], fixed: Mapping[str, str]) -> dict[str, str]:
    """Return the point with these values, and the first value of every other active parameter."""
    values: dict[str, str] = {}
    for dimension in parents_first(dimensions):
        if is_active(dimension, values):
            values[dimension.path] = fixed.get(dimension.path) or boundary_values(dimension)[0]
    return values


def with_parent_values(dimensions: Iterable[Dimension], path: str, text: str) -> dict[str, str]:
    """Return a value with the values of other parameters that make its parameter active."""
    by_path, values = {item.path: item for item in dimensions}, {path: text}
    above = by_path.get(path)
    while above and above.when:
        values[above.when.path] = above.when.values[0]
        above = by_path.get(above.when.path)
    return values


_LORA: Final = frozenset({*LORA_FAMILY, Method.AUTO})
"""Methods with the guide's LoRA parameters. Auto is one of them, except with a handful of rows."""
_RANKS: Final = tuple(str(line.rank) for line in RANK_GUIDELINES)
_ALPHAS: Final = ("8", "16", "32", "64")
_TARGETS: Final = ("query-value", "attention", "all-linear")
"""The guide's minimal, recommended and maximal target modules."""
_MOST_DROPOUT: Final = 0.2
_MOST_WARMUP: Final = 0.2
_MOST_WEIGHT_DECAY: Final = 0.1


def guide_dimensions(template: TrialTemplate, own: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Return the guide's parameters that neither the template sets nor the sweep's `own` parameters replace.

    If the method is itself a parameter, LoRA's parameters are active only in LoRA trials.
    """
    given, replaced = template.to_json_dict(), {dimension.path for dimension in own}
    methods = _methods(template, own)
    family = tuple(name for name in methods if name in _LORA)
    when = Condition("method", family) if 0 < len(family) < len(methods) else None
    space = (*(_lora(when) if family else ()), *_rate(template, methods, when), *_loop())
    return tuple(item for item in space if item.path not in replaced and read_value(given, item.path) is None)


def _methods(template: TrialTemplate, own: Sequence[Dimension]) -> tuple[str, ...]:
    """Return the methods that trials may have."""
    searched = (item.choices for item in own if item.path == "method" and isinstance(item, Categorical))
    return next(searched, (template.method.value,))


def _lora(when: Condition | None) -> Iterator[Dimension]:
    yield Categorical("lora.rank", _RANKS, when)
    yield Categorical("lora.alpha", _ALPHAS, when)
    yield Numeric("lora.dropout", 0.0, _MOST_DROPOUT, when=when)
    yield Categorical("lora.targetModules", _TARGETS, when)


def _rate(template: TrialTemplate, methods: Sequence[str], when: Condition | None) -> Iterator[Dimension]:
    """Yield the learning rate: the guide's range, or a range around the default of another method.

    Yield nothing for several methods with different defaults: no range fits all.
    """
    if any(name in _LORA for name in methods):
        low, high = LORA_LEARNING_RATES
    elif len(methods) == 1:
        prefix = template.prefix_tuning
        low, high = usual_learning_rates(
            method_learning_rate(Method(methods[0]), prefix is not None and prefix.projection)
        )
    else:
        return
    yield Numeric("training.learningRate", float(plain(low)), float(plain(high)), log=True, when=when)


def _loop() -> Iterator[Dimension]:
    yield Numeric("training.warmup", 0.0, _MOST_WARMUP)
    yield Numeric("training.weightDecay", 0.0, _MOST_WEIGHT_DECAY)


def guide_points(template: TrialTemplate, dimensions: Sequence[Dimension]) -> tuple[tuple[str, dict[str, str]], ...]:
    """Return the guide's configurations by name, reduced to the searched parameters.

    They are LoRA configurations. Those outside the space and duplicates are omitted. Their epochs are ignored, since
    all trials have the same length.
    """
    searched = {dimension.path: dimension for dimension in dimensions}
    method = searched.get("method")
    if method is None and template.method not in _LORA:
        return ()
    points: dict[str, dict[str, str]] = {}
    for name, preset in PRESETS.items():
        values = {path: text for path, text in _configuration(preset).items() if path in searched}
        if isinstance(method, Categorical):
            values["method"] = next((choice for choice in method.choices if choice in _LORA), "")
        placed = partial_point(dimensions, values)
        if placed and placed not in points.values():
            points[name.value] = placed
    return tuple(points.items())


def _configuration(preset: PresetValues) -> dict[str, str]:
    return {
        "lora.rank": str(preset.rank),
        "lora.alpha": str(preset.alpha),
        "lora.dropout": plain(preset.dropout),
        "lora.targetModules": ",".join(preset.target_modules),
        "training.learningRate": plain(preset.learning_rate),
        "training.warmup": plain(preset.warmup),
        "training.weightDecay": "0",
    }


INITIAL_ORIGIN: Final = "Initial"
"""Origin of a trial from spec.initial."""
_ROUNDING: Final = 1e-6
"""Tolerance for rounding errors, as a share of a step."""


@dataclass(frozen=True)
class Space:
    """The search space of a sweep."""

    dimensions: tuple[Dimension, ...]
    """Sorted by path, so that the suggestions don't depend on the order in the manifest."""

    def point(self, values: Mapping[str, str]) -> Values | None:
        """Return values as canonical texts. Return None if they are no point: one is missing, or invalid."""
        return point(self.dimensions, values)

    def holds(self, values: Mapping[str, str]) -> bool:
        """Return whether values are a point of the space."""
        return self.point(values) is not None


@dataclass(frozen=True)
class InitialPoint:
    """Values to try first. The sampler suggests the missing ones."""

    origin: str
    """As in the status: Initial, or the name of the guide's configuration."""
    values: Values


def space_of(spec: LoRASweepSpec) -> Space:
    """Return the search space of a valid spec."""
    own = tuple(dimension_of(parameter) for parameter in spec.parameters)
    guide = guide_dimensions(spec.template, own) if spec.preset else ()
    return Space(tuple(sorted((*guide, *own), key=lambda dimension: dimension.path)))


def dimension_of(parameter: ParameterSpec) -> Dimension:
    """Return the dimension of a parameter, with canonical values.

    Raises ValueError if it has neither choices nor a range, or a value that its field can't have.
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
    low, high = (float(canonical(path, decimal_text(value))) for value in (given.min, given.max))
    step = float(canonical(path, decimal_text(given.step))) if given.step else None
    if step:
        high = float(plain(low + step * math.floor((high - low) / step + _ROUNDING)))
    return Numeric(path, low, high, given.log, step, FIELD_TYPES[path] is FieldType.INTEGER, when)


def initial_points(spec: LoRASweepSpec, space: Space) -> tuple[InitialPoint, ...]:
    """Return the points to try first, in order: the guide's configurations, then spec.initial.

    The guide's come first, as `preset` promises.
    """
    guide = guide_points(spec.template, space.dimensions) if spec.preset else ()
    initial = (partial_point(space.dimensions, values) for values in spec.initial)
    return (
        *(InitialPoint(name, values) for name, values in guide),
        *(InitialPoint(INITIAL_ORIGIN, values) for values in initial if values is not None),
    )


def trial_spec(spec: LoRASweepSpec, values: Values) -> dict[str, Any]:
    """Return the spec of a trial's LoRAJob without its output: the template with the values."""
    return with_values(spec.template.to_json_dict(), values)


def final_spec(spec: LoRASweepSpec, values: Values) -> dict[str, Any]:
    """Return the spec of the final trial's LoRAJob: that of a trial, overridden by spec.final."""
    trial = trial_spec(spec, values)
    on_top = spec.final.training.to_json_dict() if spec.final else {}
    return trial | {"training": trial.get("training", {}) | on_top}


def read_values(space: Space, trial: Mapping[str, Any]) -> dict[str, str]:
    """Return the values by path in the spec of a trial's LoRAJob."""
    found = {dimension.path: read_value(trial, dimension.path) for dimension in space.dimensions}
    return {path: text for path, text in found.items() if text is not None}
