"""What is asked of an estimate, and of a look at data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunery_api.lorasweep import LoRASweepSpec


@dataclass(frozen=True)
class Question:
    """What a person asks before a job is applied."""

    manifest: Path
    name: str | None
    """Which object, where the manifest holds several."""
    model: Path | None
    """The folder of the model's config.json; None: where the manifest says."""
    start: Path | None
    """A folder with a copy of what continueFrom or resumeFrom names; None: where the manifest says."""
    gpu_memory: int | None
    """Bytes of the GPU; None: not known."""
    tokens_per_second: float | None
    """As measured by an earlier run; None: no time is told."""
    machine_readable: bool


@dataclass(frozen=True)
class Asked:
    """What is checked beside the run that names it."""

    name: str
    """Of the data, as the report calls them."""
    tokenizer: bool
    """Whether there is one."""
    model: Path | None
    """A folder in place of the run's model."""
    output: Path | None
    """Where the two files of the report go."""
    sweep: tuple[LoRASweepSpec, list[str]] | None = None
    """The sweep that the run is a corner of, and what keeps it from running without a cluster."""
