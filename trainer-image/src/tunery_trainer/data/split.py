"""Which rows are held out for evaluation: the same for the same seed, and no row on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_trainer.errors import TrainerError

MAX_EVALUATION_ROWS: Final = 1000


def held_out(digests: Sequence[bytes], fraction: float, seed: int, kinds: Sequence[frozenset[bool]] = ()) -> list[bool]:
    """True for each row that goes to evaluation: `fraction` of all, at least 1, at most 1,000; of 0 none.

    `kinds` are the labels of each row of KTO's: training keeps a row of each, and one more is drawn of a label that the
    drawn rows lack, where there are two.

    Equal rows (by digest) stay together. Rows are drawn by a hash of seed and content, so that adding rows or
    changing their order moves few others.

    Raises:
        TrainerError: DatasetInvalid when there are fewer than two different rows.
    """
    if fraction == 0:
        return [False] * len(digests)
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
    return [digest in chosen for digest in digests] if not kinds else _of_both(digests, drawn, chosen, kinds)


def kinds_of(labels: Sequence[Sequence[bool | None]]) -> list[frozenset[bool]]:
    """Return the labels of each row's answers; empty where the task has none."""
    found = [frozenset(label for label in row if label is not None) for row in labels]
    return found if any(found) else []


def _of_both(
    digests: Sequence[bytes], drawn: Sequence[bytes], chosen: set[bytes], kinds: Sequence[frozenset[bool]]
) -> list[bool]:
    of: dict[bytes, frozenset[bool]] = {}
    for digest, labels in zip(digests, kinds, strict=True):
        of[digest] = of.get(digest, frozenset()) | labels
    for label in (True, False):
        having = [digest for digest in drawn if label in of[digest]]
        if having and chosen.issuperset(having):
            chosen.remove(having[-1])  # training keeps one
    for label in (True, False):
        others = [digest for digest in drawn if digest not in chosen and label in of[digest]]
        if len(others) > 1 and not any(label in of[digest] for digest in chosen):
            chosen.add(others[0])
    return [digest in chosen for digest in digests]


def _draw(digest: bytes, seed: int) -> bytes:
    return hashlib.blake2b(digest, digest_size=16, key=str(seed).encode()).digest()
