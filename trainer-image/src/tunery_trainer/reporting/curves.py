"""The picture of a run over its steps: training loss and held-out loss, what it prefers, and the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunery_api.findings import FindingStatus

FILE_NAME: Final = "training_curves.png"
TITLE: Final = "Training curves"

LINE, BEST, BASE, GRID, TEXT = "#4477aa", "#ee6677", "#888888", "#dddddd", "#333333"
_RATE: Final = "#228833"
"""Paul Tol's bright scheme: told apart in print and by people who are colour-blind."""


def draw_curves(
    history: Sequence[Mapping[str, Any]],
    base_loss: float | None,
    path: Path,
    findings: Sequence[FindingStatus] = (),
) -> None:
    """Write a PNG of `history`, the Trainer's log entries (`step` with `loss`, `eval_loss` or `learning_rate`).

    Where they have a `reward_accuracy`, it is drawn, too, and the loss is not one of tokens. `base_loss` is that on the
    held-out rows before training, drawn as a line to beat. Each of the `findings` is marked where it was found.
    """
    # Half a second that a run which fails early should not wait.
    from matplotlib.figure import Figure

    prefers = any("reward_accuracy" in entry for entry in history)
    heights = [3, 1.5, 1] if prefers else [3, 1]
    figure = Figure(figsize=(8, 6.5 if prefers else 5), dpi=150, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _losses(panels[0], history, base_loss)
    _found(panels[0], findings)
    panels[0].set_ylabel("loss" if prefers else "loss (nats per token)")
    if prefers:
        _accuracies(panels[1], history)
    _rate(panels[-1], history)
    for axes in panels:
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=TEXT)
        axes.set_ylim(bottom=None if axes is panels[0] else 0)
    figure.savefig(path)


def _losses(axes: Any, history: Sequence[Mapping[str, Any]], base_loss: float | None) -> None:
    _trained(axes, history, "loss")
    steps, evaluations = _series(history, "eval_loss")
    axes.plot(steps, evaluations, color=BEST, marker="o", markersize=4, linewidth=1.5, label="held-out")
    if base_loss is not None:
        axes.axhline(base_loss, color=BASE, linestyle="--", linewidth=1.2, label="held-out, before training")
    axes.legend(frameon=False, ncols=2)


def _found(axes: Any, findings: Sequence[FindingStatus]) -> None:
    """Mark each step at which something was found, with what that was; what was known before is of no step."""
    steps: dict[int, list[str]] = {}
    for each in (finding for finding in findings if finding.step):
        steps.setdefault(each.step, []).append(each.type)
    for step, types in steps.items():
        axes.axvline(step, color=TEXT, linestyle=":", linewidth=1)
        axes.annotate(
            ", ".join(types),
            (step, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize="x-small",
            color=TEXT,
        )


def _accuracies(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    _trained(axes, history, "reward_accuracy")
    steps, evaluations = _series(history, "eval_reward_accuracy")
    axes.plot(steps, evaluations, color=BEST, marker="o", markersize=4, linewidth=1.5)
    axes.set_ylabel("reward accuracy")
    axes.set_ylim(top=1.02)


def _rate(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(*_series(history, "learning_rate"), color=_RATE, linewidth=1.8)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _trained(axes: Any, history: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draw what training has logged; smoothed, too, where it is much."""
    steps, values = _series(history, name)
    axes.plot(steps, values, color=LINE, alpha=0.35 if len(values) > 20 else 1.0, linewidth=1.2, label="training")
    if len(values) > 20:
        axes.plot(steps, _smoothed(values), color=LINE, linewidth=2, label="training, smoothed")


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
