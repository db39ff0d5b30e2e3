"""The picture of a run: training loss, held-out loss and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

FILE_NAME: Final = "training_curves.png"
TITLE: Final = "Training curves"

_LOSS, _EVAL, _BASE, _RATE, _GRID, _TEXT = "#4477aa", "#ee6677", "#888888", "#228833", "#dddddd", "#333333"
"""Paul Tol's bright scheme: told apart in print and by people who are colour-blind."""


def draw_curves(history: Sequence[Mapping[str, Any]], base_loss: float | None, path: Path) -> None:
    """Write a PNG of `history`, the Trainer's log entries (`step` with `loss`, `eval_loss` or `learning_rate`).

    `base_loss` is the base model's held-out loss, drawn as a line to beat.
    """
    # Half a second that a run which fails early should not wait.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps, losses = _series(history, "loss")
    upper.plot(steps, losses, color=_LOSS, alpha=0.35 if len(losses) > 20 else 1.0, linewidth=1.2, label="training")
    if len(losses) > 20:
        upper.plot(steps, _smoothed(losses), color=_LOSS, linewidth=2, label="training, smoothed")
    steps, evaluations = _series(history, "eval_loss")
    upper.plot(steps, evaluations, color=_EVAL, marker="o", markersize=4, linewidth=1.5, label="held-out")
    if base_loss is not None:
        upper.axhline(base_loss, color=_BASE, linestyle="--", linewidth=1.2, label="held-out, base model")
    upper.set_ylabel("loss (nats per token)")
    upper.legend(frameon=False, ncols=2)
    lower.plot(*_series(history, "learning_rate"), color=_RATE, linewidth=1.8)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimizer step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (upper, lower):
        axes.grid(color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_TEXT)
        axes.set_ylim(bottom=0 if axes is lower else None)
    figure.savefig(path)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(int(entry["step"]), float(entry[name])) for entry in history if name in entry]
    return [step for step, _ in points], [value for _, value in points]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over a twentieth of the run, without the bias towards its start."""
    keep = 1 - 1 / max(2, len(values) / 20)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result
