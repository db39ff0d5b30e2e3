"""How a model does on rows: the loss that it is trained by and what it prefers, without dropout.

A pass that runs out of memory all the same is taken again in halves, and so is what follows it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeVar

import torch

from tunery_trainer.diagnosis.paired import RowLosses
from tunery_trainer.losses.answers import Rows, content, width
from tunery_trainer.losses.lm_head import autocast, head
from tunery_trainer.losses.objectives import IDLE, Batch, Collate, Compared, Objective, Sft, Tally
from tunery_trainer.model.attention import computes_by_example
from tunery_trainer.model.collator import Collator
from tunery_trainer.process.device import out_of_memory
from tunery_trainer.team.team import ALONE, Team

DEFAULT_TOKENS: Final = 8192
"""Tokens of a forward pass, unless one row is longer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """How a model does on rows."""

    metrics: dict[str, float]
    """`loss`, NaN where there is nothing to take the mean of; of a preference task also what `Tally.rewards` tells."""
    rows: RowLosses
    """What each row adds to it, in the order of the rows; copies of a row are one with it."""
    without_loss: int
    """Rows whose loss is not finite, each copy counted."""

    @property
    def loss(self) -> float:
        """The mean over all rows."""
        return self.metrics["loss"]


@dataclass(frozen=True)
class Pass:
    """How rows go through a model."""

    pad_token_id: int
    dtype: torch.dtype = torch.float32
    """What the model computes in, as in training."""
    tokens: int = DEFAULT_TOKENS
    """The most of a forward pass, which takes less memory than a training step of as many."""
    team: Team = ALONE
    """Who takes the passes together; each of them knows of all rows in the end."""


def held_out_loss(
    model: torch.nn.Module,
    rows: Rows,
    pad_token_id: int,
    *,
    dtype: torch.dtype = torch.float32,
    tokens: int = DEFAULT_TOKENS,
) -> float:
    """Return the mean negative log-likelihood, in nats, of the labelled tokens of `rows` under a causal `model`.

    Each row has `input_ids` and `labels`, and `seq_lengths` if packed. Anyone can repeat the number with the published
    adapter and plain PEFT. NaN where no token has a label.
    """
    return measure(model, rows, Sft(), Pass(pad_token_id, dtype, tokens)).loss


def measure(
    model: torch.nn.Module, rows: Rows, objective: Objective, how: Pass, source: Rows | None = None
) -> Measured:
    """Return how `model` does on `rows`, row by row.

    `model` is a plain transformers model or a PeftModel; its train/eval mode is restored. `source` are the rows that
    `mismatched_with` counts in, if not these.
    """
    tally, order, counts, losses = Tally(), [], [], []
    with head(model), evaluating(model, how.dtype):
        passes = _Passes(model, rows, objective.collator(_collator(model, how), source or rows), how)
        here = passes.settle(objective)
        for chosen, (count, outcome) in passes.each(lambda batch: (here.counts(batch), here.outcome(model, batch))):
            order += chosen
            counts.append(count)
            losses.append(outcome.losses.double())
            tally.add(outcome)
    mine = (order, torch.cat(losses).cpu(), torch.cat(counts).cpu().double()) if order else None
    parts = [part for part in how.team.gather(mine) if part]
    found = _row_losses(*_joined(parts)) if parts else _NO_ROWS
    once = found.merged([content(rows[index]) for index in range(len(rows))])
    without = sum(not math.isfinite(each) for each in found.sums)
    return Measured({"loss": once.loss, **tally.rewards(how.team)}, once, without)


_NO_ROWS: Final = RowLosses((), ())

_Losses = tuple[list[int], torch.Tensor, torch.Tensor]
"""The numbers of rows, and of each its losses and what they are the mean over, (rows, parts), float64."""


def _joined(parts: list[_Losses]) -> _Losses:
    orders, losses, counts = zip(*parts, strict=True)
    return list(chain(*orders)), torch.cat(losses), torch.cat(counts)


def _row_losses(order: list[int], losses: torch.Tensor, counts: torch.Tensor) -> RowLosses:
    """Return what the rows add, by their number; `losses` and `counts` are (rows, parts), float64, in `order`.

    Of an objective of several parts, each a mean of its own, the parts of a row are added as they are in the loss.
    """
    back = torch.tensor(order).argsort()
    losses, counts = losses[back], counts[back]
    if losses.shape[1] > 1:
        totals = counts.sum(0)
        losses, counts = (losses / totals).sum(1, keepdim=True), (counts / totals).mean(1, keepdim=True)
    return RowLosses(tuple(losses[:, 0].tolist()), tuple(counts[:, 0].tolist()))


def scored(
    model: torch.nn.Module, rows: Rows, objective: Compared, how: Pass, source: Rows | None = None
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the numbers of a batch's rows, and what `objective.scores` tells of each: (rows, 2), float32, on the CPU.

    Of the share of this process, in the same batches as `measure`, so that the model that is scored is exactly at the
    start of the objective.
    """
    with head(model), evaluating(model, how.dtype):
        passes = _Passes(model, rows, objective.collator(_collator(model, how), source or rows), how)
        for chosen, scores in passes.each(lambda batch: objective.scores(model, batch).cpu()):
            yield chosen, scores.view(2, -1).T


@contextmanager
def evaluating(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let `model` compute in `dtype`, without dropout and gradients, for the time of the body."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(_device(model), dtype):
            yield
    finally:
        model.train(was_training)


def _collator(model: torch.nn.Module, how: Pass) -> Collator:
    return Collator(how.pad_token_id, by_example=computes_by_example(model))


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


class _Passes:
    """Rows in batches of similar length, of at most so many tokens each, padding included."""

    def __init__(self, model: torch.nn.Module, rows: Rows, collate: Collate, how: Pass) -> None:
        self._model = model
        self._rows = rows
        self._collate = collate
        self._tokens = how.tokens
        self._team = how.team
        self._widths = [width(rows[index]) for index in range(len(rows))]

    def settle(self, objective: Objective) -> Objective:
        """Return the objective for an evaluation of these rows; passes are smaller from then on where they must be.

        In all processes alike, or they would cut the rows in different places.
        """
        while True:
            totals, fits = None, True
            try:
                totals = objective.totals(self._model, (self._batch(*share) for share in self._shares()))
            except (RuntimeError, MemoryError) as error:
                if self._tokens <= max(self._widths) or self._team.sharded or not out_of_memory(error):
                    raise
                fits = False
            if not self._team.any(not fits)[0]:
                return objective.at(None if totals is None else self._team.add(totals))
            _let_go(_device(self._model))
            self._tokens //= 2

    def each(self, compute: Callable[[dict[str, Any]], T]) -> Iterator[tuple[list[int], T]]:
        """Yield the numbers of a batch's rows and what `compute` makes of the batch."""
        pending = deque(self._shares())
        while pending:
            chosen, counts = pending.popleft()
            try:
                found = compute(self._batch(chosen, counts))
            except (RuntimeError, MemoryError) as error:
                if len(chosen) == 1 or self._team.sharded or not out_of_memory(error):
                    raise
            else:
                if counts:
                    yield chosen, found
                continue
            _let_go(_device(self._model))
            pending = deque(
                (half, True) for batch in (chosen, *(each for each, _ in pending)) for half in _halves(batch)
            )

    def _shares(self) -> list[tuple[list[int], bool]]:
        """Return the numbers of the rows of each batch of this process, and whether it counts.

        Where every pass is a collective, one that does not count fills up what others have more.
        """
        batches = list(self._cut())
        mine = [(batch, True) for batch in self._team.share(batches)]
        most = -(-len(batches) // self._team.world)
        return mine + [(batches[0], False)] * (most - len(mine)) if self._team.sharded else mine

    def _batch(self, chosen: list[int], counts: bool) -> dict[str, Any]:
        batch = _on(_device(self._model), self._collate([self._rows[index] for index in chosen]))
        return batch if counts else {**batch, IDLE: True}

    def _cut(self) -> Iterator[list[int]]:
        """Yield the numbers of each batch's rows."""
        chosen: list[int] = []
        for index in sorted(range(len(self._widths)), key=lambda index: self._widths[index]):
            if chosen and (len(chosen) + 1) * self._widths[index] > self._tokens:
                yield chosen
                chosen = []
            chosen.append(index)
        if chosen:
            yield chosen


def _halves(chosen: list[int]) -> list[list[int]]:
    middle = len(chosen) // 2
    return [half for half in (chosen[:middle], chosen[middle:]) if half]


def _let_go(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _on(device: torch.device, batch: Batch) -> dict[str, Any]:
    moved: dict[str, Any] = {}
    for name, part in batch.items():
        if isinstance(part, Mapping):
            moved[name] = _on(device, part)
        else:
            moved[name] = part.to(device) if isinstance(part, torch.Tensor) else part
    return moved
