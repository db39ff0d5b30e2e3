"""The loss on the held-out rows: the mean over all tokens that count, without dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import torch
from torch.nn.functional import cross_entropy

from tunery_trainer.collator import IGNORED, Collator

_LOGIT_BUDGET: Final = 2**26
"""Logits that one forward pass may make: 256 MiB in float32."""
_CHUNK: Final = 512
"""Positions whose logits are taken to float32 at a time."""


class Rows(Protocol):
    """Held-out rows, each with `input_ids` and `labels`, and `seq_lengths` if packed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def held_out_loss(model: torch.nn.Module, rows: Rows, pad_token_id: int) -> float:
    """Return the mean negative log-likelihood, in nats, of the labelled tokens of `rows` under a causal `model`.

    `model` is a plain transformers model or a PeftModel; its train/eval mode is restored. Anyone can repeat the
    number with the published adapter and plain PEFT. NaN where no token has a label.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for batch in _batches(rows, _vocabulary(model), Collator(pad_token_id)):
                loss, tokens = _summed_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
                total += loss
                count += tokens
    finally:
        model.train(was_training)
    return total / count if count else math.nan


def _summed_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Return the summed loss and the number of labelled tokens of one batch."""
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    # Prompt tuning puts its virtual tokens before the text, and their logits with them.
    logits = logits[:, logits.shape[1] - labels.shape[1] :][:, :-1]
    targets = labels[:, 1:]
    counted = targets != IGNORED
    picked, targets = logits[counted], targets[counted]
    loss = sum(
        cross_entropy(picked[start : start + _CHUNK].float(), targets[start : start + _CHUNK], reduction="sum").item()
        for start in range(0, len(targets), _CHUNK)
    )
    return float(loss), len(targets)


def _batches(rows: Rows, vocabulary: int, collate: Collator) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of rows of similar length, as many as the budget of logits allows."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    chosen: list[int] = []
    for index in order:
        length = len(rows[index]["input_ids"])
        if chosen and (len(chosen) + 1) * length * vocabulary > _LOGIT_BUDGET:
            yield collate([rows[index] for index in chosen])
            chosen = []
        chosen.append(index)
    if chosen:
        yield collate([rows[index] for index in chosen])


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
