"""The checks by name, in the order of what is wanted first, without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The repository."""


@dataclass(frozen=True)
class Entry:
    """Where a check stands."""

    module: str
    """Its module, which has a `CHECK`."""
    seconds: float = 120.0
    """What one case may take, imports included; a case that takes longer has failed."""


CHECKS: Final = {
    "environment": Entry("environment"),
    "attention": Entry("attention"),
    "packing": Entry("packing"),
    "steps-BFloat16": Entry("steps_bfloat16"),
    "preferences": Entry("preferences"),
    "story": Entry("story"),
    "peak": Entry("peak", 180),
    "evaluation": Entry("evaluation"),
    "faults": Entry("faults"),
    "resume": Entry("resume"),
    "together": Entry("together", 540),
    "loading": Entry("loading"),
    "speed": Entry("speed", 240),
    "learning": Entry("learning", 240),
    "steps-Float16": Entry("steps_float16"),
    "steps-Float32": Entry("steps_float32"),
    "merging": Entry("merging"),
}
