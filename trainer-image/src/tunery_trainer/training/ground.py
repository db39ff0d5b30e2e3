"""What training starts from, and how the held-out rows are measured on it: before, in between and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from peft import PeftModel

from tunery_api.reasons import FailureReason
from tunery_api.status import Phase
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods.lora_init import RELATIVE
from tunery_trainer.diagnosis.evaluations import Evaluations, evaluations_in
from tunery_trainer.losses.answers import sequences_per_row
from tunery_trainer.losses.evaluation import Measured, Pass
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.resuming.memo import PassSplit
from tunery_trainer.training.answering import interview
from tunery_trainer.training.assignment import Assignment
from tunery_trainer.training.no_loss import no_loss
from tunery_trainer.training.recovery import with_split
from tunery_trainer.training.reference_scores import Scoring, TaskRows, task_rows
from tunery_trainer.training.row_order import reached
from tunery_trainer.training.weights import trained_state


@dataclass(frozen=True)
class Ground:
    """What training starts from."""

    rows: TaskRows
    before: dict[str, float]
    """How the model does on the held-out rows."""
    evaluations: Evaluations
    """That, row by row, and what is measured from then on."""
    newest: dict[int, Measured] = field(default_factory=dict)
    """The newest of it in full, by its step; empty at first, also where a checkpoint brings evaluations."""

    def take(self, step: int, found: Measured) -> None:
        """Take what was measured after `step`."""
        self.evaluations.add(step, found.rows)
        self.newest.clear()
        self.newest[step] = found


def ground_of(job: Assignment, model: torch.nn.Module) -> Ground:
    """Return the rows with what `model` says of them, and how it does; what a checkpoint knows is not asked again.

    Raises TuneryError(ModelUnsupported) where the model has no loss before it is trained.
    """
    rows, objective, resumed = task_rows(job.data, job.settings), objective_of(job.settings), job.resumed
    if isinstance(objective, Compared):
        if resumed:
            rows = rows.known(resumed.folder)
        if job.plan.basis.start_from:
            rows = replace(rows, start=trained_state(model))
        rows = rows.scored(model, Scoring(objective, pass_of(job), job.observers.reporter.scored), _ahead(job))
    if resumed:
        return Ground(rows, resumed.memo.before, evaluations_in(resumed.folder))
    before = _measured(job, model, rows)
    if not math.isfinite(before.loss):
        raise no_loss(job, before)
    evaluations, asked = Evaluations(before.rows), interview(job, rows.evaluation)
    if asked:
        evaluations.said = asked.answers(model)
    return Ground(rows, before.metrics, evaluations)


def _ahead(job: Assignment) -> list[int]:
    """Return the training rows that cannot wait for the step that takes them, as the adapter changes the base."""
    if job.settings.adapter.init not in RELATIVE:
        return []
    return reached(job.data.train, job.settings.training, job.plan.steps)


def measured(job: Assignment, model: torch.nn.Module, rows: TaskRows) -> Measured:
    """Return how `model` does on the held-out rows; raises TuneryError(LossDiverged) when the loss is not a number."""
    found = _measured(job, model, rows)
    if not math.isfinite(found.loss):
        raise TuneryError(FailureReason.LOSS_DIVERGED, f"the loss on the held-out rows is {found.loss}")
    return found


def _measured(job: Assignment, model: torch.nn.Module, rows: TaskRows) -> Measured:
    job.observers.reporter.phase(Phase.EVALUATING)
    return rows.measure(model, objective_of(job.settings), pass_of(job))


def pass_of(job: Assignment, split: PassSplit | None = None) -> Pass:
    """Return how rows go through the model; with `split` fewer at once, where memory ran out."""
    training = with_split(job.settings, split).training
    return Pass(
        int(job.plan.basis.tokenizer.pad_token_id),
        dtype_of(training.precision),
        training.batch_size * training.max_length * sequences_per_row(job.settings.task),
        job.team,
    )


def held_out(job: Assignment, model: PeftModel, ground: Ground) -> Callable[[int], dict[str, float]]:
    """Return what measures the held-out rows after so many steps, and remembers and tells it."""

    reporter = job.observers.reporter

    def measure(step: int) -> dict[str, float]:
        reporter.phase(Phase.EVALUATING)
        try:
            found = ground.rows.measure(model, objective_of(job.settings), pass_of(job))
        finally:
            reporter.phase(Phase.TRAINING)  # training continues, with smaller micro-batches if memory ran out
        ground.take(step, found)
        tell(job, ground.evaluations)
        return found.metrics

    return measure


def tell(job: Assignment, evaluations: Evaluations) -> None:
    """Report every evaluation so far."""
    job.observers.reporter.evaluations({each.step: each.loss for each in evaluations.done})
