"""Long-running programs: each in a session of its own, known by a pid file, ended by pid.

Servers of a test, a benchmark or a soak end with the process that starts them: ENDS_WITH_PARENT and end_on_sigterm.
Those of `make cluster-up` and `make demo` keep running until `make cluster-down`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.cluster.waiting import WaitedTooLong, wait_until

LOG_TAIL_LINES = 25
ENDS_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL", "--")
"""Put before a command: Linux sends the program SIGKILL when the thread that started it ends, for whatever reason."""


def end_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does: `with` and `finally` end what they started.

    A shell lets its background jobs ignore Ctrl-C; this undoes it. Call it in the main thread.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


class DaemonFailed(Exception):
    """A program died or did not become ready; the message holds the end of its log."""


@dataclass(frozen=True)
class Daemon:
    """One program of the cluster, whether it runs or not."""

    name: str
    state_dir: Path
    ends_with_parent: bool = False

    @property
    def pid_file(self) -> Path:
        return self.state_dir / "run" / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "log" / f"{self.name}.log"

    def start(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start the program, unless it runs; it outlives this process, unless `ends_with_parent`."""
        if self.is_running():
            return
        for file in (self.pid_file, self.log_file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*(ENDS_WITH_PARENT if self.ends_with_parent else ()), *(str(word) for word in command)],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid_file.write_text(f"{process.pid} {_start_time(process.pid)}\n")
        # The process is no longer Popen's to watch: without this it warns when the object is collected.
        process.returncode = 0

    def pid(self) -> int | None:
        """Return the pid of the running program: one that started when the pid file says so."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def is_running(self) -> bool:
        return self.pid() is not None

    def wait_ready(self, check: Callable[[], bool], timeout: float = 60) -> None:
        """Return once `check` is true; raise DaemonFailed when the program ends first or time is up."""

        def ready() -> bool:
            if not self.is_running():
                raise DaemonFailed(f"{self.name} ended at once\n{self.log_tail()}")
            return check()

        try:
            wait_until(ready, f"{self.name} is ready", timeout)
        except WaitedTooLong as error:
            raise DaemonFailed(f"{error}\n{self.log_tail()}") from error

    def stop(self, timeout: float = 10) -> None:
        """End the program: SIGTERM, then SIGKILL after `timeout` seconds."""
        pid = self.pid()
        if pid is not None:
            _end(pid, timeout)
        self.pid_file.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """Return the end of the program's log, headed by the log's path."""
        if not self.log_file.exists():
            return f"(no log at {self.log_file})"
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"--- {self.log_file}", *lines])


def _start_time(pid: int) -> str | None:
    """Return the clock tick at which a live process started; with the pid it names that process for ever."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _end(pid: int, timeout: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience)[0]:
                break
    finally:
        os.close(handle)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
