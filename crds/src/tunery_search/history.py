"""Provide the request to a sampler with the observed trials, and its reply."""

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
"""Minimum number of complete trials for importances. With fewer, a parameter without effect can seem important."""


class ObservationState(StrEnum):
    """The state of a trial as the sampler sees it."""

    COMPLETE = "Complete"
    PRUNED = "Pruned"
    """Worse than every complete trial. Of two pruned trials, the one that ran longer is better."""
    RUNNING = "Running"
    """The trial runs: the sampler avoids its point."""
    FAILED = "Failed"
    """The failure has nothing to do with the trial's values."""


class Observation(ApiModel):
    """A trial as the sampler sees it."""

    number: int
    state: ObservationState
    values: dict[str, str]
    value: float | None = None
    intermediate_values: tuple[tuple[int, float], ...] = ()
    """The intermediate values of a pruned trial: pairs of the percentage of its steps and the loss."""


class FixedTrial(ApiModel):
    """A trial some or all of whose values are fixed, as by `enqueue_trial` of Optuna."""

    origin: str
    values: dict[str, str]


class SuggestionRequest(ApiModel):
    """The request for the next trials."""

    seed: int
    sampler: SamplerType
    startup: int
    space: tuple[Categorical | Numeric, ...]
    earlier: tuple[Observation, ...] = ()
    """Observations of other sweeps, which are points of this space (warm start)."""
    trials: tuple[Observation, ...] = ()
    fixed: dict[int, FixedTrial] = Field(default_factory=dict)
    """The fixed trials by number."""
    numbers: tuple[int, ...] = ()
    """The numbers of the requested trials."""


class Suggestion(ApiModel):
    """A suggested trial."""

    number: int
    origin: str
    values: dict[str, str]


class SuggestionReply(ApiModel):
    """The suggested trials, and the importance of each parameter."""

    suggestions: tuple[Suggestion, ...] = ()
    """One for each requested number, in order. Fewer if the space has no other points."""
    importance: dict[str, float] = Field(default_factory=dict)
    """Share of the loss by path, in descending order. Empty with fewer than `IMPORTANCE_FROM` complete trials."""


def sweep_request(
    spec: LoRASweepSpec, space: Space, trials: Iterable[Trial], numbers: Sequence[int], forgiven: int
) -> SuggestionRequest:
    """Return the request of a sweep for trials of these numbers, with its initial points.

    The sampler doesn't see failed trials below the number `forgiven`: after a retry, their points may be tried again.
    """
    first = enumerate(initial_points(spec, space))
    fixed = {number: FixedTrial(origin=start.origin, values=dict(start.values)) for number, start in first}
    known = [trial for trial in trials if not trial.is_forgiven(forgiven)]
    return build_request(spec, space.dimensions, known, numbers, fixed)


def final_suggestion(spec: LoRASweepSpec, trials: Sequence[Trial], number: int) -> Suggestion | None:
    """Return the final trial, which trains the best values again. Return None if no trial has an adapter."""
    chosen = best(trials, spec.objective.tolerance)
    return Suggestion(number=number, origin=FINAL_ORIGIN, values=chosen.parameters) if chosen else None


def build_request(
    spec: LoRASweepSpec,
    space: Sequence[Dimension],
    trials: Iterable[Trial],
    numbers: Sequence[int],
    fixed: Mapping[int, FixedTrial],
) -> SuggestionRequest:
    """Return the request for trials of these numbers. `with_warm_start` adds the trials of other sweeps."""
    return SuggestionRequest(
        seed=spec.seed,
        sampler=spec.sampler.type,
        startup=spec.sampler.startup_trials,
        space=tuple(space),
        trials=tuple(to_observation(trial) for trial in trials if not trial.is_final_trial),
        fixed={number: fixed[number] for number in numbers if number in fixed},
        numbers=tuple(numbers),
    )


def with_warm_start(request: SuggestionRequest, sweeps: Iterable[Iterable[TrialStatus]]) -> SuggestionRequest:
    """Return the request with the ended trials of other sweeps that are points of this space."""
    rows = (row for sweep in sweeps for row in sorted(sweep, key=lambda row: row.number))
    ended = [to_observation(trial) for trial in map(Trial, rows) if trial.has_ended and not trial.is_final_trial]
    known = tuple(
        each for each in ended if each.state is not ObservationState.FAILED and is_point(request.space, each.values)
    )
    return request.model_copy(update={"earlier": known})


def to_observation(trial: Trial) -> Observation:
    """Return a trial as the sampler sees it."""
    row, state = trial.row, _state(trial)
    return Observation(
        number=row.number,
        state=state,
        values=row.parameters,
        value=trial.loss if state is ObservationState.COMPLETE else None,
        intermediate_values=_intermediate_values(trial)
        if state is ObservationState.PRUNED and row.state == TrialState.PRUNED
        else (),
    )


def _state(trial: Trial) -> ObservationState:
    state = trial.row.state
    if state == TrialState.COMPLETE:
        # A status that was edited may have a loss that isn't a number.
        return ObservationState.COMPLETE if trial.loss is not None else ObservationState.FAILED
    if state == TrialState.INFEASIBLE:
        # A pruned trial without a loss ranks last. Next to an infeasible region, that halves the wasted trials.
        return ObservationState.PRUNED
    if state == TrialState.PRUNED:
        # A trial that was stopped without a loss or a problem of its own is no evidence about its values.
        informative = not trial.was_stopped_with_sweep and (trial.eval_losses or trial.row.reason)
        return ObservationState.PRUNED if informative else ObservationState.FAILED
    return ObservationState.FAILED if trial.has_ended else ObservationState.RUNNING


def _intermediate_values(trial: Trial) -> tuple[tuple[int, float], ...]:
    """Return the losses of a trial by the percentage of its steps.

    The number of steps depends on the batch size, so steps of different trials can't be compared.
    """
    return tuple({round(100 * share): loss for share, loss in trial.eval_losses}.items())
