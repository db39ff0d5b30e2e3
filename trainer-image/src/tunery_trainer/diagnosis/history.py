"""What a run has logged so far, as its diagnosis reads it; a resumed run has the same history as one in one piece."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tunery_trainer.diagnosis.paired import Difference

SOFTENED: Final = 0.1
"""Share of the base's loss that the logarithm of a training loss is softened by. With a plain logarithm 14 of 24 bad
batches were found as spikes, and 3 that were none: near zero it blows noise up. With it 23 of 24, and none (e19)."""
UNCHANGED: Final = "adapter_unchanged"
"""What the log of training says beside what the Trainer says, while it is so."""
_KEYS: Final = ("base_difference", "base_error", "mark_difference", "mark_error", "mark_step")
_RATIO_KEYS: Final = ("base_ratio_error", "mark_ratio_error")
"""Left out where there is none."""


@dataclass(frozen=True)
class Point:
    """One entry of the log of training."""

    step: int
    loss: float
    gradient: float | None
    """Norm before clipping."""
    rate: float
    unchanged: bool = False
    """Whether the adapter is still what it was as this attempt began."""


@dataclass(frozen=True)
class Evaluation:
    """One measurement of the held-out rows."""

    step: int
    loss: float
    base: Difference | None = None
    """Against the loss before training; None: too few rows."""
    mark: Difference | None = None
    """Against the newest evaluation that was better for sure than all marks before it."""
    mark_step: int = 0
    """The optimizer step of that; 0: before training."""

    def to_log(self) -> dict[str, float | int]:
        """Return what the log remembers beside step and loss."""
        if self.base is None or self.mark is None:
            return {}
        values = (self.base.value, self.base.error, self.mark.value, self.mark.error, self.mark_step)
        ratios = zip(_RATIO_KEYS, (self.base.ratio_error, self.mark.ratio_error), strict=True)
        return dict(zip(_KEYS, values, strict=True)) | {name: error for name, error in ratios if error is not None}


@dataclass
class History:
    """The log of a run, in order."""

    base: float
    """The held-out loss before training."""
    steps: int
    """Optimizer steps in all."""
    points: list[Point] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    spent: list[float] = field(default_factory=lambda: [0.0])
    """Sum of the rates up to each point, beginning with none."""

    def take(self, entry: Mapping[str, Any]) -> Point | Evaluation | None:
        """Take over an entry of the Trainer's log, and return what it was: a point, an evaluation or neither."""
        step = int(entry.get("step", 0))
        if "eval_loss" in entry:
            evaluation = _evaluation(step, entry)
            self.evaluations.append(evaluation)
            return evaluation
        if "loss" not in entry:
            return None
        gradient = entry.get("grad_norm")
        rate = float(entry.get("learning_rate") or 0.0)
        norm = None if gradient is None else float(gradient)
        point = Point(step, float(entry["loss"]), norm, rate, bool(entry.get(UNCHANGED)))
        before = self.points[-1].step if self.points else 0
        self.points.append(point)
        self.spent.append(self.spent[-1] + rate * (step - before))
        return point

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        step = max(self.points[-1].step if self.points else 0, self.evaluations[-1].step if self.evaluations else 0)
        return step / max(1, self.steps)

    def softened(self, loss: float) -> float:
        """Return the logarithm of a training loss, softened near zero."""
        return math.log(max(loss, 0.0) + SOFTENED * max(self.base, 1e-3))

    def spent_at(self, step: int) -> float:
        """Return the sum of the rates up to a step."""
        at = 0.0
        for point, spent in zip(self.points, self.spent[1:], strict=True):
            if point.step > step:
                break
            at = spent
        return at


def _evaluation(step: int, entry: Mapping[str, Any]) -> Evaluation:
    loss = float(entry["eval_loss"])
    if not all(name in entry for name in _KEYS):
        return Evaluation(step, loss)
    base, base_error, mark, mark_error, mark_step = (float(entry[name]) for name in _KEYS)
    of_base, of_mark = (entry.get(name) for name in _RATIO_KEYS)
    against = Difference(base, base_error, of_base), Difference(mark, mark_error, of_mark)
    return Evaluation(step, loss, *against, int(mark_step))
