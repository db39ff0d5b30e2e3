"""Suggest trials with the TPE sampler of Optuna, and compute parameter importances.

Only the child processes of `tunery_search.sampler` import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from tunery_api.lorasweep import SamplerType
from tunery_search.dimensions import Categorical, Dimension, is_active, is_point, sampling_order
from tunery_search.history import IMPORTANCE_FROM, Observation, ObservationState, SuggestionReply, SuggestionRequest
from tunery_search.sampler import Draw, fixed_value, in_space, propose, random_draw, seed_of, uses_tpe

_STATES: Final = {
    ObservationState.COMPLETE: TrialState.COMPLETE,
    ObservationState.PRUNED: TrialState.PRUNED,
    ObservationState.RUNNING: TrialState.RUNNING,
    ObservationState.FAILED: TrialState.FAIL,
}
_Value = str | int | float

optuna.logging.set_verbosity(optuna.logging.ERROR)


def compute_suggestions(request: SuggestionRequest) -> SuggestionReply:
    """Return the suggested trials and the importances."""
    draw = _tpe_draw(request) if request.sampler is SamplerType.TPE else random_draw(request)
    return SuggestionReply(suggestions=propose(request, draw), importance=_importance(request))


def _tpe_draw(request: SuggestionRequest) -> Draw:
    """Return the TPE sampler: a new study for each draw, after the startup trials."""
    order, random_point = sampling_order(request.space), random_draw(request)
    frozen: dict[int, FrozenTrial] = {}

    def draw(number: int, salt: int, known: tuple[Observation, ...], fixed: Mapping[str, str]) -> dict[str, str]:
        if not uses_tpe(request, number):
            return random_point(number, salt, known, fixed)
        sampler = TPESampler(
            seed=seed_of(request.seed, number, salt),
            n_startup_trials=0,
            multivariate=True,
            group=any(dimension.when for dimension in order),
            constant_liar=True,
        )
        study = optuna.create_study(sampler=sampler)
        study.add_trials([_cached_trial(frozen, order, observation) for observation in in_space(request, known)])
        trial, values = study.ask(), dict[str, str]()
        for dimension in order:
            if is_active(dimension, values):
                values[dimension.path] = fixed_value(dimension, fixed) or _suggest_value(trial, dimension)
        return values

    return draw


def _cached_trial(
    frozen: dict[int, FrozenTrial], order: tuple[Dimension, ...], observation: Observation
) -> FrozenTrial:
    """Return an observation as a FrozenTrial. It is built once, as one suggestion may take 20 draws."""
    if id(observation) not in frozen:
        frozen[id(observation)] = _to_frozen_trial(order, observation)
    return frozen[id(observation)]


def _suggest_value(trial: Trial, dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return trial.suggest_categorical(dimension.path, dimension.choices)
    if dimension.integer:
        step = 1 if dimension.step is None else round(dimension.step)
        number = trial.suggest_int(
            dimension.path, round(dimension.low), round(dimension.high), step=step, log=dimension.log
        )
        return dimension.text(number)
    return dimension.text(
        trial.suggest_float(dimension.path, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
    )


def _to_frozen_trial(order: tuple[Dimension, ...], observation: Observation) -> FrozenTrial:
    """Return an observation as a FrozenTrial of Optuna."""
    active = [dimension for dimension in order if dimension.path in observation.values]
    return create_trial(
        state=_STATES[observation.state],
        params={each.path: _value(each, observation.values[each.path]) for each in active},
        distributions={each.path: _distribution(each) for each in active},
        value=observation.value if observation.state is ObservationState.COMPLETE else None,
        intermediate_values=dict(observation.intermediate_values),
    )


def _value(dimension: Dimension, text: str) -> _Value:
    if isinstance(dimension, Categorical):
        return text
    return int(float(text)) if dimension.integer else float(text)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Categorical):
        return CategoricalDistribution(dimension.choices)
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.integer:
        step = 1 if dimension.step is None else round(dimension.step)
        return IntDistribution(round(low), round(high), log=log, step=step)
    return FloatDistribution(low, high, log=log, step=dimension.step)


def _importance(request: SuggestionRequest) -> dict[str, float]:
    """Return the share of the loss variance that each parameter explains. Return an empty dict if it is unknown."""
    order = sampling_order(request.space)
    done = [
        observation
        for observation in request.trials
        if observation.state is ObservationState.COMPLETE and is_point(request.space, observation.values)
    ]
    if len(done) < IMPORTANCE_FROM:
        return {}
    study = optuna.create_study()
    study.add_trials(
        [
            _to_frozen_trial(order, observation)
            for observation in sorted(done, key=lambda observation: observation.number)
        ]
    )
    try:
        return {path: round(share, 3) for path, share in optuna.importance.get_param_importances(study).items()}
    except (ValueError, RuntimeError):
        return {}
