"""What a sweep without a cluster prints: a line for each trial, and a table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from tunery_api.measured import change_text, number_text
from tunery_api.runspec import LoRASweepRun
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_trainer.reporting.sweep_rows import base_loss, loss_of, ranked

_SHOWN: Final = 10


def trial_line(row: TrialStatus, best: TrialStatus | None) -> str:
    """Return the line of a trial that has ended: what it came to, how long it took, its values, the best so far."""
    if row.state == TrialState.COMPLETE:
        came_to = f"loss {row.value}" + ("" if row.adapter else f", not published: {row.reason}")
    else:
        came_to = ", ".join(filter(None, (row.state, row.reason)))
    seconds = "" if row.run_seconds is None else f", {row.run_seconds} s"
    so_far = "" if best is None else f"; best so far {best.value}, trial {best.number}"
    if best is not None and best.number == row.number:
        so_far = "; the best so far"
    values = ", ".join(f"{path} {value}" for path, value in row.parameters.items())
    why = f" ({row.why})" if row.why and not row.adapter else ""
    return f"Trial {row.number:03d}  {came_to}{seconds}{so_far}; {row.origin}: {values}{why}"


def sweep_table(sweep: LoRASweepRun) -> str:
    """Return the best trials as a table, and how many there are of which state."""
    best = ranked(sweep)
    paths = [each.path for each in sweep.space]
    head = ("trial", "loss", "seconds", "from", *_short(paths))
    rows = [
        (
            f"{row.number:03d}",
            row.value or "",
            "" if row.run_seconds is None else str(row.run_seconds),
            row.origin or "",
            *(row.parameters.get(path, "") for path in paths),
        )
        for row in best[:_SHOWN]
    ]
    return "\n".join([*_aligned([head, *rows]), _summary(sweep, best[0])])


def _short(paths: Sequence[str]) -> list[str]:
    """Return the last word of each path, or all of it where two have the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return [word if last.count(word) == 1 else path for path, word in zip(paths, last, strict=True)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _summary(sweep: LoRASweepRun, best: TrialStatus) -> str:
    counts = Counter(row.state for row in sweep.trials)
    states = ", ".join(f"{counts[state]} {state.value.lower()}" for state in TrialState if counts[state])
    before, loss = base_loss(sweep), loss_of(best)
    compared = ""
    if before and loss is not None:
        compared = f", {number_text(before)} before training ({change_text((loss - before) / abs(before))})"
    return f"{len(sweep.trials)} trials: {states}. The best is trial {best.number}: loss {best.value}{compared}"
