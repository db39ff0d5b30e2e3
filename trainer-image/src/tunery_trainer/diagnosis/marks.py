"""What evaluations are compared with: the base, and the newest one that was better for sure; kept in checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_trainer.diagnosis.history import Evaluation
from tunery_trainer.diagnosis.paired import RowLosses, paired

FILE_NAME: Final = "mark.json"
BETTER_Z: Final = -2.0
"""From here on an evaluation is the new mark. The lowest loss of many is low by chance, too, and the more of them there
are the later it was."""


@dataclass
class Marks:
    """The losses, row by row, of the base and of the mark."""

    base: RowLosses
    mark: RowLosses
    step: int = 0
    """The optimizer step of the mark; 0: it is the base."""

    def measured(self, step: int, now: RowLosses) -> Evaluation:
        """Compare an evaluation with both, then make it the mark where it is better for sure."""
        found = Evaluation(step, now.loss, paired(now, self.base), paired(now, self.mark), self.step)
        if found.mark is not None and found.mark.z < BETTER_Z:
            self.mark, self.step = now, step
        return found

    def store(self, checkpoint: Path) -> None:
        """Put the mark into a checkpoint; the base is known there."""
        (checkpoint / FILE_NAME).write_text(json.dumps({"step": self.step, "sums": self.mark.sums}), "utf-8")


def marks_of(base: RowLosses, checkpoint: Path | None) -> Marks:
    """Return the marks of a run that begins with `base`, or goes on from a checkpoint of such a run."""
    path = checkpoint / FILE_NAME if checkpoint else None
    if path is None or not path.exists():
        return Marks(base, base)
    kept = json.loads(path.read_text("utf-8"))
    return Marks(base, RowLosses(tuple(kept["sums"]), base.counts), int(kept["step"]))
