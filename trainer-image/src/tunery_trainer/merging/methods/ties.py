"""TIES: trim each delta, elect a sign for each entry, average what agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tunery_api.adaptermerge import MajoritySign
from tunery_trainer.merging.deltas import Delta, Options, blocks
from tunery_trainer.merging.methods.trim import Trim

Rows = Callable[[int, int], torch.Tensor]
"""Rows `start` to `stop` of a sparse delta."""


def merge(deltas: Sequence[Delta], options: Options) -> torch.Tensor:
    """Return the TIES merge (Yadav et al. 2023) of true deltas, dense.

    Each delta is trimmed to its `density` largest entries; the sign is elected from the trimmed, unweighted
    deltas; the result is the mean of weight·delta over those that bear the elected sign.
    """
    sparse = [Trim(delta, options.density).rows for delta in deltas]
    return elect_and_merge(sparse, deltas, options.majority_sign)


def elect_and_merge(sparse: Sequence[Rows], deltas: Sequence[Delta], sign: MajoritySign) -> torch.Tensor:
    """Elect a sign for each entry and average the weighted entries that agree, block by block."""
    merged = torch.empty(deltas[0].shape)
    for start, stop in blocks(deltas[0].shape):
        parts = [rows(start, stop) for rows in sparse]
        elected = elect(parts, sign)
        total, count = torch.zeros_like(elected), torch.zeros_like(elected)
        for part, delta in zip(parts, deltas, strict=True):
            agrees = (part.sign() == elected) & (part != 0)
            total.add_(part.mul_(agrees), alpha=delta.weight)
            count.add_(agrees)
        merged[start:stop] = total.div_(count.clamp_(min=1))
    return merged


def elect(parts: Sequence[torch.Tensor], sign: MajoritySign) -> torch.Tensor:
    """Return the elected sign of each entry: -1, 0 or 1.

    Total: the sign of the sum. Frequency: the sign that more deltas bear; where both are borne by equally many,
    the sign of the sum decides (PEFT takes plus). Where nothing decides, it is 0 and nothing is merged.
    """
    total = torch.zeros_like(parts[0])
    votes = torch.zeros_like(parts[0])
    for part in parts:
        total.add_(part)
        votes.add_(part.sign())
    if sign == MajoritySign.TOTAL:
        return total.sign_()
    return torch.where(votes == 0, total.sign_(), votes.sign_())
