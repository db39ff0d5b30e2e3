"""The loss on the held-out rows: the mean over all tokens that count, without dropout."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import torch

from tunery_trainer.attention import computes_by_example
from tunery_trainer.collator import IGNORED, Collator
from tunery_trainer.device import out_of_memory
from tunery_trainer.head import autocast, head, log_probabilities

DEFAULT_TOKENS: Final = 8192
"""Tokens of a forward pass, unless one row is longer."""


class Rows(Protocol):
    """Held-out rows, each with `input_ids` and `labels`, and `seq_lengths` if packed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def held_out_loss(
    model: torch.nn.Module,
    rows: Rows,
    pad_token_id: int,
    *,
    dtype: torch.dtype = torch.float32,
    tokens: int = DEFAULT_TOKENS,
) -> float:
    """Return the mean negative log-likelihood, in nats, of the labelled tokens of `rows` under a causal `model`.

    `model` is a plain transformers model or a PeftModel; its train/eval mode is restored. `dtype` is what it computes
    in, as in training; `tokens` bounds a forward pass, which takes less memory than a training step of as many. Where
    one runs out of memory all the same, it and what follows go in halves. Anyone can repeat the number with the
    published adapter and plain PEFT. NaN where no token has a label.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), head(model), autocast(device, dtype):
            collate = Collator(pad_token_id, by_example=computes_by_example(model))
            pending = deque(_batches(rows, tokens))
            while pending:
                chosen = pending.popleft()
                batch = collate([rows[index] for index in chosen])
                lost = _loss_sum(model, batch, device, alone=len(chosen) == 1)
                if lost is None:
                    pending = deque(half for batch in (chosen, *pending) for half in _halves(batch))
                else:
                    total, count = total + lost[0], count + lost[1]
    finally:
        model.train(was_training)
    return total / count if count else math.nan


def _loss_sum(
    model: torch.nn.Module, batch: Mapping[str, Any], device: torch.device, *, alone: bool
) -> tuple[float, int] | None:
    """Return the summed loss of a batch, and its labelled tokens; None where memory ran out, and rows can be parted."""
    counted = int((batch["labels"][:, 1:] != IGNORED).sum())
    if not counted:
        return 0.0, 0
    on_device = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
    try:
        return -log_probabilities(model, on_device).double().sum().item(), counted
    except (RuntimeError, MemoryError) as error:
        if alone or not out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _halves(chosen: list[int]) -> list[list[int]]:
    middle = len(chosen) // 2
    return [half for half in (chosen[:middle], chosen[middle:]) if half]


def _batches(rows: Rows, tokens: int) -> Iterator[list[int]]:
    """Yield the indices of rows of similar length, of at most so many tokens together, padding included."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    chosen: list[int] = []
    for index in order:
        if chosen and (len(chosen) + 1) * len(rows[index]["input_ids"]) > tokens:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
