"""`tunery watch` as a program, in a pipe and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from tunery.errors import ExitCode

from kit.operator.api import eventually
from kit.operator.objects import Namespace, lorajob
from tools.cluster.controlplane import ControlPlane

TRAINING = {
    "phase": "Training",
    "progress": {"step": 82, "totalSteps": 200, "percent": 41, "percentText": "41%", "eta": "3m"},
    "metrics": {"loss": "1.23456", "evalLoss": "1.4", "baseEvalLoss": "2.5", "improvementError": "0.012"},
}
DONE = {"phase": "Succeeded", "adapter": {"uri": "s3://adapters/a", "manifestSha256": "ab" * 32, "sizeBytes": 12}}


class Program:
    """One run of the command line, with its output so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self.raw = b""
        self._output = output
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # A terminal whose program has ended answers with an error.
        with suppress(OSError):
            while data := os.read(self._output, 4096):
                self.raw += data

    @property
    def text(self) -> str:
        """The output, without escape codes."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace"))

    def shows(self, text: str) -> None:
        """Wait until the output has a text."""
        eventually(f"{text} is shown in {self.text}", lambda: text in self.text, 30)

    def end(self) -> int:
        """Return the exit code once the program has ended."""
        code = self.process.wait(30)
        self._reader.join(5)
        return code


@pytest.fixture
def start(control_plane: ControlPlane, team: Namespace) -> Callable[..., Program]:
    """Starts the program in the namespace: `start("watch", "a")`; with `columns` in a terminal of that width."""

    def run(*arguments: str, columns: int = 0, env: Mapping[str, str] | None = None) -> Program:
        command = [sys.executable, "-m", "tunery", "--kubeconfig", str(control_plane.kubeconfig), "-n", team.name]
        # A worker of pytest-xdist has COLUMNS=80, which would count for more than the width of the terminal.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = {**inherited, "TERM": "xterm", "PYTHONUNBUFFERED": "1", **(env or {})}
        ours, theirs = pty.openpty() if columns else os.pipe()
        if columns:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen([*command, *arguments], stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        return Program(process, ours)

    return run


@pytest.fixture
def put(team: Namespace, put_status: Callable[..., None]) -> Callable[..., None]:
    """Writes fields of the status of the job `a`."""
    team.apply(lorajob("a"))
    return partial(put_status, "a")


def test_a_pipe_gets_lines_without_escape_codes(start: Callable[..., Program], put: Callable[..., None]) -> None:
    program = start("watch", "a")
    program.shows("Pending")
    put(phase="Queued", reason="WaitingForQuota", queue="gpus")
    program.shows("waits: WaitingForQuota")
    put(**TRAINING, reason=None)
    program.shows("Training  step 82/200  loss 1.235  held-out 1.4 (base 2.5)  ETA 3m")
    put(**DONE)
    assert program.end() == ExitCode.SUCCEEDED
    assert b"\x1b" not in program.raw
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in program.text.splitlines())
    assert program.text.splitlines()[-2:] == [
        line for line in program.text.splitlines() if "adapter: s3://adapters/a" in line or "−44.0 %" in line
    ]


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_shows_one_line_and_the_news_above_it(
    start: Callable[..., Program], put: Callable[..., None], columns: int
) -> None:
    program = start("watch", "a", columns=columns)
    program.shows("Pending")
    put(**TRAINING, dataset={"warnings": ["3 rows are cut"]})
    program.shows("step 82/200")
    put(phase="Evaluating")
    program.shows("Evaluating")
    put(**DONE)
    assert program.end() == ExitCode.SUCCEEDED
    assert program.text.count("data: 3 rows are cut") == 1
    assert "adapter: s3://adapters/a" in program.text
    # The live line never wraps: it would leave copies of itself behind.
    live = [line.strip() for line in re.split(r"[\r\n]+", program.text) if line.startswith("a ")]
    assert live
    assert max(map(len, live)) < columns


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [
        (
            {"phase": "Failed", "failure": {"reason": "DiskFull", "message": "no room", "hint": "Raise it."}},
            ExitCode.FAILED, "Raise it.",
        ),
        ({"phase": "Stopped"}, ExitCode.STOPPED, "was stopped"),
    ],
    ids=["failed", "stopped"],
)  # fmt: skip
def test_exit_codes(
    start: Callable[..., Program], put: Callable[..., None], status: dict[str, Any], code: int, shown: str
) -> None:
    put(**status)
    program = start("watch", "lorajob/a")
    assert program.end() == code
    assert shown in program.text


def test_a_timeout_names_the_command_that_continues(start: Callable[..., Program], put: Callable[..., None]) -> None:
    put(phase="Training")
    program = start("watch", "a", "--timeout", "1s")
    assert program.end() == ExitCode.TIMEOUT
    assert "it continues" in program.text


def test_json_is_one_object_a_line(start: Callable[..., Program], put: Callable[..., None]) -> None:
    program = start("-o", "json", "watch", "a")
    program.shows('"name": "a"')
    put(**TRAINING)
    program.shows("82")
    put(**DONE)
    assert program.end() == ExitCode.SUCCEEDED
    phases = [json.loads(line)["status"].get("phase") for line in program.text.splitlines()]
    assert phases == [None, "Training", "Succeeded"]


@pytest.mark.parametrize("columns", [0, 80], ids=["pipe", "terminal"])
def test_ctrl_c_ends_it_at_once(start: Callable[..., Program], put: Callable[..., None], columns: int) -> None:
    put(phase="Training")
    program = start("watch", "a", columns=columns)
    program.shows("Training")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == ExitCode.INTERRUPTED
    assert "nothing in the cluster was changed" in program.text
    assert "Traceback" not in program.text


@pytest.mark.parametrize("columns", [0, 120], ids=["pipe", "terminal"])
def test_a_windows_1252_terminal_gets_ascii(
    start: Callable[..., Program], put: Callable[..., None], columns: int
) -> None:
    put(**TRAINING)
    program = start("watch", "a", columns=columns, env={"PYTHONIOENCODING": "cp1252"})
    program.shows("step 82/200")
    put(**DONE)
    assert program.end() == ExitCode.SUCCEEDED
    assert b"2.5 -> 1.4, -44.0 % (\xb1 1.2 %)" in program.raw
    assert ("########............  41 %" in program.text) == bool(columns)
