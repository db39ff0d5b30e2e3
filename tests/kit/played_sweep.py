"""`python -m kit.played_sweep run sweep.yaml --work-dir work`: the trainer's program, whose trials are played."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunery_trainer.cli import main
from tunery_trainer.sweeping import ended, process

from kit.played_trial import COUNTER_ENV


def play(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the trials of sweeps of this process played; what the kernel counts is a file in `folder`."""
    counter = folder / "memory.events"
    patch.setenv(COUNTER_ENV, str(counter))
    counter.write_text("oom 0\noom_kill 0\n")
    patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    patch.setattr(process, "PROGRAM", (sys.executable, "-m", "kit.played_trial"))
    patch.setattr(ended, "KILL_COUNTERS", (counter,))


if __name__ == "__main__":
    play(pytest.MonkeyPatch(), Path(sys.argv[2]).parent)
    sys.exit(main(sys.argv[1:]))
