"""Validate the manifest of a LoRASweep: one function for each rule that its schema cannot express."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from tunery_api.errors import FieldError, field_error
from tunery_api.fields import alias_of
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec, PrunerType, SamplerType, SweepPreset
from tunery_api.measured import MAX_EVALUATIONS
from tunery_api.methods import TrainingTask
from tunery_api.validation import lorajob_errors, parse_spec
from tunery_search.dimensions import Categorical, Dimension, Numeric, Values
from tunery_search.fields import NOT_SEARCHABLE, with_values
from tunery_search.parameters import CheckedParameters, check_parameters
from tunery_search.space import (
    boundary_values,
    complete_point,
    final_spec,
    trial_spec,
    value_errors,
    with_parent_values,
)

Errors = Iterator[FieldError]
_MEASURED_ALIKE: Final = frozenset({"maxLength", "loss", "seed"})
"""Fields of `training` that change how the loss is measured."""


def something_to_search(spec: LoRASweepSpec) -> Errors:
    """Yield an error if nothing is searched, or if the guide is for another task."""
    if spec.preset is not None and not spec.parameters and not check_parameters(spec).guide:
        yield FieldError("spec.preset", "the template sets every parameter of the guide; remove some of them there")
    if spec.preset is SweepPreset.GUIDE and spec.template.task is not TrainingTask.SFT:
        yield FieldError(
            "spec.preset",
            f"the guide's space is for task: SFT, not {spec.template.task}; remove preset, and list parameters",
        )


def parameters(spec: LoRASweepSpec) -> Errors:
    """Yield the errors of each parameter, and those of a grid without steps."""
    found = check_parameters(spec)
    yield from found.errors
    if spec.sampler.type is SamplerType.GRID:
        open_ones = [item.path for item in found.guide if isinstance(item, Numeric)]
        if open_ones:
            yield FieldError(
                "spec.sampler.type",
                f"Grid needs steps, but the guide's {', '.join(open_ones)} have none; use TPE or Random, or list "
                "them as parameters with choices",
            )


def initial(spec: LoRASweepSpec) -> Errors:
    """Yield the errors of `initial`: values outside the search space."""
    found = check_parameters(spec)
    broken = set(found.locations) - {item.path for item in found.own}
    for index, values in enumerate(spec.initial):
        if not values:
            yield FieldError(f"spec.initial[{index}]", "is empty; remove it")
        for path, message in value_errors(
            found.dimensions, {path: text for path, text in values.items() if path not in broken}
        ):
            if path not in found.partly_invalid:
                yield FieldError(f"spec.initial[{index}].{path}", message)


def warm_start_of_another(spec: LoRASweepSpec, own: str) -> Errors:
    """Yield an error if the sweep warm-starts from itself. `own` is its name, which its spec lacks."""
    for index, each in enumerate(spec.warm_start_from):
        if each.name == own:
            yield FieldError(
                f"spec.warmStartFrom[{index}].name",
                "is this sweep, which learns from its own trials anyway; remove it",
            )


def shared_passes(spec: LoRASweepSpec) -> Errors:
    """Yield ranges of gradientAccumulation whose values between the ends the devices can't share evenly."""
    devices = spec.template.resources.devices
    for index, each in enumerate(spec.parameters or ()):
        if each.path != "training.gradientAccumulation" or each.range is None or devices == 1:
            continue
        if each.range.step is None or each.range.step % devices:
            yield FieldError(
                f"spec.parameters[{index}].range",
                f"must have a step that is a multiple of the {devices} devices of a trial, which share the passes: set "
                f"step: {devices}, or list choices",
            )


def pruner(spec: LoRASweepSpec) -> Errors:
    """Yield the errors of the pruner: the order of rungs, and evaluations before the first rung."""
    block = spec.pruner
    if block.type is PrunerType.NONE:
        return
    for index, (before, rung) in enumerate(itertools.pairwise(block.rungs), start=1):
        if rung <= before:
            yield FieldError(f"spec.pruner.rungs[{index}]", f"must be above the previous rung, {before:g}")
    first = min(block.rungs)
    yield from _measured_in_time(spec, block.rungs.index(first), first)


_OTHERWISE: Final = "or set spec.pruner.type: None"


def _measured_in_time(spec: LoRASweepSpec, index: int, first: float) -> Errors:
    """Yield an error if trials aren't evaluated before the first rung, or if the status drops that evaluation."""
    times, every = spec.template.evaluation.times, spec.template.evaluation.every_steps
    if times is not None and times * first < 1 and MAX_EVALUATIONS * first < 1:
        yield FieldError(
            f"spec.pruner.rungs[{index}]",
            f"must be at least {1 / MAX_EVALUATIONS:g}, as a trial is evaluated at most {MAX_EVALUATIONS} times; "
            f"raise it, {_OTHERWISE}",
        )
    elif times is not None and times * first < 1:
        yield FieldError(
            "spec.template.evaluation.times",
            f"must be at least {math.ceil(1 / first)}, so that a trial is evaluated before the rung at {first:g}; "
            f"raise it, {_OTHERWISE}",
        )
    elif times is None and every is not None:
        yield from _every_so_many(every, _lengths(spec), index, first)


def _lengths(spec: LoRASweepSpec) -> list[int]:
    """Return the steps of the shortest and the longest trial if maxSteps states them, or else an empty list."""
    searched = [boundary_values(item) for item in check_parameters(spec).dimensions if item.path == "training.maxSteps"]
    steps = [int(text) for texts in searched for text in texts] or [spec.template.training.max_steps or 0]
    return [min(steps), max(steps)] if min(steps) else []


def _every_so_many(every: int, lengths: Sequence[int], index: int, first: float) -> Errors:
    """Yield an error if `everySteps` doesn't fit trials of these lengths: too rare, or too many for the status."""
    if not lengths:
        return
    shortest, longest = lengths
    most, least = max(1, math.floor(first * shortest)), math.ceil(longest / MAX_EVALUATIONS)
    at = "spec.template.evaluation.everySteps"
    if most < least and shortest < longest:
        yield FieldError(
            at,
            f"must be at most {most} for trials of {shortest} steps, to evaluate them before the rung at {first:g}, "
            f"and at least {least} for trials of {longest} steps, to stay within {MAX_EVALUATIONS} evaluations; "
            f"set evaluation.times instead, {_OTHERWISE}",
        )
    elif most < least:
        yield FieldError(
            f"spec.pruner.rungs[{index}]",
            f"must be at least {math.ceil(1000 * least / longest) / 1000:g} for trials of {longest} steps, as the "
            f"status has only the last {MAX_EVALUATIONS} evaluations; raise it, {_OTHERWISE}",
        )
    elif every > most:
        yield FieldError(
            at,
            f"must be at most {most}, so that a trial of {shortest} steps is evaluated before the rung at {first:g}; "
            f"lower it, {_OTHERWISE}",
        )
    elif every < least:
        yield FieldError(
            at,
            f"must be at least {least}: the status has only the last {MAX_EVALUATIONS} evaluations, and a trial with "
            f"more can't be compared; raise it, {_OTHERWISE}",
        )


def final(spec: LoRASweepSpec) -> Errors:
    """Yield fields of `final` that would replace searched values, or that change how the loss is measured."""
    if spec.final is None:
        return
    if not spec.final.training.model_fields_set:
        yield FieldError("spec.final.training", "is empty, so the final trial would repeat the best one; remove final")
    block, searched = spec.final.training, {item.path for item in check_parameters(spec).dimensions}
    for name in sorted(alias_of(block, name) for name in block.model_fields_set):
        path = f"training.{name}"
        if path in searched:
            yield FieldError(
                f"spec.final.{path}", "is a searched parameter, and the best trial's value is used; remove it"
            )
        elif name in _MEASURED_ALIKE:
            yield FieldError(f"spec.final.{path}", NOT_SEARCHABLE[path].replace("set it in the template", "remove it"))


def values(spec: LoRASweepSpec) -> Errors:
    """Yield the errors of the template, and of each single value in it.

    If values are invalid only together, the trial becomes Infeasible and uses no GPU.
    """
    found = check_parameters(spec)
    if "method" in found.locations and all(item.path != "method" for item in found.own):
        return  # trials have another method than the template
    template = spec.template.to_json_dict() | {"output": spec.output.to_json_dict()}

    def errors_of(point: Values) -> frozenset[FieldError]:
        return frozenset(_job_errors(with_values(template, point)))

    of_template = errors_of({})
    of_template &= errors_of(complete_point(found.dimensions, {})) if of_template else of_template
    for error in sorted(of_template):
        yield error if error.path.startswith("spec.output") else _under("spec.template.", error)
    for item in found.dimensions:
        by_value = {
            text: sorted(_of_value(item, text, found, errors_of) - of_template) for text in boundary_values(item)
        }
        yield from _placed(item, by_value, found)


def _of_value(
    dimension: Dimension, text: str, found: CheckedParameters, errors_of: Callable[[Values], frozenset[FieldError]]
) -> frozenset[FieldError]:
    """Return the errors of a value in the template, except those that the first value of another parameter fixes."""
    point = with_parent_values(found.dimensions, dimension.path, text)
    errors = errors_of(point)
    return errors & errors_of(complete_point(found.dimensions, point)) if errors else errors


def _placed(dimension: Dimension, by_value: Mapping[str, Sequence[FieldError]], found: CheckedParameters) -> Errors:
    """Yield the errors of a parameter's values at their fields. An error of every value is yielded once."""
    at = found.locations.get(dimension.path, "")
    every = set.intersection(*map(set, by_value.values())) if at and len(by_value) > 1 else set[FieldError]()
    errors = [FieldError(f"{at}.path", _sentence(error)) for error in sorted(every)]
    errors += [
        FieldError(_place(dimension, text, found), _sentence(error))
        for text, found_errors in by_value.items()
        for error in found_errors
        if error not in every
    ]
    yield from dict.fromkeys(errors)


def _job_errors(trial: Mapping[str, Any]) -> Errors:
    """Yield the errors of a LoRAJob with this spec."""
    try:
        spec = LoRAJobSpec.model_validate(trial)
    except ValidationError as error:
        yield from (field_error(detail, LoRAJobSpec, False) for detail in error.errors())
    else:
        yield from lorajob_errors(spec)


def _place(dimension: Dimension, value: str, found: CheckedParameters) -> str:
    at = found.locations.get(dimension.path)
    if at is None:
        return "spec.preset"
    if isinstance(dimension, Categorical):
        return f"{at}.choices[{found.choices[dimension.path, value]}]"
    return f"{at}.range.{'min' if value == boundary_values(dimension)[0] else 'max'}"


def _under(prefix: str, error: FieldError) -> FieldError:
    """Return an error of a LoRAJob at the field of the sweep that it belongs to."""
    return FieldError(f"{prefix}{error.path.removeprefix('spec.')}", error.message)


def _sentence(error: FieldError) -> str:
    """Return an error with its field: `lora.alpha must be …`, `method: IA3 …`."""
    separator = " " if error.message[:1].islower() else ": "
    return f"{error.path.removeprefix('spec.')}{separator}{error.message}"


def final_run(spec: LoRASweepSpec) -> Errors:
    """Yield the errors of `final` in the template.

    If `final` is invalid only with some values, the final trial becomes Infeasible.
    """
    if spec.final is None:
        return

    def errors_of(point: Values) -> frozenset[FieldError]:
        before = {error.path for error in _job_errors(trial_spec(spec, point))}
        return frozenset(error for error in _job_errors(final_spec(spec, point)) if error.path not in before)

    errors = errors_of({})
    for error in sorted(
        errors & errors_of(complete_point(check_parameters(spec).dimensions, {})) if errors else errors
    ):
        own = error.path.removeprefix("spec.training.") in spec.final.training.to_json_dict()
        yield _under("spec.final.", error) if own else FieldError("spec.final", _sentence(error))


LORASWEEP_RULES: Final[tuple[Callable[[LoRASweepSpec], Errors], ...]] = (
    something_to_search,
    parameters,
    initial,
    shared_passes,
    pruner,
    final,
    final_run,
    values,
)


def parse_lorasweep(obj: Any, *, local: bool = False) -> LoRASweepSpec:
    """Return the spec of a LoRASweep object; see tunery_api.validation.parse_lorajob."""

    def warm_start(spec: LoRASweepSpec) -> Iterable[FieldError]:
        return warm_start_of_another(spec, _name(obj))

    return parse_spec(obj, LoRASweepSpec, (*LORASWEEP_RULES, warm_start), local)


def _name(obj: Mapping[str, Any]) -> str:
    """Return the name of an object, or "" without one."""
    metadata = obj.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""
