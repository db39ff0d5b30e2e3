"""A small parent of the process that works: what ends without Python's doing has its last words written down, too.

bitsandbytes' native code ends the process by C's exit(1) when CUDA fails, and a broken kernel by a signal: no handler
of Python runs, and Kubernetes would be told nothing.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO, Final

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import Task
from tunery_common.errors import TuneryError, first_line
from tunery_common.termination import (
    clear_termination,
    failed_message,
    has_spoken,
    termination_file,
    write_termination,
)
from tunery_trainer.process.device import gpu_reason
from tunery_trainer.process.failures import explain

CHILD: Final = "TUNERY_SUPERVISED"
"""The id of the process that this one was started by, and ends with."""
_LINES: Final = 400
"""Lines of stderr that are looked through for the cause: a crash's traces of all threads come after its first line."""
_SIGNALS: Final = 64
"""Bytes that are read at once of those that tell of signals, one for each."""
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
SIGNALLED: Final = 128
"""What a shell adds to the signal's number."""


def to_supervise(arguments: Sequence[str]) -> Task | None:
    """Return the operator's task that this process should start a child for; None: do the work here."""
    if CHILD in os.environ or not arguments:
        return None
    return next((task for task in Task if task.value == arguments[0]), None)


def supervise(task: Task, command: Sequence[str]) -> int:
    """Run `command`, pass signals on, and return its exit code.

    Where it ended without a termination message, write one with the reason that its last lines on stderr tell, and
    return that reason's code; a SIGKILL (the kernel's, for too much memory) stays without words.
    """
    clear_termination()
    child = _start(command)
    said: deque[str] = deque(maxlen=_LINES)
    reader = threading.Thread(target=_pass_on, args=(child.stderr, said))
    reader.start()
    code = _wait(child)
    reader.join()
    silent = termination_file() is not None and not has_spoken()
    if not silent or code in (ExitCode.OK, ExitCode.TERMINATED, -signal.SIGTERM, -signal.SIGKILL):
        return code if code >= 0 else SIGNALLED - code
    return _last_words(task, code, list(said))


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own (a terminal's Ctrl-C reaches it once, by us), and pass signals on."""
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, _: object) -> None:
        for child in children:
            child.send_signal(number)
        if not children:
            early.append(number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    child = subprocess.Popen(
        list(command),
        stderr=subprocess.PIPE,
        env={**os.environ, CHILD: str(os.getpid())},
        start_new_session=True,
    )
    children.append(child)
    for missed in early:
        child.send_signal(missed)
    return child


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Return the child's exit code; a signal that comes at any moment is handled while it is waited for.

    Popen.wait alone would not see one that came just before it began, or that the kernel gave to another thread, until
    the child ends.
    """
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ended = os.pidfd_open(child.pid)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while ended not in select.select([ended, woken], [], [])[0]:
            os.read(woken, _SIGNALS)
    finally:
        signal.set_wakeup_fd(-1)
        for each in (woken, wake, ended):
            os.close(each)
    return child.wait()


def _last_words(task: Task, code: int, said: Sequence[str]) -> int:
    error = explain_end(code, said)
    failure = error.failure
    write_termination(failed_message(task, failure))
    print(f"{error.reason}: {failure.message}", file=sys.stderr, flush=True)
    return error.exit_code


def explain_end(code: int, said: Sequence[str]) -> TuneryError:
    """Return why a process ended that has left no word but its last lines on stderr.

    `code` as subprocess has it: negative for a signal. A line that speaks of the GPU is believed over the others.
    """
    lines = [line.strip() for line in said if line.strip()]
    for line in reversed(lines):
        if gpu_reason(RuntimeError(line)) is not None:
            return explain(RuntimeError(line))
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = next((line for line in lines if line.startswith("Fatal Python error")), lines[-1] if lines else "")
    text = f"native code failed: the process {how}" + (f": {first_line(RuntimeError(last))}" if last else "")
    return TuneryError(FailureReason.INTERNAL_ERROR, text)


def _pass_on(stream: IO[bytes] | None, said: deque[str]) -> None:
    for line in stream or ():
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
        said.append(line.decode(errors="replace"))


def die_with_parent() -> None:
    """Let the kernel end this process where its supervisor is killed: nobody would hear it any more."""
    if CHILD in os.environ:
        dying_with(int(os.environ[CHILD]))


def dying_with(parent: int) -> None:
    """Do the same for a process that was just started by `parent`, whatever program follows; end it if that is gone."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(SIGNALLED + signal.SIGKILL)
