"""Answer a request with Optuna: proposals of its tree-structured Parzen estimator, and parameter importances.

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


def compute_suggestions(ask: SuggestionRequest) -> SuggestionReply:
    """Return the proposed trials and the importances."""
    draw = _tpe_draw(ask) if ask.sampler is SamplerType.TPE else random_draw(ask)
    return SuggestionReply(suggestions=propose(ask, draw), importance=_importance(ask))


def _tpe_draw(ask: SuggestionRequest) -> Draw:
    """Return the tree-structured Parzen estimator: a new study for each proposal, after the startup trials."""
    order, by_chance = sampling_order(ask.space), random_draw(ask)
    frozen: dict[int, FrozenTrial] = {}

    def draw(number: int, salt: int, known: tuple[Observation, ...], fixed: Mapping[str, str]) -> dict[str, str]:
        if not uses_tpe(ask, number):
            return by_chance(number, salt, known, fixed)
        sampler = TPESampler(
            seed=seed_of(ask.seed, number, salt),
            n_startup_trials=0,
            multivariate=True,
            group=any(dimension.when for dimension in order),
            constant_liar=True,
        )
        study = optuna.create_study(sampler=sampler)
        study.add_trials([_cached_trial(frozen, order, told) for told in in_space(ask, known)])
        trial, values = study.ask(), dict[str, str]()
        for dimension in order:
            if is_active(dimension, values):
                values[dimension.path] = fixed_value(dimension, fixed) or _suggest_value(trial, dimension)
        return values

    return draw


def _cached_trial(frozen: dict[int, FrozenTrial], order: tuple[Dimension, ...], told: Observation) -> FrozenTrial:
    """Return a trial as a FrozenTrial that is made once, as one proposal can take 20 draws."""
    if id(told) not in frozen:
        frozen[id(told)] = _to_frozen_trial(order, told)
    return frozen[id(told)]


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


def _to_frozen_trial(order: tuple[Dimension, ...], told: Observation) -> FrozenTrial:
    """Return a trial as a FrozenTrial of Optuna."""
    there = [dimension for dimension in order if dimension.path in told.values]
    return create_trial(
        state=_STATES[told.state],
        params={each.path: _value(each, told.values[each.path]) for each in there},
        distributions={each.path: _distribution(each) for each in there},
        value=told.value if told.state is ObservationState.COMPLETE else None,
        intermediate_values=dict(told.course),
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


def _importance(ask: SuggestionRequest) -> dict[str, float]:
    """Return the share of the variance of the loss that each parameter explains; empty if it is unknown."""
    order = sampling_order(ask.space)
    done = [told for told in ask.trials if told.state is ObservationState.COMPLETE and is_point(ask.space, told.values)]
    if len(done) < IMPORTANCE_FROM:
        return {}
    study = optuna.create_study()
    study.add_trials([_to_frozen_trial(order, told) for told in sorted(done, key=lambda told: told.number)])
    try:
        return {path: round(share, 3) for path, share in optuna.importance.get_param_importances(study).items()}
    except (ValueError, RuntimeError):
        return {}
