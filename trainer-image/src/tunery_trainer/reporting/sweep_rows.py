"""The trials of a sweep in order: which is the best, which come after it, and whose adapters stay."""

from __future__ import annotations

from tunery_api.measured import parse_finite
from tunery_api.runspec import LoRASweepRun
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_search import summary


def ranked(sweep: LoRASweepRun) -> list[TrialStatus]:
    """Return the complete trials: the one that the sweep says is the best, then the others by their loss."""
    return summary.ranked(sweep.trials, sweep.best)


def kept(sweep: LoRASweepRun) -> list[TrialStatus]:
    """Return the trials whose own adapters stay: as many as were asked for of those that have one, the best first."""
    return summary.rows_with_kept_adapter(sweep.trials, sweep.best, sweep.keep_adapters)


def of_state(sweep: LoRASweepRun, *states: TrialState) -> list[TrialStatus]:
    """Return the trials that ended in one of these states, by number."""
    return sorted((row for row in sweep.trials if row.state in states), key=lambda row: row.number)


def loss_of(row: TrialStatus) -> float | None:
    """Return the held-out loss of a trial, of one that was ended early the last; None: it was not measured."""
    losses = [row.value, *(each.loss for each in reversed(row.evaluations or ()))]
    return next((value for value in map(parse_finite, losses) if value is not None), None)


def curve_of(row: TrialStatus) -> list[tuple[float, float]]:
    """Return the losses of a trial by the share of its steps, the one before training first."""
    last = row.steps or max((each.step for each in row.evaluations or ()), default=0)
    points = [(each.step / last, parse_finite(each.loss)) for each in row.evaluations or () if last]
    return [(share, loss) for share, loss in [(0.0, parse_finite(row.base_value)), *points] if loss is not None]


def base_loss(sweep: LoRASweepRun) -> float | None:
    """Return the held-out loss before training, which is the same for all trials."""
    return next((loss for row in sweep.trials if (loss := parse_finite(row.base_value)) is not None), None)


def worth_seeing(sweep: LoRASweepRun) -> float:
    """Return the loss up to which a picture goes: what is far above the base, or above most trials, hides the rest."""
    losses = sorted(loss for row in ranked(sweep) if (loss := loss_of(row)) is not None)
    base = base_loss(sweep)
    high = base if base is not None else losses[int(0.9 * (len(losses) - 1))]
    high = max(high, losses[0], losses[(len(losses) - 1) // 2])
    return high + 0.08 * (high - losses[0] or abs(high) or 1.0)
