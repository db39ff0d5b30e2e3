"""How a model does on rows: the loss that it is trained by and what it prefers, without dropout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from tunery_trainer.answers import Rows, width
from tunery_trainer.attention import computes_by_example
from tunery_trainer.collator import Collator
from tunery_trainer.head import autocast, head
from tunery_trainer.objectives import Batch, Collate, Compared, Objective, Sft, Tally

DEFAULT_TOKENS: Final = 8192
"""Tokens of a forward pass, unless one row is longer."""


@dataclass(frozen=True)
class Pass:
    """How rows go through a model."""

    pad_token_id: int
    dtype: torch.dtype = torch.float32
    """What the model computes in, as in training."""
    tokens: int = DEFAULT_TOKENS
    """The most of a forward pass, which takes less memory than a training step of as many."""


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
    return measure(model, rows, Sft(), Pass(pad_token_id, dtype, tokens))["loss"]


def measure(
    model: torch.nn.Module, rows: Rows, objective: Objective, how: Pass, source: Rows | None = None
) -> dict[str, float]:
    """Return `loss`, and for a preference task what `Tally.rewards` tells, on `rows`.

    `model` is a plain transformers model or a PeftModel; its train/eval mode is restored. `source` are the rows that
    `mismatched_with` counts in, if not these. The loss is NaN where there is nothing to take the mean of.
    """
    tally, counts = Tally(), torch.zeros(1)
    with _evaluating(model, how):
        collate = objective.collator(_collator(model, how), source or rows)
        here = objective.at(model, (batch for _, batch in _batches(model, rows, collate, how.tokens)))
        for _, batch in _batches(model, rows, collate, how.tokens):
            counts = counts + here.counts(batch).cpu()
            tally.add(here.outcome(model, batch))
    return {"loss": tally.loss(counts), **tally.rewards()}


def score(
    model: torch.nn.Module, rows: Rows, objective: Compared, how: Pass, source: Rows | None = None
) -> torch.Tensor:
    """Return what `objective.scores` tells of each row, (rows, 2), float32, on the CPU.

    In the same batches as `measure`, so that the model that is scored is exactly at the start of the objective.
    """
    found = torch.empty(len(rows), 2)
    with _evaluating(model, how):
        collate = objective.collator(_collator(model, how), source or rows)
        for chosen, batch in _batches(model, rows, collate, how.tokens):
            found[chosen] = objective.scores(model, batch).cpu().view(2, -1).T
    return found


@contextmanager
def _evaluating(model: torch.nn.Module, how: Pass) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), head(model), autocast(_device(model), how.dtype):
            yield
    finally:
        model.train(was_training)


def _collator(model: torch.nn.Module, how: Pass) -> Collator:
    return Collator(how.pad_token_id, by_example=computes_by_example(model))


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _batches(
    model: torch.nn.Module, rows: Rows, collate: Collate, tokens: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield batches of rows of similar length, of at most so many tokens, padding included, and the rows' numbers."""
    widths = [width(rows[index]) for index in range(len(rows))]
    chosen: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: widths[index]):
        if chosen and (len(chosen) + 1) * widths[index] > tokens:
            yield chosen, _on(_device(model), collate([rows[each] for each in chosen]))
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen, _on(_device(model), collate([rows[each] for each in chosen]))


def _on(device: torch.device, batch: Batch) -> dict[str, Any]:
    moved: dict[str, Any] = {}
    for name, part in batch.items():
        if isinstance(part, Mapping):
            moved[name] = _on(device, part)
        else:
            moved[name] = part.to(device) if isinstance(part, torch.Tensor) else part
    return moved
