"""Pictures of a sweep: how it came to its best trial, and what matters; sweep_parallel.py draws the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tunery_api.measured import parse_finite
from tunery_api.runspec import LoRASweepRun
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_trainer.reporting.curves import BASE, BEST, GRID, LINE, TEXT
from tunery_trainer.reporting.sweep_parallel import draw_parallel
from tunery_trainer.reporting.sweep_rows import (
    base_loss,
    curve_of,
    loss_of,
    of_state,
    ranked,
    worth_seeing,
)

IMPORTANCE_FROM: Final = 20
"""Complete trials; of fewer, a parameter without any effect was seen to get a fourth."""
_PRUNED: Final = "#bbbbbb"
_UNMEASURED: Final = (
    ((TrialState.INFEASIBLE,), "x", "infeasible"),
    ((TrialState.FAILED, TrialState.DELETED), "+", "failed"),
)
_MANY: Final = 40
"""Lines of which one hides the next."""
_LABEL: Final = "held-out loss (nats per token)"


def draw_sweep(sweep: LoRASweepRun, folder: Path) -> dict[str, str]:
    """Write the pictures of a sweep as PNGs into a folder, and return their names by title."""
    drawn: dict[str, tuple[str, Callable[[LoRASweepRun, Path], None]]] = {
        "Trials": ("sweep-history.png", draw_history),
        "Parameters of the trials": ("sweep-parallel.png", draw_parallel),
        "Which parameters matter": ("sweep-importance.png", draw_importance),
        "Loss of the trials": ("sweep-curves.png", draw_trial_curves),
    }
    if not sweep.space:
        del drawn["Parameters of the trials"]
    if not sweep.importance or len(ranked(sweep)) < IMPORTANCE_FROM:
        del drawn["Which parameters matter"]
    for name, draw in drawn.values():
        draw(sweep, folder / name)
    return {title: name for title, (name, _) in drawn.items()}


def draw_history(sweep: LoRASweepRun, path: Path) -> None:
    """Draw the loss of each trial by its number, and the best so far."""
    figure, axes = _frame((8, 4.5))
    _losses_up_to(axes, sweep)
    complete = sorted(ranked(sweep), key=lambda row: row.number)
    _points(axes, of_state(sweep, TrialState.PRUNED), {"color": _PRUNED, "label": "pruned"})
    _points(axes, complete, {"color": LINE, "label": "complete"})
    last = max(row.number for row in sweep.trials)
    steps, losses = _best_so_far(complete)
    axes.step([*steps, last], [*losses, losses[-1]], where="post", color=BEST, linewidth=1.5, label="best so far")
    best = ranked(sweep)[0]
    axes.plot(best.number, loss_of(best), "*", color=BEST, markersize=14, label=f"trial {best.number}, the best")
    _base_line(axes, sweep)
    for states, marker, label in _UNMEASURED:
        numbers = [row.number for row in of_state(sweep, *states) if loss_of(row) is None]
        _at_the_edge(axes, numbers, {"marker": marker, "color": TEXT, "label": label})
    axes.set_xlim(-0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial")
    _finish(figure, axes, path)


def draw_trial_curves(sweep: LoRASweepRun, path: Path) -> None:
    """Draw the held-out losses of all trials over the share of their steps."""
    figure, axes = _frame((8, 4.5))
    _losses_up_to(axes, sweep)
    best = ranked(sweep)
    _curves(axes, of_state(sweep, TrialState.PRUNED), {"color": _PRUNED, "label": "pruned"})
    _curves(axes, best[1:], {"color": LINE, "alpha": 0.6 if len(best) < _MANY else 0.3, "label": "complete"})
    _curves(axes, best[:1], {"color": BEST, "linewidth": 2.5, "label": f"trial {best[0].number}, the best"})
    _base_line(axes, sweep)
    for rung in sweep.rungs:
        axes.axvline(rung, color=TEXT, linestyle=":", linewidth=1)
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(_percent(rung), (rung, 1), xytext=(0, 3), ha="center", color=TEXT, **where)
    axes.set_xlim(0, 1.01)
    axes.xaxis.set_major_formatter(lambda share, _: _percent(share))
    axes.set_xlabel("share of the steps")
    _finish(figure, axes, path)


def draw_importance(sweep: LoRASweepRun, path: Path) -> None:
    """Draw how much each parameter matters, the one that matters most on top."""
    shares = sorted((parse_finite(each.share) or 0.0, each.path) for each in sweep.importance)
    figure, axes = _frame((8, 1.4 + 0.35 * len(shares)))
    bars = axes.barh([name for _, name in shares], [share for share, _ in shares], color=LINE, height=0.6)
    axes.bar_label(bars, [_percent(share) for share, _ in shares], padding=4, color=TEXT)
    axes.set_xlim(0, max(share for share, _ in shares) * 1.12 or 1)
    axes.xaxis.set_major_formatter(lambda share, _: _percent(share))
    axes.set_xlabel(f"share of what they change of the loss\n(PED-ANOVA, {len(ranked(sweep))} complete trials)")
    axes.grid(visible=False, axis="y")
    figure.savefig(path)


def _frame(size: tuple[float, float]) -> tuple[Any, Any]:
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT)
    return figure, axes


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.set_ylabel(_LABEL)
    figure.legend(loc="outside upper center", frameon=False, ncols=4)
    figure.savefig(path)


def _losses_up_to(axes: Any, sweep: LoRASweepRun) -> None:
    """Let the axis go from a little below the lowest loss to what is worth seeing."""
    top = worth_seeing(sweep)
    low = min(loss for row in sweep.trials if (loss := loss_of(row)) is not None)
    axes.set_ylim(low - 0.05 * (top - low), top)


def _points(axes: Any, rows: Sequence[TrialStatus], style: dict[str, Any]) -> None:
    """Draw trials as points, a loss that is off the scale at the edge."""
    top = axes.get_ylim()[1]
    measured = [(row.number, loss) for row in rows if (loss := loss_of(row)) is not None]
    inside = [(number, loss) for number, loss in measured if loss <= top]
    if inside:  # an empty series would have its place in the legend
        axes.plot([number for number, _ in inside], [loss for _, loss in inside], "o", markersize=5, **style)
    above = [number for number, loss in measured if loss > top]
    _at_the_edge(axes, above, {"marker": "^", "color": style["color"], "label": f"{style['label']}, off the scale"})


def _at_the_edge(axes: Any, numbers: Sequence[int], style: dict[str, Any]) -> None:
    if numbers:
        where = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": ""}
        axes.plot(numbers, [1.0] * len(numbers), markersize=6, **where, **style)


def _curves(axes: Any, rows: Sequence[TrialStatus], style: dict[str, Any]) -> None:
    label = style.pop("label")
    for row in rows:
        curve = curve_of(row)
        axes.plot([share for share, _ in curve], [loss for _, loss in curve], **({"linewidth": 1} | style), label=label)
        label = None  # one entry of the legend for all of them


def _best_so_far(rows: Sequence[TrialStatus]) -> tuple[list[int], list[float]]:
    numbers: list[int] = []
    best: list[float] = []
    for row in rows:
        loss = loss_of(row)
        if loss is not None:
            numbers.append(row.number)
            best.append(min([loss, *best[-1:]]))
    return numbers, best


def _base_line(axes: Any, sweep: LoRASweepRun) -> None:
    base = base_loss(sweep)
    if base is not None:
        axes.axhline(base, color=BASE, linestyle="--", linewidth=1.2, label="before training")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
