"""Prune trials: those that are worse than earlier ones after the same share of their steps, or report a Problem.

Only earlier trials, those with lower numbers, are compared. The status has no time of a comparison, so that against all
trials each would be compared again with each new one. The answer does not depend on the order or number of reconciles.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Final

from tunery_api.lorasweep import PrunerSpec, PrunerType
from tunery_api.measured import MAX_EVALUATIONS, share_text
from tunery_api.methods import Preset
from tunery_search.trials import FINAL_ORIGIN, EvalLosses, Trial

NEVER_COMPARED: Final = frozenset({FINAL_ORIGIN, *(preset.value for preset in Preset)})
"""Origins of trials that run to their ends, so that the comparison with the guide's configurations is whole."""
MOST_EVALUATIONS: Final = MAX_EVALUATIONS
"""Of a trial that is compared: of more the first are no longer told."""
_EPSILON: Final = 1e-9
_GAP_RATIO: Final = 1.5
"""Distances between two evaluations, above which there was one before the first: they are a step longer or shorter."""


def prune_reasons(spec: PrunerSpec, trials: Sequence[Trial]) -> dict[int, str]:
    """Return which trials are to end, by number, each with why."""
    if spec.type is PrunerType.NONE:
        return {}
    found: dict[int, str] = {}
    for trial in trials:
        if trial.live is None or trial.live.stopping:
            continue
        why = found_problem(trial) or _comparison_reason(spec, trial, trials)
        if why is not None:
            found[trial.row.number] = why
    return found


def found_problem(trial: Trial) -> str | None:
    """Return the Problem that a trial has found and goes on with; None where its trainer ends it, or there is none."""
    return trial.live.problem if trial.live is not None and not trial.live.stops_itself else None


def _comparison_reason(spec: PrunerSpec, trial: Trial, trials: Sequence[Trial]) -> str | None:
    if trial.row.origin in NEVER_COMPARED:
        return None
    judge = halving_reason if spec.type is PrunerType.HALVING else median_reason
    earlier = [each for each in trials if each.row.number < trial.row.number and not each.is_final_trial]
    return next((why for rung in spec.rungs if (why := judge(spec, rung, trial, earlier))), None)


def loss_at_rung(course: EvalLosses, rung: float) -> float | None:
    """Return the lowest loss up to the first evaluation at a rung; None where it was not reached.

    Also where earlier evaluations are no longer told, as there were many: the lowest may have been one of these.
    """
    index = next((index for index, (share, _) in enumerate(course) if share >= rung - _EPSILON), None)
    if index is None or _is_truncated(course):
        return None
    return min(loss for _, loss in course[: index + 1])


def _is_truncated(course: EvalLosses) -> bool:
    """Return whether the first evaluation of a course is not the run's first: it lies behind the place of another."""
    if len(course) < MOST_EVALUATIONS:
        return False
    widest = max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(course))
    return course[0][0] > _GAP_RATIO * widest


def halving_reason(spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]) -> str | None:
    """Return why a trial ends at a rung: it is not in the share of all so far that continues. Ties continue."""
    own, others = _compared(spec, rung, trial, earlier)
    if own is None:
        return None
    rank = 1 + sum(loss < own for loss in others)
    places = math.ceil(spec.keep * (len(others) + 1) - _EPSILON)
    if rank <= places:
        return None
    return f"{_at(own, rung)}: number {rank} of {len(others) + 1}, and the best {places} go on"


def median_reason(spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]) -> str | None:
    """Return why a trial ends at a rung: it is worse than the median of those that came before."""
    own, others = _compared(spec, rung, trial, earlier)
    if own is None or own <= (middle := statistics.median(others)):
        return None
    return f"{_at(own, rung)}: above {middle:.5g}, the median of the {len(others)} before it"


def _compared(
    spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]
) -> tuple[float | None, list[float]]:
    """Return a trial's loss at a rung and those of its rivals; no loss where nothing can be said."""
    own = loss_at_rung(trial.course, rung)
    others = [loss for each in earlier if (loss := loss_at_rung(each.course, rung)) is not None]
    return (own if len(others) >= spec.min_rivals else None), others


def _at(loss: float, rung: float) -> str:
    return f"after {share_text(rung)} of the steps its lowest held-out loss is {loss:.5g}"
