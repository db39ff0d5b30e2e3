"""Suggest trials, in this process or with Optuna in a child process.

Each trial number has its own seed. The same history gives the same suggestions, and trials that are suggested together
differ. With one seed for all numbers, a sampler that is rebuilt for each suggestion would repeat one point. Optuna
takes 33 MB of memory and half a second of import. The child process frees both when it ends.
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
    """The sampler has no reply. A retry may help."""


def needs_optuna(request: SuggestionRequest) -> bool:
    """Return whether Optuna answers the request.

    Random, Grid and the startup trials of TPE need no child process. Importances come with a reply of Optuna, or with a
    request for no trial, so that no trial waits for them.
    """
    if request.numbers:
        return uses_tpe(request, max(request.numbers))
    return sum(observation.state is ObservationState.COMPLETE for observation in request.trials) >= IMPORTANCE_FROM


def suggest(request: SuggestionRequest) -> SuggestionReply:
    """Return the next points. If Optuna answers, wait for its process. Raises SuggestionFailed."""
    if request.sampler is SamplerType.TPE and find_spec("optuna") is None:
        raise SuggestionFailed(
            'sampler.type TPE needs Optuna, which is not installed: pip install "tunery-api[search]", or choose '
            "Random or Grid"
        )
    if not needs_optuna(request):
        return SuggestionReply(suggestions=propose(request, random_draw(request)))
    try:
        # One pool for one answer: a child that crashes or hangs affects no other request, and no child stays idle.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_suggest_with_optuna, request, TIMEOUT_SECONDS).result()
    except BrokenProcessPool as error:
        text = f"the sampler's process was killed, or had no answer within {TIMEOUT_SECONDS} s"
        raise SuggestionFailed(text) from error
    except Exception as error:  # any of Optuna's errors: a sweep shows it and retries
        raise SuggestionFailed(f"the sampler failed: {type(error).__name__}: {error}"[:_MAX_MESSAGE]) from error


def _suggest_with_optuna(request: SuggestionRequest, seconds: int) -> SuggestionReply:
    """Return Optuna's reply, in a child process without environment. The kernel kills the process after `seconds`."""
    signal.alarm(seconds)
    os.environ.clear()
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    warnings.simplefilter("ignore")
    from tunery_search.optuna_sampler import compute_suggestions  # the parent never loads Optuna

    return compute_suggestions(request)


MAX_DRAWS: Final = 20
"""Maximum number of draws for one trial until its point is new."""
_MAX_GRID_POINTS: Final = 4096
"""Maximum number of grid points that are searched for a new one."""

_INFORMATIVE: Final = frozenset({ObservationState.COMPLETE, ObservationState.PRUNED})

Draw = Callable[[int, int, tuple[Observation, ...], Mapping[str, str]], dict[str, str]]
"""Returns a point. Arguments: the trial number, the number of the draw, the observations, and the fixed values."""


def seed_of(seed: int, number: int, salt: int) -> int:
    """Return the seed of one draw, 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{salt}".encode()).digest()[:4], "big")


def propose(request: SuggestionRequest, draw: Draw) -> tuple[Suggestion, ...]:
    """Return a new point for each number. Return fewer if the space has no other points."""
    known = (*request.earlier, *sorted(request.trials, key=lambda observation: observation.number))
    seen = {point_key(observation.values) for observation in request.trials}
    found: list[Suggestion] = []
    for number in sorted(request.numbers):
        one = next(
            (each for each in _candidates(request, number, known, draw) if point_key(each.values) not in seen), None
        )
        if one is None:
            break
        found.append(one)
        seen.add(point_key(one.values))
        known = (*known, Observation(number=number, state=ObservationState.RUNNING, values=one.values))
    return tuple(found)


def uses_tpe(request: SuggestionRequest, number: int) -> bool:
    """Return whether TPE suggests a trial.

    It does once the startup trials are created and at least half as many have ended. Waiting for all of them would
    leave more trials to random search, the more run in parallel.
    """
    ended = sum(
        observation.state in _INFORMATIVE for observation in in_space(request, (*request.earlier, *request.trials))
    )
    created = number + len(request.earlier)
    return request.sampler is SamplerType.TPE and created >= request.startup and 2 * ended >= request.startup


def in_space(request: SuggestionRequest, known: tuple[Observation, ...]) -> tuple[Observation, ...]:
    """Return the observations that are points of this space. A preset of another version may have another space."""
    return tuple(observation for observation in known if is_point(request.space, observation.values))


def _candidates(
    request: SuggestionRequest, number: int, known: tuple[Observation, ...], draw: Draw
) -> Iterator[Suggestion]:
    """Yield points for a trial: with its fixed values, then from the sampler, then from the rest of the grid."""
    fixed = request.fixed.get(number)
    if fixed is not None:
        for salt in range(MAX_DRAWS):
            values = draw(number, salt, known, fixed.values)
            yield Suggestion(number=number, origin=fixed.origin, values=values)
    origin = request.sampler.value
    if request.sampler is not SamplerType.GRID:
        for salt in range(MAX_DRAWS):
            values = draw(number, salt, known, {})
            yield Suggestion(number=number, origin=origin, values=values)
    left = _untried_grid_points(request, known)
    if request.sampler is not SamplerType.GRID:
        random.Random(seed_of(request.seed, number, MAX_DRAWS)).shuffle(left)  # noqa: S311  # not a secret
    yield from (Suggestion(number=number, origin=origin, values=values) for values in left)


def _untried_grid_points(request: SuggestionRequest, known: tuple[Observation, ...]) -> list[dict[str, str]]:
    """Return untried points of the grid, in order. Return an empty list if the space has no grid."""
    taken = {point_key(observation.values) for observation in known[len(request.earlier) :]}
    new = (values for values in grid(request.space) if point_key(values) not in taken)
    return list(islice(new, 1 if request.sampler is SamplerType.GRID else _MAX_GRID_POINTS))


def random_draw(request: SuggestionRequest) -> Draw:
    """Return the sampler that ignores the observations: all values of a parameter are equally likely.

    The startup trials of TPE are a Latin hypercube: each of as many equal parts of a parameter has one trial.
    """
    order, startup = sampling_order(request.space), request.startup if request.sampler is SamplerType.TPE else 1

    def draw(number: int, salt: int, known: tuple[Observation, ...], fixed: Mapping[str, str]) -> dict[str, str]:
        chance = random.Random(seed_of(request.seed, number, salt))  # noqa: S311  # not a secret
        parts = startup if salt == 0 else 1
        cube, row = divmod(number, parts)
        values: dict[str, str] = {}
        for dimension in order:
            if is_active(dimension, values):
                part = _shuffled(parts, f"{request.seed}/{cube}/{dimension.path}")[row]
                share = (part + chance.random()) / parts
                values[dimension.path] = fixed_value(dimension, fixed) or _value_at(dimension, share)
        return values

    return draw


def _shuffled(parts: int, seed: str) -> list[int]:
    """Return the numbers below `parts` in random order."""
    return random.Random(seed).sample(range(parts), parts)  # noqa: S311  # not a secret


def fixed_value(dimension: Dimension, fixed: Mapping[str, str]) -> str | None:
    """Return the canonical text of a parameter's fixed value. Return None without one, or if it is invalid."""
    text = fixed.get(dimension.path)
    if text is None or not contains(dimension, text):
        return None
    return text if isinstance(dimension, Categorical) else plain(float(text))


def _value_at(dimension: Dimension, share: float) -> str:
    """Return the value at a share of a parameter's range or choices; 0 is the lowest, 1 the highest."""
    if isinstance(dimension, Categorical):
        return dimension.choices[min(int(share * len(dimension.choices)), len(dimension.choices) - 1)]
    low, high, step = dimension.low, dimension.high, step_size(dimension)
    if dimension.log:
        return dimension.text(low * (high / low) ** share)
    if step is None:
        return dimension.text(low + share * (high - low))
    last = step_count(dimension, step)
    return dimension.text(low + step * min(int(share * (last + 1)), last))
