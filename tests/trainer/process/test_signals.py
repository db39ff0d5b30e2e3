"""SIGTERM while training: an end within the grace period, unless what was asked for is done by then."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunery_api.exitcodes import ExitCode

PROGRAM = """
import os, signal, sys, time
from tunery_trainer.process.signals import StopSignal
stop = StopSignal(grace_seconds=0.5)
stop.install()
with stop.graceful():
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
if "heeded" in sys.argv:
    stop.heeded()
    assert not stop.requested
if "again" in sys.argv:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1.5)
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("does", "code"),
    [((), ExitCode.TERMINATED), (("heeded",), 7), (("heeded", "again"), ExitCode.TERMINATED)],
    ids=["hangs", "done", "told-again"],
)
def test_the_grace_period_ends_with_what_was_asked_for(does: tuple[str, ...], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *does], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("ending at once. The same run started again" in done.stderr) is ("again" in does)


def test_an_end_at_once_says_so_and_what_to_do() -> None:
    program = """
import os, signal
from tunery_trainer.process.signals import StopSignal
StopSignal().install()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.TERMINATED
    assert done.stderr == (
        "Told to stop: ending at once. The same run started again goes on from its last checkpoint, if it has one.\n"
    )
