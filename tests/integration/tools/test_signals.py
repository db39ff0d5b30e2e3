"""Programs that start servers leave no process behind, however they end; a cluster's daemons outlive their starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kit.installation import ROOT
from kit.processes import with_environment
from tools.cluster.s3 import S3Server
from tools.cluster.waiting import wait_until

TEMPORARY = """
import tempfile, time
from pathlib import Path
from tools.cluster.s3 import S3Server
with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)).temporary():
    print("ready", flush=True)
    time.sleep(600)
"""
LASTING = """
import sys
from pathlib import Path
from tools.cluster.s3 import S3Server
S3Server(Path(sys.argv[1])).start()
"""
BENCH = ("-m", "bench.operator_latency")
PYTEST = ("-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "integration/operator/test_retry.py")
each_signal = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name
)


@contextmanager
def started(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a Python program with `folder` as TMPDIR, by which `found` finds it and all that it starts."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT / "tests",
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in found(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def found(folder: Path) -> dict[int, str]:
    """Return the command lines of the processes of `started`, by pid."""
    return with_environment(f"TMPDIR={folder}")


def assert_nothing_stays(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> None:
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not found(folder), f"no process stays: {found(folder)}", 30)


@pytest.mark.slow
@each_signal
def test_a_temporary_server_ends_with_its_program(number: signal.Signals, tmp_path: Path) -> None:
    with started(("-c", TEMPORARY), tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert any("weed" in command for command in found(tmp_path).values())
        assert_nothing_stays(process, number, tmp_path)
        assert number == signal.SIGKILL or not list(tmp_path.iterdir()), "its state is removed"


@pytest.mark.slow
def test_a_server_of_the_cluster_outlives_its_starter(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with started(("-c", LASTING, str(state)), tmp_path) as process:
        assert process.wait(60) == 0
        server = S3Server(state)
        assert server.is_running()
        server.remove()
        assert not found(tmp_path)


@pytest.mark.slow
@each_signal
@pytest.mark.parametrize("program", [BENCH, PYTEST], ids=["bench", "pytest"])
def test_control_plane_and_operator_end_with_their_program(
    program: Sequence[str], number: signal.Signals, tmp_path: Path
) -> None:
    with started(program, tmp_path) as process:
        wait_until(lambda: _runs(tmp_path, "tunery_operator") or process.poll() is not None, "the operator runs", 300)
        assert _runs(tmp_path, "kube-apiserver"), f"exit code {process.poll()}"
        assert_nothing_stays(process, number, tmp_path)


def _runs(folder: Path, program: str) -> bool:
    return any(program in command for command in found(folder).values())
