"""Prune trials that report a Problem, or that are worse than earlier ones at the same rung.

A trial is compared only with earlier trials, those with lower numbers. The status doesn't record a comparison, so a
trial would otherwise be compared again with each new one. The result doesn't depend on the order or number of
reconciles.
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
"""Origins of trials that always run to their end, so that the guide's configurations can be compared."""
_EPSILON: Final = 1e-9
_GAP_RATIO: Final = 1.5
"""A first evaluation later than this many intervals means that earlier ones were dropped. Intervals may differ by a
step."""


def prune_reasons(spec: PrunerSpec, trials: Sequence[Trial]) -> dict[int, str]:
    """Return the reason for each trial to prune, by number."""
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
    """Return the Problem of a trial that doesn't stop itself. Return None otherwise."""
    return trial.live.problem if trial.live is not None and not trial.live.stops_itself else None


def _comparison_reason(spec: PrunerSpec, trial: Trial, trials: Sequence[Trial]) -> str | None:
    if trial.row.origin in NEVER_COMPARED:
        return None
    rule = halving_reason if spec.type is PrunerType.HALVING else median_reason
    earlier = [each for each in trials if each.row.number < trial.row.number and not each.is_final_trial]
    return next((why for rung in spec.rungs if (why := rule(spec, rung, trial, earlier))), None)


def loss_at_rung(losses: EvalLosses, rung: float) -> float | None:
    """Return the lowest loss up to the first evaluation at a rung. Return None if the trial hasn't reached it.

    Return None also if the status dropped earlier evaluations: one of them may have been the lowest.
    """
    index = next((index for index, (share, _) in enumerate(losses) if share >= rung - _EPSILON), None)
    if index is None or _is_truncated(losses):
        return None
    return min(loss for _, loss in losses[: index + 1])


def _is_truncated(losses: EvalLosses) -> bool:
    """Return whether earlier evaluations were dropped: the first one left is too late."""
    if len(losses) < MAX_EVALUATIONS:
        return False
    widest = max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(losses))
    return losses[0][0] > _GAP_RATIO * widest


def halving_reason(spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]) -> str | None:
    """Return why a trial is pruned at a rung: it isn't in the share of trials that continues. Ties continue."""
    own, others = _compared(spec, rung, trial, earlier)
    if own is None:
        return None
    rank = 1 + sum(loss < own for loss in others)
    places = math.ceil(spec.keep * (len(others) + 1) - _EPSILON)
    if rank <= places:
        return None
    return f"{_at(own, rung)}: number {rank} of {len(others) + 1}, and the best {places} continue"


def median_reason(spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]) -> str | None:
    """Return why a trial is pruned at a rung: it is worse than the median of the earlier trials."""
    own, others = _compared(spec, rung, trial, earlier)
    if own is None or own <= (middle := statistics.median(others)):
        return None
    return f"{_at(own, rung)}: above {middle:.5g}, the median of the {len(others)} earlier ones"


def _compared(
    spec: PrunerSpec, rung: float, trial: Trial, earlier: Sequence[Trial]
) -> tuple[float | None, list[float]]:
    """Return a trial's loss at a rung and those of its rivals. The loss is None with too few rivals."""
    own = loss_at_rung(trial.eval_losses, rung)
    others = [loss for each in earlier if (loss := loss_at_rung(each.eval_losses, rung)) is not None]
    return (own if len(others) >= spec.min_rivals else None), others


def _at(loss: float, rung: float) -> str:
    return f"after {share_text(rung)} of the steps its lowest held-out loss is {loss:.5g}"
