"""Rows as a task trains on them, with what the model said of their answers before training: DPO's and KTO's reference.

Each row is scored once. A training row by the optimizer step that comes to it first, for which the model is made what
it was before training; PiSSA and OLoRA change the base for good, so there it is before training. What is known stands
in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tunery_api.methods import TrainingTask
from tunery_common.errors import first_line
from tunery_trainer.adapter.methods.lora_init import FIRST_A, lora_layers
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.losses.answers import partners, stranger
from tunery_trainer.losses.evaluation import Measured, Pass, measure, scored
from tunery_trainer.losses.objectives import Batch, Compared, Objective
from tunery_trainer.process.device import MAX_CAUSE, out_of_memory
from tunery_trainer.reporting.progress import say
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.training.weights import put_state

REFERENCE_FILE: Final = "reference.safetensors"
_START: Final = "start."
"""Before the names of the adapter's parameters in that file."""


@dataclass(frozen=True)
class Scoring:
    """How rows are scored."""

    objective: Compared
    how: Pass
    told: Callable[[int, int], None] = lambda done, rows: None
    """Hears how many of how many rows are scored."""


@dataclass(frozen=True)
class TaskRows:
    """Both sides, with the columns that the objective wants beside those of the data layer."""

    train: Dataset
    evaluation: Dataset
    others: Dataset
    """What KTO's held-out prompts get other answers from."""
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    """The reference's, (rows, 2) for `train` and `evaluation`, filled in place: NaN where a row was not scored yet.
    Empty where the objective has none."""
    start: dict[str, torch.Tensor] | None = None
    """The adapter of continueFrom before training, by parameter; None: the reference is the base."""

    def measure(self, model: torch.nn.Module, objective: Objective, how: Pass) -> Measured:
        """Return loss and rewards on the held-out rows."""
        return measure(model, self.evaluation, objective, how, self.others)

    def missing(self, side: str, among: Iterable[int] | None = None) -> list[int]:
        """Return the numbers of the rows of `train` or `evaluation` that are not scored yet, of all or of these."""
        scores = self.scores[side]
        numbers = torch.tensor(list(range(len(scores)) if among is None else among), dtype=torch.long)
        found: list[int] = numbers[scores[numbers, 0].isnan()].tolist()
        return found

    def scored(self, model: torch.nn.Module, scoring: Scoring, ahead: Iterable[int] = ()) -> TaskRows:
        """Return the rows with the reference of the held-out ones; `model` is as before training.

        Of the training rows those of `ahead` are scored, too.
        """
        wanted = {"evaluation": self.missing("evaluation"), "train": self.missing("train", ahead)}
        total, done = sum(map(len, wanted.values())), 0
        if total:
            scoring.told(0, total)
            say(f"Reference  scoring {total} rows before training")
        for side, numbers in wanted.items():
            for count in self._score(side, numbers, model, scoring):
                scoring.told(done := done + count, total)
        return replace(self, evaluation=self.evaluation.add_column("reference", self.scores["evaluation"].tolist()))

    def compared(self, batches: list[Batch], model: PeftModel, scoring: Scoring) -> list[Batch]:
        """Return the batches of an optimizer step with `reference`; rows that were not scored yet are scored first.

        Raises ValueError where that cannot be done any more; see as_before.
        """
        mine = self.missing("train", torch.cat([batch["row"] for batch in batches]).tolist())
        # Dealt out anew: another process may have none left.
        numbers = sorted({number for part in scoring.how.team.gather(mine) for number in part})
        if numbers:
            with as_before(model, self.start):
                for _ in self._score("train", numbers, model, scoring):
                    pass
        return [{**batch, "reference": self._of(batch["row"])} for batch in batches]

    def _score(self, side: str, numbers: list[int], model: torch.nn.Module, scoring: Scoring) -> Iterator[int]:
        """Score these rows, each process its share, and yield of how many it was as they become known.

        Raises MemoryError in every process where memory ran out in one of them.
        """
        if not numbers:
            return
        rows, source = (self.train, self.train) if side == "train" else (self.evaluation, self.others)
        team, own, cause = scoring.how.team, [], ""
        try:
            for chosen, scores in scored(model, rows.select(numbers), scoring.objective, scoring.how, source):
                own.append(([numbers[place] for place in chosen], scores))
                yield len(chosen) * team.world
        except (RuntimeError, MemoryError) as error:
            if team.alone or team.sharded or not out_of_memory(error):
                raise
            cause = first_line(error, MAX_CAUSE)  # the others wait for what this one has
        parts = team.gather((own, cause))
        if causes := [each for _, each in parts if each]:
            raise MemoryError(causes[0])
        for places, scores in chain(*(each for each, _ in parts)):
            self.scores[side][places] = scores

    def _of(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.scores["train"][numbers.cpu()].T.flatten().to(numbers.device)

    def store(self, checkpoint: Path) -> None:
        """Write into a checkpoint what the reference is, as far as it is known; nothing if there is none."""
        if self.scores:
            start = {f"{_START}{name}": tensor for name, tensor in (self.start or {}).items()}
            save_file({**self.scores, **start}, checkpoint / REFERENCE_FILE)

    def known(self, checkpoint: Path) -> TaskRows:
        """Return the rows with what a checkpoint knows of their reference."""
        if not self.scores or not (checkpoint / REFERENCE_FILE).exists():
            return self
        stored = load_file(checkpoint / REFERENCE_FILE)
        start = {name.removeprefix(_START): stored.pop(name) for name in list(stored) if name.startswith(_START)}
        same = {side: len(tensor) for side, tensor in stored.items()} == {s: len(t) for s, t in self.scores.items()}
        return replace(self, scores=stored if same else self.scores, start=start or None)


@contextmanager
def as_before(model: PeftModel, start: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Let `model` be for a while what it was before training: the base, or the base with its adapter at `start`.

    Raises ValueError where the adapter has changed the base.
    """
    if any(hasattr(layer, FIRST_A) for _, layer in lora_layers(model)):
        raise ValueError("with PiSSA and OLoRA there is no base behind the adapter")
    if start is None:
        with model.disable_adapter():
            yield
        return
    parameters = dict(model.named_parameters())
    now = {name: parameters[name].data for name in start}
    put_state(model, start)
    try:
        yield
    finally:
        for name, data in now.items():
            parameters[name].data = data


def task_rows(data: PreparedData, resolved: RunSettings) -> TaskRows:
    """Return the rows of `data` with what the task of the run wants beside them."""
    train, evaluation, others = data.train, data.evaluation, data.evaluation
    if resolved.task is TrainingTask.KTO:
        train = train.add_column("mismatched_with", partners(train))
        # A single row would be its own partner.
        others = evaluation if len(evaluation) > 1 else train
        chosen = partners(evaluation) if len(evaluation) > 1 else [stranger(evaluation[0], train)]
        evaluation = evaluation.add_column("mismatched_with", chosen)
    if resolved.task not in (TrainingTask.DPO, TrainingTask.KTO):
        return TaskRows(train, evaluation, others)
    sizes = {"train": len(train), "evaluation": len(evaluation)}
    scores = {side: torch.full((size, 2), torch.nan) for side, size in sizes.items()}
    return TaskRows(train.add_column("row", list(range(len(train)))), evaluation, others, scores)


def without_dropout(model: torch.nn.Module) -> None:
    """Switch the base model's own dropout off: what is trained is compared with what it was, without noise."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
