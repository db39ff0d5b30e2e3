"""Rows of token ids in, one padded batch out; packed rows keep their examples apart by position."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunery_trainer.data.mask import IGNORED


@dataclass(frozen=True)
class Collator:
    """Pads to the longest row of the batch.

    Each row has `input_ids` and `labels`, lists of the same length; a packed row also has `seq_lengths`, the lengths
    of its examples. Packed batches carry `position_ids` that start again at each example and no attention mask, from
    which transformers builds attention that stays inside each example. For attention by example each batch also
    carries where examples and paddings end, as transformers hands it to Flash Attention.
    """

    pad_token_id: int
    by_example: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return int64 tensors of shape (rows, longest row), and with `by_example` the ends of the examples."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Any] = {
            "input_ids": _padded([row["input_ids"] for row in rows], longest, self.pad_token_id),
            "labels": _padded([row["labels"] for row in rows], longest, IGNORED),
        }
        if self.by_example:
            batch |= _ends(rows, longest)
        if not any(row.get("seq_lengths") for row in rows):
            lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
            batch["attention_mask"] = (torch.arange(longest) < lengths).long()
            return batch
        batch["position_ids"] = torch.stack([_positions(row, longest) for row in rows])
        # The first token of an example has no predecessor in it: nothing may be learned from another example's end.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch


def _ends(rows: Sequence[Mapping[str, Any]], longest: int) -> dict[str, Any]:
    """Return `cu_seq_lens_q`, int32 (examples and paddings of all rows + 1), and the longest of them."""
    segments = [segment for row in rows for segment in _segments(row, longest) if segment]
    ends = torch.tensor([0, *itertools.accumulate(segments)], dtype=torch.int32)
    longest_segment = max(segments)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest_segment,
        "max_length_k": longest_segment,
    }


def _segments(row: Mapping[str, Any], length: int) -> list[int]:
    size = len(row["input_ids"])
    return [*(row.get("seq_lengths") or [size]), length - size]


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)


def _positions(row: Mapping[str, Any], length: int) -> torch.Tensor:
    """Count from 0 in each example and in the padding, which is a segment of its own."""
    return torch.cat([torch.arange(segment) for segment in _segments(row, length)])
