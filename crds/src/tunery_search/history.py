"""Provide the request to a sampler, with the history of the trials, and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from pydantic import Field

from tunery_api.fields import ApiModel
from tunery_api.lorasweep import LoRASweepSpec, SamplerType
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_search.dimensions import Categorical, Dimension, Numeric, is_point
from tunery_search.space import Space, initial_points
from tunery_search.summary import best
from tunery_search.trials import FINAL_ORIGIN, Trial

IMPORTANCE_FROM: Final = 20
"""Complete trials that importances need: with fewer, a parameter without effect can seem to matter."""


class ObservationState(StrEnum):
    """The state of a trial as a sampler sees it."""

    COMPLETE = "Complete"
    PRUNED = "Pruned"
    """Worse than every complete trial; of two pruned trials the one that ran longer is better."""
    RUNNING = "Running"
    """It runs: the sampler avoids its point."""
    FAILED = "Failed"
    """Its failure has nothing to do with its values."""


class Observation(ApiModel):
    """A trial of the history."""

    number: int
    state: ObservationState
    values: dict[str, str]
    value: float | None = None
    course: tuple[tuple[int, float], ...] = ()
    """The losses of a pruned trial, each with the percentage of its steps."""


class FixedTrial(ApiModel):
    """A trial some or all of whose values are given."""

    origin: str
    values: dict[str, str]


class SuggestionRequest(ApiModel):
    """The request for the next trials."""

    seed: int
    sampler: SamplerType
    startup: int
    space: tuple[Categorical | Numeric, ...]
    earlier: tuple[Observation, ...] = ()
    """Trials of other sweeps to learn from, points of this space."""
    trials: tuple[Observation, ...] = ()
    fixed: dict[int, FixedTrial] = Field(default_factory=dict)
    """By the number of the trial."""
    numbers: tuple[int, ...] = ()
    """The numbers of the requested trials."""


class Suggestion(ApiModel):
    """A proposed trial."""

    number: int
    origin: str
    values: dict[str, str]


class SuggestionReply(ApiModel):
    """The proposed trials, and the importance of each parameter."""

    suggestions: tuple[Suggestion, ...] = ()
    """One for each requested number, in order; fewer if the space has no other points."""
    importance: dict[str, float] = Field(default_factory=dict)
    """Share of the loss by path, the largest first; empty with fewer than `IMPORTANCE_FROM` complete trials."""


def sweep_request(
    spec: LoRASweepSpec, space: Space, trials: Iterable[Trial], numbers: Sequence[int], forgiven: int
) -> SuggestionRequest:
    """Return what a sweep asks for trials of these numbers; what was tried first is in it.

    What has failed for a cause that was mended since, below the number `forgiven`, is not told: such a point may be
    tried again.
    """
    first = enumerate(initial_points(spec, space))
    fixed = {number: FixedTrial(origin=start.origin, values=dict(start.values)) for number, start in first}
    known = [trial for trial in trials if not trial.is_forgiven(forgiven)]
    return build_request(spec, space.dimensions, known, numbers, fixed)


def final_suggestion(spec: LoRASweepSpec, trials: Sequence[Trial], number: int) -> Suggestion | None:
    """Return the trial that trains the best settings once more; None where there are none."""
    chosen = best(trials, spec.objective.tolerance)
    return Suggestion(number=number, origin=FINAL_ORIGIN, values=chosen.parameters) if chosen else None


def build_request(
    spec: LoRASweepSpec,
    space: Sequence[Dimension],
    trials: Iterable[Trial],
    numbers: Sequence[int],
    fixed: Mapping[int, FixedTrial],
) -> SuggestionRequest:
    """Return the request for trials of these numbers; `with_earlier` adds the trials of other sweeps."""
    return SuggestionRequest(
        seed=spec.seed,
        sampler=spec.sampler.type,
        startup=spec.sampler.startup_trials,
        space=tuple(space),
        trials=tuple(to_observation(trial) for trial in trials if not trial.is_final_trial),
        fixed={number: fixed[number] for number in numbers if number in fixed},
        numbers=tuple(numbers),
    )


def with_warm_start(ask: SuggestionRequest, sweeps: Iterable[Iterable[TrialStatus]]) -> SuggestionRequest:
    """Return the request with the trials of other sweeps that have ended and are points of this space."""
    rows = (row for sweep in sweeps for row in sorted(sweep, key=lambda row: row.number))
    there = [to_observation(trial) for trial in map(Trial, rows) if trial.has_ended and not trial.is_final_trial]
    known = tuple(
        each for each in there if each.state is not ObservationState.FAILED and is_point(ask.space, each.values)
    )
    return ask.model_copy(update={"earlier": known})


def to_observation(trial: Trial) -> Observation:
    """Return a trial as a sampler sees it."""
    row, state = trial.row, _state(trial)
    return Observation(
        number=row.number,
        state=state,
        values=row.parameters,
        value=trial.loss if state is ObservationState.COMPLETE else None,
        course=_intermediate_values(trial)
        if state is ObservationState.PRUNED and row.state == TrialState.PRUNED
        else (),
    )


def _state(trial: Trial) -> ObservationState:
    state = trial.row.state
    if state == TrialState.COMPLETE:
        # The status of an older version, or of somebody's hand, may tell what is no number.
        return ObservationState.COMPLETE if trial.loss is not None else ObservationState.FAILED
    if state == TrialState.INFEASIBLE:
        # Without a loss it is behind all that have one: beside an edge half as many are wasted then.
        return ObservationState.PRUNED
    if state == TrialState.PRUNED:
        # One that was stopped before anything was measured, and not for what it found itself, says nothing; nor does
        # one that was stopped for what another failed for.
        says = not trial.was_stopped_with_sweep and (trial.course or trial.row.reason)
        return ObservationState.PRUNED if says else ObservationState.FAILED
    return ObservationState.FAILED if trial.has_ended else ObservationState.RUNNING


def _intermediate_values(trial: Trial) -> tuple[tuple[int, float], ...]:
    """Return its losses by the percentage of its steps: trials of other batches have other steps."""
    return tuple({round(100 * share): loss for share, loss in trial.course}.items())
