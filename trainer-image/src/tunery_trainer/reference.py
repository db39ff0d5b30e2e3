"""Rows as a task trains on them, with what the model said of their answers before training: DPO's and KTO's reference.

Scored once, row by row, before the adapter is put on the base: PiSSA and OLoRA change the base, so that switching their
adapter off gives another model; and one forward pass is saved in each step. It stands in every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tunery_api.preference import TrainingTask
from tunery_trainer.answers import partners, stranger
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.evaluation import Pass, measure, score
from tunery_trainer.objectives import Compared, Objective
from tunery_trainer.resolved import Resolved

REFERENCE_FILE: Final = "reference.safetensors"


@dataclass(frozen=True)
class TaskRows:
    """Both sides, with the columns that the objective wants beside those of the data layer."""

    train: Dataset
    evaluation: Dataset
    others: Dataset
    """What KTO's held-out prompts get other answers from."""
    scores: dict[str, torch.Tensor] | None = None
    """The reference's, (rows, 2) for `train` and `evaluation`; None: not scored yet, or the objective has none."""

    def measure(self, model: torch.nn.Module, objective: Objective, how: Pass) -> dict[str, float]:
        """Return loss and rewards on the held-out rows."""
        return measure(model, self.evaluation, objective, how, self.others)

    def scored(self, model: torch.nn.Module, objective: Compared, how: Pass) -> TaskRows:
        """Return the rows with `model` as the reference."""
        train = score(model, self.train, objective, how)
        evaluation = score(model, self.evaluation, objective, how, self.others)
        return self.compared_with({"train": train, "evaluation": evaluation})

    def compared_with(self, scores: dict[str, torch.Tensor]) -> TaskRows:
        """Return the rows with these scores as the column `reference`."""
        train, evaluation = (
            rows.add_column("reference", scores[side].tolist())
            for side, rows in (("train", self.train), ("evaluation", self.evaluation))
        )
        return replace(self, train=train, evaluation=evaluation, scores=scores)

    def store(self, checkpoint: Path) -> None:
        """Write the scores into a checkpoint, if there are any."""
        if self.scores is not None:
            save_file({side: tensor.contiguous() for side, tensor in self.scores.items()}, checkpoint / REFERENCE_FILE)

    def stored(self, checkpoint: Path) -> dict[str, torch.Tensor] | None:
        """Return the scores that a checkpoint has of these rows."""
        if not (checkpoint / REFERENCE_FILE).exists():
            return None
        scores = load_file(checkpoint / REFERENCE_FILE)
        sizes = {side: len(tensor) for side, tensor in scores.items()}
        return scores if sizes == {"train": len(self.train), "evaluation": len(self.evaluation)} else None


def task_rows(data: PreparedData, resolved: Resolved) -> TaskRows:
    """Return the rows of `data` with what the task of the run wants beside them."""
    train, evaluation, others = data.train, data.evaluation, data.evaluation
    if resolved.task is TrainingTask.KTO:
        train = train.add_column("mismatched_with", partners(train))
        # A single row would be its own partner.
        others = evaluation if len(evaluation) > 1 else train
        chosen = partners(evaluation) if len(evaluation) > 1 else [stranger(evaluation[0], train)]
        evaluation = evaluation.add_column("mismatched_with", chosen)
    return TaskRows(train, evaluation, others)


def without_dropout(model: torch.nn.Module) -> None:
    """Switch the base model's own dropout off: what is trained is compared with what it was, without noise."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
