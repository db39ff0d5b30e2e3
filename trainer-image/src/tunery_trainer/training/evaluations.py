"""How the held-out rows did from before training to now, each evaluation compared with the first."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunery_trainer.diagnosis.paired import Difference, RowLosses, paired

EVALUATIONS_FILE: Final = "evaluations.json"


@dataclass(frozen=True)
class Evaluation:
    """The held-out rows after an optimizer step."""

    step: int
    loss: float
    from_start: Difference | None
    """How far it is from before training; None where the rows are too few to tell."""


class Evaluations:
    """The evaluations of a run, in order; of the first it keeps what each row adds."""

    def __init__(self, before: RowLosses | None) -> None:
        """`before` is how the rows did before training; None where a checkpoint of an older version says it no more."""
        self.before = before
        self.said: list[str] | None = None
        """What the model said before training to the rows that are answered; None where it was not asked."""
        self.done: list[Evaluation] = []

    def add(self, step: int, rows: RowLosses) -> None:
        """Take what the rows add after `step`; where that step was evaluated before, it is as it was."""
        if any(each.step == step for each in self.done):
            return
        from_start = paired(rows, self.before) if self.before else None
        self.done.append(Evaluation(step, rows.loss, from_start))

    def store(self, checkpoint: Path) -> None:
        """Write them into a checkpoint, every number as it is."""
        stored = {
            "before": dataclasses.asdict(self.before) if self.before else None,
            "said": self.said,
            "done": [dataclasses.asdict(each) for each in self.done],
        }
        (checkpoint / EVALUATIONS_FILE).write_text(json.dumps(stored), "utf-8")


def evaluations_in(checkpoint: Path) -> Evaluations:
    """Return those that a checkpoint has; none, and none before training, where an older version wrote it."""
    path = checkpoint / EVALUATIONS_FILE
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {"before": None, "done": []}
    found = Evaluations(_rows(stored["before"]))
    found.said = stored.get("said")
    found.done = [Evaluation(each["step"], each["loss"], _difference(each["from_start"])) for each in stored["done"]]
    return found


def _rows(stored: dict[str, list[float]] | None) -> RowLosses | None:
    return RowLosses(tuple(stored["sums"]), tuple(stored["counts"])) if stored else None


def _difference(stored: dict[str, Any] | None) -> Difference | None:
    return Difference(**stored) if stored else None
