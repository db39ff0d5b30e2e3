"""The picture of the parameters of a sweep: an axis for each, a line for each trial, coloured by its loss."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib import patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tunery_api.measured import parse_finite
from tunery_api.runspec import LoRASweepRun, SearchedParameter
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_search.dimensions import plain
from tunery_trainer.reporting.curves import GRID, TEXT
from tunery_trainer.reporting.sweep_rows import loss_of, of_state, ranked, worth_seeing

_PRUNED, _INFEASIBLE = "#cccccc", "#ee6677"
_MISSING: Final = -0.1
"""Where a line passes an axis whose parameter the trial does not have."""
_NAME_WIDTH, _CHOICE_WIDTH, _MOST_LABELS = 14, 14, 16
"""Characters of a line of a name, and of a choice; choices of one axis that are named."""
_FEW: Final = 3
"""Decades; with more, labels between them would stand in each other's way."""
_AXIS_INCHES: Final = 1.3


@dataclass(frozen=True)
class _Axis:
    """One upright axis: where on it a value lies, from 0 to 1, and what is written beside it."""

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] = ()

    def place(self, text: str | None) -> float:
        if text is None:
            return _MISSING
        if self.choices:
            return (self.choices.index(text) + 0.5) / len(self.choices)
        value = parse_finite(text)
        return _MISSING if value is None else min(1.0, max(0.0, self._share(value)))

    def labels(self) -> list[tuple[float, str]]:
        if self.choices:
            every = math.ceil(len(self.choices) / _MOST_LABELS)
            return [(self.place(choice), _shortened(choice)) for choice in self.choices[::every]]
        values = _round_numbers(self.low, self.high, log=self.log)
        return [(self._share(value), plain(value)) for value in values]

    def _share(self, value: float) -> float:
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def draw_parallel(sweep: LoRASweepRun, path: Path) -> None:
    """Draw a line for each trial through its values; pruned ones are grey, infeasible ones dotted."""
    axes_of = [*(_axis(each, sweep.trials) for each in sweep.space), _loss_axis(sweep)]
    figure = Figure(figsize=(max(8.0, _AXIS_INCHES * len(axes_of) + 1.5), 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    _lines(axes, sweep, axes_of)
    for index, axis in enumerate(axes_of):
        axes.axvline(index, color=TEXT, linewidth=0.8, zorder=3)
        _write(axes, index, axis.labels())
    axes.set_xticks(range(len(axes_of)), [_in_lines(axis.name) for axis in axes_of], fontsize="small", color=TEXT)
    axes.tick_params(length=0)
    axes.set_xlim(-0.1, len(axes_of) - 1 + 0.55)
    axes.set_ylim(_MISSING - 0.05 if _any_missing(sweep) else -0.05, 1.05)
    axes.set_yticks([_MISSING] if _any_missing(sweep) else [], ["not set"] if _any_missing(sweep) else [], color=TEXT)
    axes.spines[:].set_visible(False)
    if axes_of[-1].low < axes_of[-1].high:
        figure.colorbar(_colours(sweep), ax=axes, label="held-out loss (nats per token)", pad=0.01)
    figure.legend(loc="outside upper center", frameon=False, ncols=4)
    figure.savefig(path)


def _lines(axes: Any, sweep: LoRASweepRun, axes_of: Sequence[_Axis]) -> None:
    ended = ((TrialState.INFEASIBLE, _INFEASIBLE, ":"), (TrialState.PRUNED, _PRUNED, "-"))
    for state, colour, style in ended:
        rows = of_state(sweep, state)
        for row in rows:
            label = state.value.lower() if row is rows[0] else None
            axes.plot(*_way(row, axes_of), color=colour, linestyle=style, linewidth=1, zorder=1, label=label)
    colours, best = _colours(sweep), ranked(sweep)
    for row in reversed(best[1:]):
        label = "complete, by its loss" if row is best[1] else None
        axes.plot(*_way(row, axes_of), color=colours.to_rgba(loss_of(row)), linewidth=1.3, zorder=2, label=label)
    outline = [patheffects.withStroke(linewidth=4, foreground=TEXT)]
    label = f"trial {best[0].number}, the best"
    colour = colours.to_rgba(loss_of(best[0]))
    axes.plot(*_way(best[0], axes_of), color=colour, linewidth=2.2, zorder=2.5, path_effects=outline, label=label)


def _way(row: TrialStatus, axes_of: Sequence[_Axis]) -> tuple[list[int], list[float]]:
    """Return the points that the line of a trial goes through; it ends before the loss if that was not measured."""
    places = [axis.place(row.parameters.get(axis.name)) for axis in axes_of[:-1]]
    loss = loss_of(row)
    if loss is not None:
        places.append(axes_of[-1].place(str(loss)))
    return list(range(len(places))), places


def _colours(sweep: LoRASweepRun) -> Any:
    axis = _loss_axis(sweep)
    return ScalarMappable(Normalize(axis.low, axis.high, clip=True), "viridis")


def _loss_axis(sweep: LoRASweepRun) -> _Axis:
    losses = [loss for row in ranked(sweep) if (loss := loss_of(row)) is not None]
    top = worth_seeing(sweep)
    return _Axis("held-out loss", min(losses), max((loss for loss in losses if loss <= top), default=top))


def _axis(parameter: SearchedParameter, rows: Sequence[TrialStatus]) -> _Axis:
    texts = {row.parameters[parameter.path] for row in rows if parameter.path in row.parameters}
    values = [value for text in texts if (value := parse_finite(text)) is not None]
    if parameter.choices is not None or len(values) < len(texts) or not values:
        known = parameter.choices or []
        return _Axis(parameter.path, 0, 1, choices=(*known, *sorted(texts - set(known))) or ("",))
    low, high = min(values), max(values)
    return _Axis(parameter.path, low, high, log=parameter.log and low > 0)


def _any_missing(sweep: LoRASweepRun) -> bool:
    return any(each.path not in row.parameters for each in sweep.space for row in sweep.trials)


def _round_numbers(low: float, high: float, *, log: bool) -> list[float]:
    """Return a few round numbers from one end to the other; the ends themselves where there are none."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1,) if len(decades) > _FEW else (1, 2, 5)
        numbers = [factor * 10.0**decade for decade in decades for factor in factors]
    else:
        numbers = [float(value) for value in MaxNLocator(6).tick_values(low, high)]
    inside = [value for value in numbers if low <= value <= high]
    return inside if len(inside) > 1 else sorted({float(f"{low:.3g}"), float(f"{high:.3g}")})


def _write(axes: Any, index: int, labels: Sequence[tuple[float, str]]) -> None:
    box = {"facecolor": "white", "edgecolor": GRID, "alpha": 0.8, "pad": 1, "linewidth": 0.4}
    for place, text in labels:
        axes.annotate(
            text,
            (index, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=TEXT,
            bbox=box,
            zorder=4,
        )


def _in_lines(name: str) -> str:
    """Return a name in short lines, broken at its dots and capitals."""
    lines = [""]
    for part in re.findall(r"\w[a-z0-9]*\.?|\W", name):
        if lines[-1] and len(lines[-1]) + len(part) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _shortened(choice: str) -> str:
    return choice if len(choice) <= _CHOICE_WIDTH else f"{choice[: _CHOICE_WIDTH - 1]}…"
