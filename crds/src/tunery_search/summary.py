"""Summarize the trials of a sweep: the best trial, the counts, the cost, and the search space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tunery_api.lorasweep import MAX_PARAMETERS, LoRASweepSpec, SamplerType
from tunery_api.measured import change_text, parse_finite
from tunery_api.runspec import SearchedParameter
from tunery_api.sweepstatus import BestTrial, Improvement, ParameterImportance, TrialCounts, TrialState, TrialStatus
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric, grid_size, plain
from tunery_search.space import space_of
from tunery_search.trials import Trial

_S = TrialState
_SHOWN: Final = 16
"""Maximum number of characters of an improvement in a status."""
_COUNTED_AS: Final[Mapping[str, str]] = {
    _S.WAITING: "waiting",
    _S.RUNNING: "running",
    _S.COMPLETE: "complete",
    _S.PRUNED: "pruned",
    _S.INFEASIBLE: "infeasible",
    _S.FAILED: "failed",
    _S.DELETED: "failed",
}


def best(trials: Iterable[Trial], tolerance: float = 0.0) -> TrialStatus | None:
    """Return the trial whose adapter to publish. Return None if no complete trial has an adapter.

    Among the trials within `tolerance` of the lowest loss, choose the one with the fewest trainable parameters, then
    the first one. The final trial wins only with a lower loss.
    """
    candidates = [trial for trial in trials if _has_adapter(trial)]
    searched = [trial.row for trial in candidates if not trial.is_final_trial]
    lowest = min(map(loss_of, searched), default=None)
    chosen: list[TrialStatus] = []
    if lowest is not None:
        near = [row for row in searched if loss_of(row) <= lowest + tolerance * abs(lowest)]
        chosen = [min(near, key=_by_size if tolerance else _by_loss)]
    final = [trial.row for trial in candidates if trial.is_final_trial]
    return min([*chosen, *final], key=_by_loss, default=None)


def _has_adapter(trial: Trial) -> bool:
    return trial.row.state == _S.COMPLETE and trial.row.adapter is not None and trial.loss is not None


def loss_of(row: TrialStatus) -> float:
    """Return the loss of a row that has one."""
    loss = parse_finite(row.value)
    return math.nan if loss is None else loss


def _by_loss(row: TrialStatus) -> tuple[float, int]:
    return loss_of(row), row.number


def _by_size(row: TrialStatus) -> tuple[float, int]:
    size = row.trainable_parameters
    return float("inf") if size is None else size, row.number


def ranked(rows: Iterable[TrialStatus], chosen: int) -> list[TrialStatus]:
    """Return the complete trials: the chosen one, then the others by loss.

    On a tie, the trial with fewer trainable parameters comes first, then the earlier one.
    """
    complete = [row for row in rows if row.state == _S.COMPLETE and parse_finite(row.value) is not None]
    return sorted(complete, key=lambda row: (row.number != chosen, loss_of(row), *_by_size(row)))


def rows_with_kept_adapter(rows: Iterable[TrialStatus], chosen: int, most: int) -> list[TrialStatus]:
    """Return the trials whose adapters are retained after the best one is published, at most `most`."""
    return [row for row in ranked(rows, chosen) if row.adapter is not None][:most]


def without_removed_adapters(rows: Iterable[TrialStatus], chosen: int, most: int) -> list[TrialStatus]:
    """Return the rows without the locations of removed adapters."""
    rows = list(rows)
    retained = {row.number for row in rows_with_kept_adapter(rows, chosen, most)}
    return [row if row.number in retained else _removed(row) for row in rows]


def _removed(row: TrialStatus) -> TrialStatus:
    """Return a row without the location of an adapter that was removed."""
    return row.model_copy(update={"adapter": None}) if row.adapter is not None else row


def best_trial(row: TrialStatus) -> BestTrial:
    """Return the best trial as the status shows it."""
    base = parse_finite(row.base_value)
    change = change_text((loss_of(row) - base) / abs(base)) if base else ""
    return BestTrial(
        trial=row.number,
        name=row.name,
        value=row.value or "",
        base_value=None if base is None else row.base_value,
        # Compared with a base loss near zero, the improvement would have many digits.
        improvement=change if 0 < len(change) <= _SHOWN else None,
        parameters=row.parameters,
    )


def convergence(trials: Iterable[Trial]) -> list[Improvement]:
    """Return the trials that were better than all earlier ones, in order."""
    found: list[Improvement] = []
    for trial in _by_number(trials):
        row = trial.row
        if trial.is_final_trial or not _has_adapter(trial):
            continue
        if not found or loss_of(row) < float(found[-1].value):
            found.append(Improvement(trial=row.number, value=row.value or ""))
    return found


def trials_since_improvement(trials: Sequence[Trial]) -> int | None:
    """Return how many informative trials ended after the best one. Return None without a best one."""
    improvements = convergence(trials)
    if not improvements:
        return None
    return sum(trial.is_informative and trial.row.number > improvements[-1].trial for trial in trials)


def trial_counts(trials: Sequence[Trial]) -> TrialCounts:
    """Return the number of trials in each state."""
    numbers = dict.fromkeys(set(_COUNTED_AS.values()), 0)
    for trial in trials:
        if trial.row.state in _COUNTED_AS:
            numbers[_COUNTED_AS[trial.row.state]] += 1
    return TrialCounts(created=len(trials), **numbers)


def counts_text(trials: Iterable[Trial], most: int, forgiven: int = 0) -> str:
    """Return how many of the counted trials have ended, and how many there are in all: `7/20`.

    If a user lowered `most`, more trials than that may have ended.
    """
    ended = sum(trial.has_ended for trial in trials if trial.counts and not trial.is_forgiven(forgiven))
    return f"{ended}/{max(most, ended)}"


def mean_gpu_seconds(trials: Iterable[Trial]) -> float | None:
    """Return the mean GPU seconds of a complete trial. Return None without one."""
    taken = [
        trial.row.gpu_seconds
        for trial in trials
        if trial.row.state == _S.COMPLETE and trial.row.gpu_seconds is not None and not trial.is_final_trial
    ]
    return sum(taken) / len(taken) if taken else None


def gpu_seconds(trials: Iterable[Trial]) -> int:
    """Return the GPU seconds of all ended attempts of all trials."""
    return sum(trial.row.gpu_seconds or 0 for trial in trials)


def gpu_seconds_saved(trials: Sequence[Trial]) -> int | None:
    """Return the GPU seconds that pruning saved. Return None without a complete trial."""
    mean = mean_gpu_seconds(trials)
    if mean is None:
        return None
    pruned = [trial.row.gpu_seconds or 0 for trial in trials if trial.row.state == _S.PRUNED]
    return round(sum(max(0.0, mean - taken) for taken in pruned))


def importance_shown(importance: Mapping[str, float]) -> list[ParameterImportance] | None:
    """Return the importances as the status shows them, in descending order. Return None without any."""
    most = sorted(importance.items(), key=lambda item: (-item[1], item[0]))[:MAX_PARAMETERS]
    return [ParameterImportance(path=path, share=f"{share:.3g}") for path, share in most] or None


def _by_number(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial.row.number)


MOST_COUNTED: Final = 1000
"""Maximum number of grid points to count, as each status counts them again."""


def searched_parameters(space: Iterable[Dimension]) -> list[SearchedParameter]:
    """Return each parameter of a space with its values as text, for run.json."""
    return [
        SearchedParameter(
            path=each.path,
            words=_values(each) + (_condition(each.when) if each.when else ""),
            log=isinstance(each, Numeric) and each.log,
            choices=list(each.choices) if isinstance(each, Categorical) else None,
        )
        for each in space
    ]


def _values(dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return ", ".join(dimension.choices)
    text = f"{plain(dimension.low)} to {plain(dimension.high)}"
    if dimension.step:
        return f"{text} in steps of {plain(dimension.step)}"
    return f"{text}, by factors" if dimension.log else text


def _condition(when: Condition) -> str:
    return f"; where {when.path} is {' or '.join(when.values)}"


def points_tried(spec: LoRASweepSpec) -> str | None:
    """Return the share of the grid that a sweep tries: `20 of 64 points of the grid`. Return None without a grid."""
    if spec.sampler.type is not SamplerType.GRID:
        return None
    points = grid_size(space_of(spec).dimensions, MOST_COUNTED + 1)
    if points <= spec.max_trials:
        return f"all {points} points of the grid"
    counted = f"more than {MOST_COUNTED}" if points > MOST_COUNTED else f"{points}"
    return f"{spec.max_trials} of {counted} points of the grid"
