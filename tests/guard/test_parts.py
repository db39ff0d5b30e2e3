"""The parts of `make test-unit`: each test is in one of them, a failure is told, and a stop leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from parts.__main__ import TESTS, folders
from parts.plan import Part, Queue, parts

RUN = """
import sys
from parts.__main__ import Run
from parts.plan import Part, Queue
import parts.__main__ as program
program.sys.executable, program.QUIET_SECONDS = sys.argv[1], float(sys.argv[2])
plan = lambda: [Part(name, (name,), name.startswith("c")) for name in sys.argv[3:] if name[0] != "-"]
sys.exit(program.main([word for word in sys.argv[3:] if word[0] == "-"], plan))
"""


def files_of(part: Part) -> set[Path]:
    ignored = {argument.partition("=")[2] for argument in part.arguments if argument.startswith("--ignore=")}
    found: set[Path] = set()
    for argument in part.arguments:
        place = TESTS / argument
        found |= {place} if place.is_file() else set(place.rglob("test_*.py"))
    return found - {TESTS / each for each in ignored}


def test_every_test_without_a_node_is_in_one_part() -> None:
    counted = Counter(path for part in parts(TESTS, folders()) for path in files_of(part))
    everything = {path for folder in folders() for path in (TESTS / folder).rglob("test_*.py")}
    assert set(counted) == everything
    assert max(counted.values()) == 1


def test_each_is_either_long_or_not_and_a_part_without_any_fails_nobody(tmp_path: Path) -> None:
    script = "import sys\nprint(*sys.argv[1:])\nsys.exit(5)\n"
    for option, chosen in ((), "not long"), (("--long",), "long"):
        process = start(tmp_path, script, *option, "w", "c")
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert f"-m pytest -m {chosen} w\n" in output
        assert f"-m pytest -m {chosen} c\n" in output


def test_who_watches_the_clock_goes_first_and_then_helps() -> None:
    queue = Queue([Part(name, (), name.startswith("c")) for name in ("c1", "w1", "c2", "w2", "c3")])

    def take(computes: bool) -> str | None:
        part = queue.take(computes=computes)
        return part and part.name

    assert [take(False), take(True), take(False), take(False), take(True), take(True), take(False)] == [
        *("w1", "c1", "w2", "c2", "c3"),
        *(None, None),
    ]


def start(tmp_path: Path, script: str, *names: str, quiet: float = 120) -> subprocess.Popen[str]:
    """Start `python -m parts` with other parts, each of which is given to a script in place of pytest.

    After `quiet` seconds without a word it says what runs.
    """
    player = tmp_path / "player"
    player.write_text(f"#!{sys.executable}\n{script}")
    player.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(player), str(quiet), *names],
        cwd=TESTS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_failure_is_told_and_the_others_run(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "print(sys.argv[-1], os.nice(0), os.environ.get('OMP_NUM_THREADS'))\n"
        "sys.exit('bad' in sys.argv[-1])\n"
    )
    output, errors = (process := start(tmp_path, script, "w-good", "w-bad", "c-bad", "c-good")).communicate(timeout=60)
    assert process.returncode == 1
    assert set(errors.removeprefix("failed: ").strip().split(", ")) == {"w-bad", "c-bad"}
    assert f"w-good {os.nice(0)} 1\nw-good: exit status 0" in output
    assert "c-good 19 1\nc-good: exit status 0" in output


def test_all_together_are_summed_up(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "print('== 3 passed in words, which pytest did not count ==')\n"
        "print('FAILED', sys.argv[-1], '- it did not work')\n"
        "print('=== 2 failed, 5 passed, 1 skipped, 7 deselected in 61.20s (0:01:01) ===')\n"
        "sys.exit(1)\n"
    )
    output, errors = start(tmp_path, script, "w", "c").communicate(timeout=60)
    assert sorted(errors.splitlines()[:2]) == ["FAILED c - it did not work", "FAILED w - it did not work"]
    lines = [line.partition("] ")[2] for line in output.splitlines() if line.startswith("[")]
    assert sorted(lines[:2]) in ([f"part 1 of 2: {one} ...", f"part 2 of 2: {two} ..."] for one, two in ("wc", "cw"))
    assert re.fullmatch(r"2 of 2 parts in \d+ s: 4 failed, 10 passed, 2 skipped", lines[-1])


def test_what_takes_long_is_told_meanwhile(tmp_path: Path) -> None:
    process = start(tmp_path, "import time\ntime.sleep(1)\n", "w", "c", quiet=0.3)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert re.search(r"\] 0 of 2 parts have ended; running: (w for \d s; c|c for \d s; w) for \d s\n", output)
    assert re.search(r"\] 2 of 2 parts in \d+ s: no test\n$", output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_has_the_tests_end_what_they_have_started(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import signal, sys, time, pathlib; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "here = pathlib.Path(__file__).parent\n"
        "try: (here / f'begun-{sys.argv[-1]}').touch(); time.sleep(60)\n"
        "finally: (here / f'ended-{sys.argv[-1]}').touch()\n"
    )
    process = start(tmp_path, script, "w1", "w2", "w3", "c1")
    until = time.monotonic() + 30
    while len(list(tmp_path.glob("begun-*"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert {path.name for path in tmp_path.glob("*ed-*")} == {f"ended-{n}" for n in ("w1", "w2", "c1")}
