"""SIGTERM while training: an end within the grace period, unless what was asked for is done by then."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunery_api.reasons import ExitCode

from kit.story import command, environment

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
    assert ("ending at once." in done.stderr) is (code == ExitCode.TERMINATED)


def test_an_end_at_once_says_so_and_what_to_do() -> None:
    program = """
import os, signal
from tunery_trainer.process.signals import GOES_ON, StopSignal
stop = StopSignal()
stop.hint = GOES_ON
stop.install()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.TERMINATED
    assert done.stderr == (
        "Told to stop: ending at once. The same run started again goes on from its last checkpoint, if it has one.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("word", ["run", "train"])
def test_from_the_first_moment_on_a_signal_ends_the_command_without_a_trace(word: str, number: signal.Signals) -> None:
    """While the libraries are imported, of the supervisor, too."""
    # Python takes over no SIGINT that it is born to ignore, and coverage none at all: what is caught is our own.
    process = subprocess.Popen(
        ["env", "--ignore-signal=INT", *command(word, "/nothing")],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not catches(process.pid, signal.SIGINT):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (ExitCode.TERMINATED, False), said


def catches(pid: int, wanted: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal by now: Python itself starts slowly on a busy machine."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (wanted - 1) & 1)


TOGETHER = """
import os, signal, sys, time
from tunery_trainer.process.signals import StopSignal
stop = StopSignal(grace_seconds=1.5)
stop.install()
with stop.graceful():
    stop.hear()
    time.sleep(1)
    if "told" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    print("stored", stop.told)
    if "again" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
stop.disarm()
"""


@pytest.mark.parametrize(
    ("does", "said", "code"),
    [(("told",), "stored True\n", 0), (("told", "again"), "stored True\n", ExitCode.TERMINATED), ((), "", 143)],
    ids=["has-its-own-time", "told-twice", "hangs"],
)
def test_one_that_stores_as_another_was_told_is_told_for_the_first_time_itself(
    does: tuple[str, ...], said: str, code: int
) -> None:
    """Its checkpoint was lost where the Job was suspended while it stored that for a pod that was evicted."""
    done = subprocess.run([sys.executable, "-u", "-c", TOGETHER, *does], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == (said, code), done.stderr


FAILS = """
import os, signal, sys
from tunery_trainer.process.signals import StopSignal
stop = StopSignal()
stop.install()
try:
    with stop.graceful():
        raise ConnectionError("another process is gone")
except ConnectionError:
    for number in range(1 + ("again" in sys.argv)):
        os.kill(os.getpid(), signal.SIGTERM)
    print("stored", stop.requested)
if "done" in sys.argv:
    stop.heeded()
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on")
sys.exit(76)
"""


@pytest.mark.parametrize(
    ("does", "said", "code"),
    [((), "stored True\n", 76), (("again",), "", 143), (("done",), "stored True\n", 143)],
    ids=["told-once", "told-again", "done"],
)
def test_what_fails_stores_what_it_has_before_a_signal_ends_it(does: tuple[str, ...], said: str, code: int) -> None:
    """Its Job is deleted while the last checkpoint is on its way, as another pod was killed and no retry is left."""
    done = subprocess.run([sys.executable, "-u", "-c", FAILS, *does], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == (said, code), done.stderr


SUCCEEDED = """
import os, signal, sys, time
from tunery_trainer.process.signals import StopSignal
stop = StopSignal(grace_seconds=0.2)
stop.install()
stop.successor = lambda: os.execv("/bin/echo", ["echo", "the successor"])
if "graceful" in sys.argv:
    with stop.graceful():
        os.kill(os.getpid(), signal.SIGTERM)
        if "hung" in sys.argv:
            time.sleep(30)
        os.kill(os.getpid(), signal.SIGTERM)
if "heeded" in sys.argv:
    stop.heeded()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("does", "succeeds"),
    [((), True), (("graceful",), False), (("graceful", "hung"), True), (("heeded",), False)],
    ids=["nothing-to-save", "told-again", "overdue", "done"],
)
def test_what_takes_the_place_of_a_process_does_so_once_and_not_where_it_was_told_twice(
    does: tuple[str, ...], succeeds: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", SUCCEEDED, *does], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == (("the successor\n", 0) if succeeds else ("", ExitCode.TERMINATED))


HUNG = """
import runpy, sys, time
from concurrent.futures import ThreadPoolExecutor
from tunery_trainer import cli
pool = ThreadPoolExecutor()
cli.main = lambda arguments: pool.submit(time.sleep, 60) and 143
sys.argv = ["tunery_trainer", "check", "nothing"]
runpy.run_module("tunery_trainer", run_name="__main__")
"""


@pytest.mark.slow
def test_a_thread_that_hangs_keeps_no_process_that_has_done_its_work() -> None:
    """Such as one of boto3's, in an upload that was given up: the pod was killed once its grace period was over."""
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=40)
    assert done.returncode == ExitCode.TERMINATED, done.stderr
