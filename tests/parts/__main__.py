"""`python -m parts`: run the tests without a node in three processes side by side, and print each part as it ends.

Two watch the clock and mostly wait; the third stands back for them (nice), and uses the waiting to compute (decision
49). Ctrl-C or SIGTERM ends the tests in order, with the servers that they have started.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
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
QUIET_SECONDS: Final = 120.0
"""After so long without a word it is told what still runs."""
TOLD: Final = ("failed", "error", "errors", "passed", "skipped", "xfailed", "xpassed")
"""What pytest counts in the last line of a part, and is added up in that of all; what was deselected is nobody's."""


class Run:
    """All parts, each once, and what became of them."""

    def __init__(self, queue: Queue, command: Sequence[str]) -> None:
        self._queue = queue
        self._command = command
        self._lock = threading.Lock()
        self._running: dict[Part, tuple[subprocess.Popen[str], float]] = {}
        self._stopped = False
        self._began = self._said = time.monotonic()
        self._parts, self._started, self._ended = len(queue), 0, 0
        self._counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self.failures: list[str] = []
        """What pytest says of each test that has failed: it may stand far above the end."""

    def work(self, *, computes: bool) -> None:
        """Run one part after the other, as long as there are any."""
        while (part := self._queue.take(computes=computes)) is not None:
            self._run(part)

    def stop(self) -> None:
        """Have what runs end, and nothing more begin."""
        self._queue.close()
        with self._lock:
            self._stopped = True
            running = [process for process, _ in self._running.values()]
        for process in running:
            process.send_signal(signal.SIGINT)  # pytest ends its fixtures' servers
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in running):
            time.sleep(0.1)
        for process in running:
            if process.poll() is None:
                process.kill()

    def tell(self) -> None:
        """Say what runs, where nothing was said for long."""
        now = time.monotonic()
        with self._lock:
            if now < self._said + QUIET_SECONDS or not self._running:
                return
            running = "; ".join(f"{part.name} for {now - began:.0f} s" for part, (_, began) in self._running.items())
            self._say(f"{self._ended} of {self._parts} parts have ended; running: {running}")

    def sum_up(self) -> None:
        """Say what all parts together have come to."""
        counts = ", ".join(f"{self._counts[word]} {word}" for word in TOLD if self._counts[word])
        seconds = time.monotonic() - self._began
        stopped = ", stopped" if self._stopped else ""
        self._say(f"{self._ended} of {self._parts} parts in {seconds:.0f} s{stopped}: {counts or 'no test'}")

    def _run(self, part: Part) -> None:
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                return
            self._started += 1
            self._say(f"part {self._started} of {self._parts}: {part.name} ...")
            process = subprocess.Popen(
                [*(["nice", "-n", "19"] if part.computes else []), *self._command, *part.arguments],
                cwd=TESTS,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._running[part] = process, began
        output = process.communicate()[0]
        with self._lock:
            del self._running[part]
            self._ended += 1
            self._counts += counted(output)
            if process.returncode not in (0, NO_TESTS):
                self.failed.append(part.name)
                self.failures += re.findall(r"^(?:FAILED|ERROR) .+$", output, re.MULTILINE)
            self._say(f"{output}{part.name}: exit status {process.returncode}, {time.monotonic() - began:.0f} s")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(f"[{time.strftime('%H:%M:%S')}] {text}" if "\n" not in text else text, flush=True)


def counted(output: str) -> Counter[str]:
    """Return how many tests pytest says have passed, failed and so on: the last line of what it has printed."""
    last = next(reversed(re.findall(r"^.*\b\d+ \w+.* in \d.*$", output, re.MULTILINE)), "")
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last) if word in TOLD})


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
        run.tell()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    run.sum_up()
    if run.failed:
        print(*run.failures, f"failed: {', '.join(run.failed)}", sep="\n", file=sys.stderr)
    return 130 if told else int(bool(run.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
