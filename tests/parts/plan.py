"""Which parts there are, and who runs next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CLOCK: Final = ("chart", "controller", "server")
"""Folders whose tests wait for what happens in other processes, and mostly sleep meanwhile."""
WATCHFUL: Final = ("trainer/process", "trainer/reporting")
"""Those of the trainer that watch a clock themselves: last of all."""
LONGEST: Final = ("trainer/tasks", "trainer/training")
"""Of those that compute what takes longest: it begins first, in two halves, so that nobody waits for the last of it."""
HOUSES: Final = ("trainer",)
"""Folders whose own folders make parts: what they compute takes longest."""
GROUPS: Final = 4
"""Parts of a house beside those that are named here: each process imports the libraries of tensors, ten seconds."""
ADVERSE: Final = ("controller/test_faults*.py", "controller/test_*kills.py")
"""Of the operator's tests those that break and kill: a part of their own."""


@dataclass(frozen=True)
class Part:
    """What one process of pytest is given."""

    name: str
    arguments: tuple[str, ...]
    computes: bool
    """It stands back for those that watch the clock."""


def parts(tests: Path, folders: Sequence[str]) -> list[Part]:
    """Return the parts of `folders` in the order in which those of each kind begin: the longest first."""
    adverse = sorted(str(path.relative_to(tests)) for pattern in ADVERSE for path in tests.glob(pattern))
    spared = tuple(f"--ignore={path}" for path in adverse)
    found = [Part("controller", ("controller", *spared), False), Part("faults and kills", tuple(adverse), False)]
    found += [Part(folder, (folder,), False) for folder in ("server", "chart")]
    for folder in folders:
        if folder in HOUSES:
            found += _of_a_house(tests, folder)
        elif folder not in CLOCK:
            found.append(Part(folder, (folder,), True))
    return sorted(found, key=lambda part: not part.name.startswith(LONGEST))


def _of_a_house(tests: Path, house: str) -> list[Part]:
    """Return the parts of a folder of folders."""
    sizes = _below(tests, house)
    found = [half for folder in sizes if folder in LONGEST for half in _halves(tests, folder)]
    found += [Part(folder, (folder,), False) for folder in sizes if folder in WATCHFUL]
    groups: list[list[str]] = [[] for _ in range(GROUPS)]
    for folder in (each for each in sizes if each not in LONGEST + WATCHFUL):
        min(groups, key=lambda group: sum(sizes[each] for each in group)).append(folder)
    return found + [Part(", ".join(group), tuple(group), True) for group in groups if group]


def _halves(tests: Path, folder: str) -> list[Part]:
    """Return a folder as two parts."""
    files = sorted(str(path.relative_to(tests)) for path in (tests / folder).glob("test_*.py"))
    return [Part(f"{folder} ({which} half)", tuple(files[at::2]), True) for at, which in enumerate(("one", "other"))]


def _below(tests: Path, folder: str) -> dict[str, int]:
    """Return the folders of tests in a folder with their bytes, the largest first: a guess at how long each takes."""
    sizes = {
        str(each.relative_to(tests)): sum(path.stat().st_size for path in each.glob("test_*.py"))
        for each in (tests / folder).iterdir()
    }
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name]}


class Queue:
    """Gives out parts: who watches the clock takes those first, and helps to compute once none is left."""

    def __init__(self, waiting: Sequence[Part]) -> None:
        self._waiting = list(waiting)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def take(self, *, computes: bool) -> Part | None:
        """Return the next part for one of the two kinds of runners, None where there is nothing for it any more."""
        with self._lock:
            found = next((part for part in self._waiting if part.computes is computes), None)
            if found is None and not computes:
                found = next(iter(self._waiting), None)
            if found is not None:
                self._waiting.remove(found)
            return found

    def close(self) -> None:
        """Give out nothing any more."""
        with self._lock:
            self._waiting.clear()
