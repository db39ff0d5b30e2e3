"""Provide proposals for trials: in this process, or by Optuna in a child process that ends with its answer.

Each trial number has its own seed, so the same history gives the same proposals, and trials that are proposed together
differ. With one seed for all, a sampler that is rebuilt for each proposal would repeat one point. Optuna takes 33 MB
and half a second of import; both end with the child process.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from typing import Final

from tunery_api.lorasweep import SamplerType
from tunery_search.dimensions import (
    Categorical,
    Dimension,
    contains,
    grid,
    is_active,
    is_point,
    plain,
    point_key,
    sampling_order,
    step_count,
    step_size,
)
from tunery_search.history import (
    IMPORTANCE_FROM,
    Observation,
    ObservationState,
    Suggestion,
    SuggestionReply,
    SuggestionRequest,
)

TIMEOUT_SECONDS: Final = 60
_THREAD_LIMITS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MAX_MESSAGE: Final = 500


class SuggestionFailed(Exception):
    """The sampler has no answer; asking again may help."""


def needs_optuna(ask: SuggestionRequest) -> bool:
    """Return whether Optuna answers; Random, Grid and the startup trials of TPE need no child process.

    Importances come with an answer of Optuna, or are requested without a trial, so that no trial waits for them.
    """
    if ask.numbers:
        return uses_tpe(ask, max(ask.numbers))
    return sum(told.state is ObservationState.COMPLETE for told in ask.trials) >= IMPORTANCE_FROM


def suggest(ask: SuggestionRequest) -> SuggestionReply:
    """Return the next points; if Optuna answers, wait for its process. Raises SuggestionFailed."""
    if ask.sampler is SamplerType.TPE and find_spec("optuna") is None:
        raise SuggestionFailed(
            'sampler.type TPE needs Optuna, which is not installed: pip install "tunery-api[search]", or choose '
            "Random or Grid"
        )
    if not needs_optuna(ask):
        return SuggestionReply(suggestions=propose(ask, random_draw(ask)))
    try:
        # One pool for one answer: a child that crashes or hangs affects no other request, and no child stays idle.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_suggest_with_optuna, ask, TIMEOUT_SECONDS).result()
    except BrokenProcessPool as error:
        text = f"the sampler's process was killed, or had no answer within {TIMEOUT_SECONDS} s"
        raise SuggestionFailed(text) from error
    except Exception as error:  # any of Optuna's errors: a sweep shows it and retries
        raise SuggestionFailed(f"the sampler failed: {type(error).__name__}: {error}"[:_MAX_MESSAGE]) from error


def _suggest_with_optuna(ask: SuggestionRequest, seconds: int) -> SuggestionReply:
    """Return Optuna's answer, in a child process without an environment; the kernel kills it after so many seconds."""
    signal.alarm(seconds)
    os.environ.clear()
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    warnings.simplefilter("ignore")
    from tunery_search.optuna_sampler import compute_suggestions  # the parent never loads Optuna

    return compute_suggestions(ask)


MAX_DRAWS: Final = 20
"""Proposals for one number, until one of them is new."""
_MAX_GRID_POINTS: Final = 4096
"""Points of a grid that are searched for a new one."""

_INFORMATIVE: Final = frozenset({ObservationState.COMPLETE, ObservationState.PRUNED})

Draw = Callable[[int, int, tuple[Observation, ...], Mapping[str, str]], dict[str, str]]
"""Returns a point for the number of a trial, the number of the draw for it, the known trials, and fixed values."""


def seed_of(seed: int, number: int, salt: int) -> int:
    """Return the seed of one proposal, of 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{salt}".encode()).digest()[:4], "big")


def propose(ask: SuggestionRequest, draw: Draw) -> tuple[Suggestion, ...]:
    """Return a new point for each number, or fewer if the space has no other point."""
    known = (*ask.earlier, *sorted(ask.trials, key=lambda told: told.number))
    seen = {point_key(told.values) for told in ask.trials}
    found: list[Suggestion] = []
    for number in sorted(ask.numbers):
        one = next((each for each in _candidates(ask, number, known, draw) if point_key(each.values) not in seen), None)
        if one is None:
            break
        found.append(one)
        seen.add(point_key(one.values))
        known = (*known, Observation(number=number, state=ObservationState.RUNNING, values=one.values))
    return tuple(found)


def uses_tpe(ask: SuggestionRequest, number: int) -> bool:
    """Return whether TPE proposes a trial: the startup trials have been made, and at least half as many have ended.

    To wait for all of them would leave more trials to chance, the more run at a time.
    """
    ended = sum(told.state in _INFORMATIVE for told in in_space(ask, (*ask.earlier, *ask.trials)))
    made = number + len(ask.earlier)
    return ask.sampler is SamplerType.TPE and made >= ask.startup and 2 * ended >= ask.startup


def in_space(ask: SuggestionRequest, known: tuple[Observation, ...]) -> tuple[Observation, ...]:
    """Return the trials that are points of this space: a preset of another version may have had another one."""
    return tuple(told for told in known if is_point(ask.space, told.values))


def _candidates(
    ask: SuggestionRequest, number: int, known: tuple[Observation, ...], draw: Draw
) -> Iterator[Suggestion]:
    """Yield points for a trial: with its fixed values, then by the sampler, then the other points of the grid."""
    fixed = ask.fixed.get(number)
    if fixed is not None:
        for salt in range(MAX_DRAWS):
            values = draw(number, salt, known, fixed.values)
            yield Suggestion(number=number, origin=fixed.origin, values=values)
    origin = ask.sampler.value
    if ask.sampler is not SamplerType.GRID:
        for salt in range(MAX_DRAWS):
            values = draw(number, salt, known, {})
            yield Suggestion(number=number, origin=origin, values=values)
    left = _untried_grid_points(ask, known)
    if ask.sampler is not SamplerType.GRID:
        random.Random(seed_of(ask.seed, number, MAX_DRAWS)).shuffle(left)  # noqa: S311  # no secret
    yield from (Suggestion(number=number, origin=origin, values=values) for values in left)


def _untried_grid_points(ask: SuggestionRequest, known: tuple[Observation, ...]) -> list[dict[str, str]]:
    """Return points of the grid that were not tried, in order; empty if the space has no grid."""
    taken = {point_key(told.values) for told in known[len(ask.earlier) :]}
    new = (values for values in grid(ask.space) if point_key(values) not in taken)
    return list(islice(new, 1 if ask.sampler is SamplerType.GRID else _MAX_GRID_POINTS))


def random_draw(ask: SuggestionRequest) -> Draw:
    """Return the sampler that ignores the history: all values of a parameter are equally likely.

    The startup trials of TPE are a Latin hypercube: of as many equal parts of each parameter, each part has one trial.
    """
    order, startup = sampling_order(ask.space), ask.startup if ask.sampler is SamplerType.TPE else 1

    def draw(number: int, salt: int, known: tuple[Observation, ...], fixed: Mapping[str, str]) -> dict[str, str]:
        chance = random.Random(seed_of(ask.seed, number, salt))  # noqa: S311  # no secret
        parts = startup if salt == 0 else 1
        cube, row = divmod(number, parts)
        values: dict[str, str] = {}
        for dimension in order:
            if is_active(dimension, values):
                part = _shuffled(parts, f"{ask.seed}/{cube}/{dimension.path}")[row]
                share = (part + chance.random()) / parts
                values[dimension.path] = fixed_value(dimension, fixed) or _value_at(dimension, share)
        return values

    return draw


def _shuffled(parts: int, seed: str) -> list[int]:
    """Return the numbers below `parts` in an order of chance."""
    return random.Random(seed).sample(range(parts), parts)  # noqa: S311  # no secret


def fixed_value(dimension: Dimension, fixed: Mapping[str, str]) -> str | None:
    """Return the canonical text of a parameter's fixed value; None if it has none, or an invalid one."""
    text = fixed.get(dimension.path)
    if text is None or not contains(dimension, text):
        return None
    return text if isinstance(dimension, Categorical) else plain(float(text))


def _value_at(dimension: Dimension, share: float) -> str:
    """Return the value at a share of a parameter's range or choices, from 0 (lowest, first) to 1 (highest, last)."""
    if isinstance(dimension, Categorical):
        return dimension.choices[min(int(share * len(dimension.choices)), len(dimension.choices) - 1)]
    low, high, step = dimension.low, dimension.high, step_size(dimension)
    if dimension.log:
        return dimension.text(low * (high / low) ** share)
    if step is None:
        return dimension.text(low + share * (high - low))
    last = step_count(dimension, step)
    return dimension.text(low + step * min(int(share * (last + 1)), last))
