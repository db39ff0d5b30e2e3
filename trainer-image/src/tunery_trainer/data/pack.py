"""Best-fit-decreasing packing: whole rows into sequences of at most maxLength tokens, nothing cut, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indexes of the rows of each sequence.

    The longest row first, each into the fullest sequence that still takes it (Ding et al. 2024, "Fewer Truncations
    Improve Language Modeling"). Over the whole set, and the same for the same lengths.

    Raises:
        ValueError: when a length is not within 1 to `capacity`.
    """
    if len(lengths) and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"lengths must lie within 1 to {capacity}")
    sequences: list[list[int]] = []
    # Sequences by the space they have left; bit n of `spaces` says that there is one with n left, so that the
    # smallest sufficient space is the lowest bit at or above the length.
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for row in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        length = int(lengths[row])
        space = capacity
        if fitting := spaces >> length:
            space = length + (fitting & -fitting).bit_length() - 1
            target = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            target = len(sequences)
            sequences.append([])
        sequences[target].append(row)
        if left := space - length:
            by_space[left].append(target)
            spaces |= 1 << left
    return sequences
