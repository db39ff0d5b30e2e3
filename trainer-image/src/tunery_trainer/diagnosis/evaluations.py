"""How the held-out rows did from before training to now: each evaluation beside the first and beside the best for sure.

All of it lies in every checkpoint: a resumed run compares with what a straight one compares with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tunery_trainer.diagnosis.history import Evaluation
from tunery_trainer.diagnosis.paired import Difference, RowLosses, paired

EVALUATIONS_FILE: Final = "evaluations.json"
BETTER_Z: Final = -2.0
"""From here on an evaluation is the new mark. The lowest loss of many is low by chance, too, and the more of them there
are the later it was."""


class Evaluations:
    """The evaluations of a run, in order; of the first one and of the mark it keeps what each row adds."""

    def __init__(self, before: RowLosses) -> None:
        """`before` has the losses of the rows before training."""
        self.before = before
        self.said: list[str] | None = None
        """What the model said before training to the rows that are answered; None where it was not asked."""
        self.done: list[Evaluation] = []
        self.mark = before
        """The newest evaluation that was better for sure than all marks before it."""
        self.mark_step = 0
        """Its optimizer step; 0: it is the one before training."""

    def add(self, step: int, rows: RowLosses) -> None:
        """Take what the rows add after `step`; where that step was evaluated before, it is as it was."""
        if self.at(step) is not None:
            return
        mark = paired(rows, self.mark)
        self.done.append(Evaluation(step, rows.loss, paired(rows, self.before), mark, self.mark_step))
        if mark is not None and mark.z < BETTER_Z:
            self.mark, self.mark_step = rows, step

    def at(self, step: int) -> Evaluation | None:
        """Return the evaluation after `step`; None where there was none."""
        return next((each for each in self.done if each.step == step), None)

    def store(self, checkpoint: Path) -> None:
        """Write them into a checkpoint, every number as it is."""
        stored = {
            "before": dataclasses.asdict(self.before),
            "said": self.said,
            "done": [dataclasses.asdict(each) for each in self.done],
            # As many tokens count in it as in the one before training.
            "mark": {"step": self.mark_step, "sums": self.mark.sums},
        }
        (checkpoint / EVALUATIONS_FILE).write_text(json.dumps(stored), "utf-8")


def evaluations_in(checkpoint: Path) -> Evaluations:
    """Return the evaluations that a checkpoint has."""
    stored = json.loads((checkpoint / EVALUATIONS_FILE).read_text("utf-8"))
    before, mark = stored["before"], stored["mark"]
    found = Evaluations(RowLosses(tuple(before["sums"]), tuple(before["counts"])))
    found.said = stored["said"]
    found.done = [
        Evaluation(each["step"], each["loss"], _difference(each["base"]), _difference(each["mark"]), each["mark_step"])
        for each in stored["done"]
    ]
    found.mark, found.mark_step = RowLosses(tuple(mark["sums"]), found.before.counts), mark["step"]
    return found


def _difference(stored: Mapping[str, float] | None) -> Difference | None:
    return Difference(**stored) if stored else None
