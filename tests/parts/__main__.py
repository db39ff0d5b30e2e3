"""`python -m parts`: run the tests without a node in three processes side by side, and print each part as it ends.

Two watch the clock and mostly wait; the third stands back for them (nice), and uses the waiting to compute (decision
49). Ctrl-C or SIGTERM ends the tests in order, with the servers that they have started.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from parts.plan import Part, Queue, parts

TESTS: Final = Path(__file__).resolve().parents[1]
RUNNERS: Final = (False, False, True)
"""Whether each of those side by side computes."""
NO_TESTS: Final = 5
"""pytest's exit status where it was given none: not every part has long ones."""
END_SECONDS: Final = 60.0
"""How long the tests have to end their servers."""


class Run:
    """All parts, each once, and what became of them."""

    def __init__(self, queue: Queue, command: Sequence[str]) -> None:
        self._queue = queue
        self._command = command
        self._lock = threading.Lock()
        self._running: dict[Part, subprocess.Popen[str]] = {}
        self._stopped = False
        self.failed: list[str] = []

    def work(self, *, computes: bool) -> None:
        """Run one part after the other, as long as there are any."""
        while (part := self._queue.take(computes=computes)) is not None:
            self._run(part)

    def stop(self) -> None:
        """Have what runs end, and nothing more begin."""
        self._queue.close()
        with self._lock:
            self._stopped = True
            running = list(self._running.values())
        for process in running:
            process.send_signal(signal.SIGINT)  # pytest ends its fixtures' servers
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in running):
            time.sleep(0.1)
        for process in running:
            if process.poll() is None:
                process.kill()

    def _run(self, part: Part) -> None:
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                return
            self._say(f"{part.name} ...")
            process = self._running[part] = subprocess.Popen(
                [*(["nice", "-n", "19"] if part.computes else []), *self._command, *part.arguments],
                cwd=TESTS,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        output = process.communicate()[0]
        with self._lock:
            del self._running[part]
            if process.returncode not in (0, NO_TESTS):
                self.failed.append(part.name)
            self._say(f"{output}{part.name}: exit status {process.returncode}, {time.monotonic() - began:.0f} s")

    @staticmethod
    def _say(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}" if "\n" not in text else text, flush=True)


def folders() -> list[str]:
    """Return the folders that pytest looks into where it is given none."""
    settings = tomllib.loads((TESTS / "pyproject.toml").read_text())
    found: list[str] = settings["tool"]["pytest"]["ini_options"]["testpaths"]
    return found


def main(arguments: Sequence[str], plan: Callable[[], list[Part]] = lambda: parts(TESTS, folders())) -> int:
    """Run every part; return 1 where one has failed, 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m parts", description=__doc__)
    parser.add_argument("--coverage", action="store_true", help="run all of them, under coverage")
    parser.add_argument("--long", action="store_true", help="run those that are left out else, and only them")
    options = parser.parse_args(arguments)
    covered = ["-m", "coverage", "run"] if options.coverage else []
    chosen = [] if options.coverage else ["-m", "long" if options.long else "not long"]
    run = Run(Queue(plan()), [sys.executable, *covered, "-m", "pytest", *chosen])
    told: list[int] = []

    def stop(number: int, _: object) -> None:
        told.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    threads = [threading.Thread(target=run.work, kwargs={"computes": computes}) for computes in RUNNERS]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if told:
            run.stop()
            break
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    if run.failed:
        print(f"failed: {', '.join(run.failed)}", file=sys.stderr)
    return 130 if told else int(bool(run.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
