"""Check the parameters of a LoRASweep, and return the dimensions of the valid ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError

from tunery_api.errors import FieldError, did_you_mean, field_error
from tunery_api.fields import decimal_text
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import (
    MAX_PARAMETERS,
    MOST_CHOICES,
    LoRASweepSpec,
    ParameterSpec,
    RangeSpec,
    SamplerType,
    WhenSpec,
)
from tunery_api.rules import RULES
from tunery_search.dimensions import DECIMALS, Categorical, Dimension, Numeric, plain
from tunery_search.fields import FIELD_TYPES, NUMERIC, FieldType, canonical, path_problem, read_value, with_values
from tunery_search.space import canonical_value, dimension_of, guide_dimensions, value_errors

Errors = Iterator[FieldError]
MOST_STEPS: Final = 10_000
_DUST: Final = 1e-9
"""Relative tolerance for differences of floats: 0.3 - 0.2 is below 0.1."""
_WARMUP: Final = "training.warmup"
_AROUND: Final = {"model": {"uri": "s3://bucket/model"}, "dataset": {"uri": "s3://bucket/rows.jsonl"}}
"""The required fields of a LoRAJob."""


@dataclass(frozen=True)
class CheckedParameters:
    """The errors and the valid parameters of a spec."""

    errors: tuple[FieldError, ...]
    own: tuple[Dimension, ...]
    """The valid parameters of the manifest."""
    guide: tuple[Dimension, ...]
    """The parameters of `preset: Guide`."""
    locations: Mapping[str, str]
    """The field of each parameter in the manifest, by path: `spec.parameters[0]`."""
    choices: Mapping[tuple[str, str], int]
    """The index of each choice in the manifest, by path and canonical text."""
    partly_invalid: frozenset[str]
    """Parameters with some invalid choices. A value elsewhere may refer to one of these, so it isn't an error."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Return all valid parameters, the guide's first."""
        return self.guide + self.own


def check_parameters(spec: LoRASweepSpec) -> CheckedParameters:
    """Return the parameters of a spec: each must be a field of its own that the template leaves unset.

    Of a parameter with some invalid choices, the valid ones are used, so that all errors are reported at once.
    """
    template = spec.template.to_json_dict()
    errors: list[FieldError] = []
    own: dict[str, Dimension] = {}
    locations: dict[str, str] = {}
    choices: dict[tuple[str, str], int] = {}
    partly_invalid = set[str]()
    for index, parameter in enumerate(spec.parameters):
        at = f"spec.parameters[{index}]"
        wrong = [*_path(at, parameter.path, template, locations), *_values(at, parameter, spec.sampler.type)]
        when, earlier = parameter.when, {**_unconditional(spec, own), **own}
        depends_on_invalid = (
            when is not None and when.path in locations and not _is_known(when, earlier, partly_invalid)
        )
        if when is not None and spec.preset and parameter.path == "method":
            wrong.append(
                FieldError(
                    f"{at}.when", "isn't allowed with preset: Guide, whose parameters depend on the method; remove it"
                )
            )
        elif when is not None and not depends_on_invalid:
            wrong += _condition(f"{at}.when", when, earlier)
        locations.setdefault(parameter.path, at)
        errors += wrong
        valid = _valid_choices(parameter) if parameter.path in FIELD_TYPES else {}
        if depends_on_invalid or any(not error.path.startswith(f"{at}.choices") for error in wrong):
            continue
        if len(valid) < len(set(parameter.choices or ())):
            partly_invalid.add(parameter.path)
        if valid or not wrong:
            own[parameter.path] = dimension_of(parameter.model_copy(update={"choices": list(valid) or None}))
            choices |= {(parameter.path, value): place for value, place in valid.items()}
    listed = tuple(own.values())
    guide = tuple(item for item in _guide(spec, listed) if item.path not in locations)
    return CheckedParameters(tuple(errors), listed, guide, locations, choices, frozenset(partly_invalid))


def _guide(spec: LoRASweepSpec, own: Iterable[Dimension]) -> tuple[Dimension, ...]:
    return guide_dimensions(spec.template, tuple(own)) if spec.preset else ()


def _unconditional(spec: LoRASweepSpec, own: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """Return the guide's parameters without a condition: other parameters may depend on them."""
    return {item.path: item for item in _guide(spec, own.values()) if item.when is None}


def _is_known(when: WhenSpec, earlier: Mapping[str, Dimension], partly_invalid: Container[str]) -> bool:
    """Return whether the meaning of a condition is known. It isn't if it may refer to an invalid choice."""
    on = earlier.get(when.path)
    if on is None or when.path not in partly_invalid:
        return on is not None
    return not any(value_errors([on], {when.path: text}) for text in when.values)


def _path(at: str, path: str, template: Mapping[str, Any], seen: Container[str]) -> Errors:
    problem = path_problem(path)
    if problem:
        yield FieldError(f"{at}.path", problem)
    elif path in seen:
        yield FieldError(f"{at}.path", f"{path} is in the list already. Fix: remove one of the two")
    elif read_value(template, path) is not None:
        yield FieldError(f"{at}.path", f"the template also sets {path}; remove it there")


def _values(at: str, parameter: ParameterSpec, sampler: SamplerType) -> Errors:
    if broken := list(RULES.errors(ParameterSpec, parameter.to_json_dict(), at)):
        yield from broken
    elif parameter.path in FIELD_TYPES and parameter.range is None:
        yield from _choices(at, parameter)
    elif parameter.path in FIELD_TYPES:
        yield from _range(f"{at}.range", parameter, sampler)


def _choices(at: str, parameter: ParameterSpec) -> Errors:
    """Yield the errors of a parameter's choices."""
    first: dict[str, int] = {}
    for place, text in enumerate(parameter.choices or ()):
        try:
            value = _value(parameter.path, text)
        except ValueError as error:
            yield FieldError(f"{at}.choices[{place}]", f"{parameter.path} {error}")
            continue
        # Modules are the same in any order.
        alike = ",".join(sorted(value.split(","))) if FIELD_TYPES[parameter.path] is FieldType.LIST else value
        if alike in first:
            yield FieldError(f"{at}.choices[{place}]", f"is choices[{first[alike]}] again; remove it")
        first.setdefault(alike, place)


def _valid_choices(parameter: ParameterSpec) -> dict[str, int]:
    """Return the valid choices as canonical texts, each with its first index."""
    valid: dict[str, int] = {}
    for place, text in enumerate(parameter.choices or ()):
        with contextlib.suppress(ValueError):
            valid.setdefault(_value(parameter.path, text), place)
    return valid


@lru_cache(maxsize=2 * MAX_PARAMETERS * MOST_CHOICES)
def _problem(path: str, value: str) -> str | None:
    """Return the schema error of a LoRAJob for a field's value alone. Return None without one."""
    try:
        LoRAJobSpec.model_validate(with_values(_AROUND, {path: value}))
    except ValidationError as error:
        return field_error(error.errors()[0], LoRAJobSpec, False).message
    return None


def _value(path: str, text: str) -> str:
    """Return a value as canonical text.

    Raises ValueError, with a message that begins with "must", if the field can't have it.
    """
    value = canonical(path, text)
    problem = _problem(path, value)
    if problem:
        raise ValueError(problem)
    return value


def _range(at: str, parameter: ParameterSpec, sampler: SamplerType) -> Errors:
    """Yield the errors of a parameter's range."""
    given, path = parameter.range, parameter.path
    if given is None:
        return
    if FIELD_TYPES[path] not in NUMERIC:
        yield FieldError(at, f"{path} isn't a number; set choices instead of range")
        return
    numbers: dict[str, float] = {}
    for name in ("min", "max", "step"):
        value = getattr(given, name)
        try:
            read_as = canonical if name == "step" else _value
            numbers |= {} if value is None else {name: float(read_as(path, decimal_text(value)))}
        except ValueError as error:
            yield FieldError(f"{at}.{name}", f"{path} {error}")
    if {"min", "max"} <= set(numbers) and (given.step is None or "step" in numbers):
        yield from _span(at, path, given, numbers)
    if sampler is SamplerType.GRID and given.step is None and given.log:
        message = "is logarithmic, and sampler type Grid needs equal steps; replace it with choices"
        yield FieldError(at, message + _by_factors(path, numbers))
    elif sampler is SamplerType.GRID and given.step is None:
        yield FieldError(f"{at}.step", f"is required by sampler type Grid{_such_as(path, numbers)}")


def _by_factors(path: str, numbers: Mapping[str, float]) -> str:
    """Return example choices for a logarithmic range: both ends and the middle. Return "" for an invalid range."""
    low, high = numbers.get("min", 0.0), numbers.get("max", 0.0)
    if not 0 < low < high:
        return ""
    item = Numeric(path, low, high, log=True, integer=FIELD_TYPES[path] is FieldType.INTEGER)
    texts = dict.fromkeys(item.text(value) for value in (low, math.sqrt(low * high), high))
    return f": choices: [{', '.join(texts)}]"


def _such_as(path: str, numbers: Mapping[str, float]) -> str:
    """Return an example step for a range: a power of ten that fits at least twice. Return "" for an invalid range."""
    width = numbers.get("max", 0.0) - numbers.get("min", 0.0)
    if width <= 0:
        return ""
    step = 10.0 ** math.floor(math.log10(width / 2))
    whole = FIELD_TYPES[path] is FieldType.INTEGER or (path == _WARMUP and numbers["min"] >= 1)
    return f", such as {plain(max(step, 1.0 if whole else 10.0**-DECIMALS))}"


def _span(at: str, path: str, given: RangeSpec, numbers: Mapping[str, float]) -> Errors:
    """Yield the errors of a range's numbers compared with each other."""
    low, high, step = numbers["min"], numbers["max"], numbers.get("step")
    if step is not None and step > (high - low) * (1 + _DUST):
        yield FieldError(f"{at}.step", f"must be at most max - min: {plain(high - low)}")
    elif step is not None and (high - low) / step > MOST_STEPS * (1 + _DUST):
        yield FieldError(f"{at}.step", f"results in more than {MOST_STEPS} values; raise it, or remove it")
    if path == _WARMUP and low < 1 <= high:
        yield FieldError(
            f"{at}.max", "warmup below 1 is a share of the steps, and from 1 a number of steps; use one of them"
        )


def _condition(at: str, when: WhenSpec, earlier: Mapping[str, Dimension]) -> Errors:
    """Yield the errors of a condition: it must name an earlier parameter with choices, and some of these."""
    on = earlier.get(when.path)
    if on is None:
        hint = did_you_mean(when.path, earlier) or "; list it before this parameter"
        yield FieldError(f"{at}.path", f"{when.path} isn't an earlier parameter{hint}")
    elif not isinstance(on, Categorical):
        yield FieldError(f"{at}.path", f"{when.path} has a range; a condition needs a parameter with choices")
    else:
        for place, text in enumerate(when.values):
            try:
                canonical_value(on, text)
            except ValueError as error:
                yield FieldError(f"{at}.in[{place}]", f"{when.path} {error}")
