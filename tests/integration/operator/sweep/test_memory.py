"""The operator's memory: that of sweeps which have ended is small, and who samples is loaded elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("sweeps", [0, 50])
@pytest.mark.slow
def test_sweeps_that_have_ended_take_little_memory_and_no_optuna(sweeps: int) -> None:
    command = [sys.executable, "-m", "bench.sweep_memory", "--here", str(sweeps)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["loaded"] == []
    assert told["objects"] == sweeps * 21, "each with its twenty trials"
    assert told["rss_mb"] < 100
