"""What a check is, and what it says: cases with a name, each with a verdict and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

Figures = dict[str, Any]


class Verdict(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    FAILED = "failed"
    NEEDS_GPU = "needs a GPU"
    """Nothing is said: what ran here, if anything, was the same code on a CPU."""
    NOT_OFFERED = "not offered"
    """The product does not do it."""
    NOT_GIVEN = "not given"
    """A file that it needs was not named."""
    NOT_REACHED = "not reached"
    """The time was over before, or in, this case; the next run begins with it."""


FINAL: Final = frozenset(Verdict) - {Verdict.NOT_REACHED, Verdict.NOT_GIVEN}
"""What a later run does not try again."""


@dataclass(frozen=True)
class Outcome:
    """The verdict of a case, its figures, and a sentence where the verdict needs one."""

    verdict: Verdict
    figures: Figures = field(default_factory=dict)
    words: str = ""


def judged(complaints: Mapping[str, bool], **figures: Any) -> Outcome:
    """Return passed where no complaint holds, else failed with those that do."""
    wrong = [words for words, holds in complaints.items() if holds]
    return Outcome(Verdict.FAILED if wrong else Verdict.PASSED, figures, "; ".join(wrong))


@dataclass(frozen=True)
class Machine:
    """What the checks run on, and with."""

    dry: bool
    """Tiny shapes on the CPU: that the checks themselves work."""
    folder: Path
    """For files that are of no use afterwards."""
    model: Path | None = None
    """A real model's folder, for a real loss curve."""
    data: Path | None = None
    """Rows for it, as JSON lines."""

    @property
    def device(self) -> str:
        """Where models are put."""
        return "cpu" if self.dry else "cuda:0"


@dataclass(frozen=True)
class Case:
    """One thing that is tried."""

    run: Callable[[Machine], Outcome]
    needs_gpu: bool = True
    """Whether its result means nothing on a CPU: there it cannot pass."""


@dataclass(frozen=True)
class Check:
    """Cases that share a process, by their names."""

    says: str
    cases: Callable[[Machine], Mapping[str, Case]]


def on_a_gpu_only(_: Machine) -> Outcome:
    """Return that there is nothing to run on a CPU."""
    return Outcome(Verdict.NEEDS_GPU)
