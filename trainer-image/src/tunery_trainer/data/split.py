"""Which rows are held out for evaluation: the same for the same seed, and no row on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.seen_rows import Digest, SeenRows
from tunery_trainer.data.spill import Records

MAX_EVALUATION_ROWS: Final = 1000
WANTED, UNWANTED = 1, 2
"""Bits of a row's note: it has an answer that is wanted, one that is not."""


def held_out(rows: SeenRows, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Return the ordinals, ascending, of the rows that go to evaluation: `fraction` of all, at least 1, at most 1,000.

    Of 0 none. The notes of `rows` are the labels of KTO's (WANTED, UNWANTED), else 0: training keeps a row of each,
    and one more is drawn of a label that the drawn rows lack, where there are two.

    Equal rows (by digest) stay together. Rows are drawn by a hash of seed and content, so that adding rows or
    changing their order moves few others.

    Raises:
        TuneryError: DatasetInvalid when there are fewer than two different rows.
    """
    if fraction == 0:
        return np.empty(0, np.int64)
    draw = _Draw(min(max(1, round(len(rows) * fraction)), MAX_EVALUATION_ROWS))
    for groups in rows.groups():
        draw.add(groups, seed)
    if draw.different < 2:
        there = f"all {len(rows)} rows to train on are the same" if len(rows) > 1 else "has one row to train on"
        raise TuneryError(
            FailureReason.DATASET_INVALID,
            f"spec.dataset: {there}, too few to hold one out for evaluation",
            retry("Add rows"),
            recreate("Name separate rows in dataset.evaluation", "dataset.evaluation"),
        )
    return rows.ordinals(draw.chosen())


class _Drawn(NamedTuple):
    """A different row, in the order in which rows are drawn."""

    place: bytes
    digest: Digest
    rows: int
    """Equal ones, itself included."""
    labels: int
    """WANTED, UNWANTED, both or none."""


class _Smallest:
    """Of all that were offered, the first `size` in the order of the draw."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[_Drawn] = []
        self._last: bytes | None = None
        """What comes after it need not be looked at."""
        self.offered = 0

    def add(self, one: _Drawn) -> None:
        """Offer one."""
        self.offered += 1
        if self._last is not None and one.place > self._last:
            return
        self._kept.append(one)
        if len(self._kept) >= 2 * self._size:
            self._kept = self.ordered()
            self._last = self._kept[-1].place

    def ordered(self) -> list[_Drawn]:
        """Return them in order."""
        return sorted(self._kept)[: self._size]


class _Draw:
    """Chooses among rows of which it sees each once, in memory that does not grow with them.

    Rows are taken in their order as long as they, with their equals, stay within the target. Of rows with equally many
    equals the first ones are taken until one is too many, and then none: so of each number the first few are enough.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.different = 0
        self._by_rows: dict[int, _Smallest] = {}
        self._rarest: _Drawn | None = None
        # Of these two are more than can be chosen.
        self._labelled = {label: _Smallest(target + 4) for label in (WANTED, UNWANTED)}

    def add(self, groups: Records, seed: int) -> None:
        """Look at some different rows."""
        self.different += len(groups)
        key = str(seed).encode()
        for digest, rows, labels in _plain(groups):
            one = _Drawn(hashlib.blake2b(digest, digest_size=16, key=key).digest(), digest, rows, labels)
            if rows <= self._target:
                if rows not in self._by_rows:
                    self._by_rows[rows] = _Smallest(self._target // rows)
                self._by_rows[rows].add(one)
            if self._rarest is None or (rows, one.place) < (self._rarest.rows, self._rarest.place):
                self._rarest = one
            for label, smallest in self._labelled.items() if labels else ():
                if labels & label:
                    smallest.add(one)

    def chosen(self) -> set[Digest]:
        """Return the digests of those that are held out."""
        found: dict[Digest, int] = {}
        taken = 0
        for one in sorted(each for smallest in self._by_rows.values() for each in smallest.ordered()):
            if taken + one.rows <= self._target:
                found[one.digest] = one.labels
                taken += one.rows
        # Where every row is there more often than the target, the rarest one is the closest to it.
        if not found and self._rarest is not None:
            found[self._rarest.digest] = self._rarest.labels
        return self._of_both(found)

    def _of_both(self, chosen: dict[Digest, int]) -> set[Digest]:
        """Return `chosen` with both labels on both sides, as far as there are rows for it."""
        for having in self._labelled.values():
            drawn = having.ordered()
            if drawn and having.offered == len(drawn) and all(one.digest in chosen for one in drawn):
                del chosen[drawn[-1].digest]  # training keeps one
        for label, having in self._labelled.items():
            others = [one for one in having.ordered() if one.digest not in chosen]
            if len(others) > 1 and not any(labels & label for labels in chosen.values()):
                chosen[others[0].digest] = others[0].labels
        return set(chosen)


def _plain(groups: Records) -> Iterator[tuple[Digest, int, int]]:
    """Yield digest, number of rows and joined notes of each."""
    halves = np.stack([groups["high"], groups["low"]], axis=1).astype(">u8").tobytes()
    for index, (rows, labels) in enumerate(zip(groups["rows"].tolist(), groups["note"].tolist(), strict=True)):
        yield halves[16 * index : 16 * index + 16], rows, labels
