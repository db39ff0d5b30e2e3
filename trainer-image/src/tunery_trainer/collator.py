"""Rows of token ids in, one padded batch out; packed rows keep their examples apart by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

IGNORED: Final = -100
"""Label of a token that the loss does not count."""


@dataclass(frozen=True)
class Collator:
    """Pads to the longest row of the batch.

    Each row has `input_ids` and `labels`, lists of the same length; a packed row also has `seq_lengths`, the lengths
    of its examples. Packed batches carry `position_ids` that start again at each example and no attention mask, from
    which transformers builds attention that stays inside each example.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return int64 tensors of shape (rows, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": _padded([row["input_ids"] for row in rows], longest, self.pad_token_id),
            "labels": _padded([row["labels"] for row in rows], longest, IGNORED),
        }
        if not any(row.get("seq_lengths") for row in rows):
            lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
            batch["attention_mask"] = (torch.arange(longest) < lengths).long()
            return batch
        batch["position_ids"] = torch.stack([_positions(row, longest) for row in rows])
        # The first token of an example has no predecessor in it: nothing may be learned from another example's end.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)


def _positions(row: Mapping[str, Any], length: int) -> torch.Tensor:
    """Count from 0 in each example and in the padding, which is a segment of its own."""
    size = len(row["input_ids"])
    segments = [*(row.get("seq_lengths") or [size]), length - size]
    return torch.cat([torch.arange(segment) for segment in segments])
