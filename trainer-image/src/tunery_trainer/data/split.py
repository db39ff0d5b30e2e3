"""Which rows are held out for evaluation: the same for the same seed, and no row on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_trainer.errors import TrainerError

MAX_EVALUATION_ROWS: Final = 1000


def held_out(digests: Sequence[bytes], fraction: float, seed: int) -> list[bool]:
    """True for each row that goes to evaluation: `fraction` of all, at least 1, at most 1,000 rows.

    Equal rows (by digest) stay together. Rows are drawn by a hash of seed and content, so that adding rows or
    changing their order moves few others.

    Raises:
        TrainerError: DatasetInvalid when there are fewer than two different rows.
    """
    counts = Counter(digests)
    if len(counts) < 2:
        raise TrainerError(
            FailureReason.DATASET_INVALID,
            f"spec.dataset: has {len(counts)} different row(s) to train on, too few to hold one out for evaluation",
            "Add rows; a set of its own, named in spec.dataset.evaluation, needs a new job.",
        )
    target = min(max(1, round(len(digests) * fraction)), MAX_EVALUATION_ROWS)
    drawn = sorted(counts, key=lambda digest: _draw(digest, seed))
    chosen: set[bytes] = set()
    taken = 0
    for digest in drawn:
        if taken + counts[digest] <= target:
            chosen.add(digest)
            taken += counts[digest]
    # Where every row is there more often than the target, the rarest one is the closest to it.
    chosen = chosen or {min(drawn, key=lambda digest: counts[digest])}
    return [digest in chosen for digest in digests]


def _draw(digest: bytes, seed: int) -> bytes:
    return hashlib.blake2b(digest, digest_size=16, key=str(seed).encode()).digest()
