"""What the cluster's commands and the demos say while something takes its time."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest

from kit.projects import ROOT
from tools.cluster.progress import Progress
from tools.demo import jobs, serving, sweep

SLOW = """
import sys, time
from tools.cluster import __main__ as cluster
cluster.COMMANDS["env"] = lambda _: (print("begun"), time.sleep(60))
sys.argv[1:] = ["env"]
sys.exit(cluster.main())
"""

LINE = re.compile(r"(running|done|failed) +(.+) \(\d+ s\)")


def test_a_long_step_has_lines_before_its_end_at_growing_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(word_seconds=0.2) as progress:
        with progress.step("short"):
            pass
        with progress.step("long"):
            time.sleep(1.1)
    told = [found.groups() for found in map(LINE.fullmatch, capsys.readouterr().err.splitlines()) if found]
    assert (told[0], told[-1]) == (("done", "short"), ("done", "long"))
    assert set(told[1:-1]) == {("running", "long")}
    assert 2 <= len(told[1:-1]) <= 4, "after 0.2, 0.4 and 0.8 seconds, and after 1.6 on a machine that is busy"


def test_a_failed_step_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress() as progress, progress.step("step"):
        raise ValueError("broken")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0] == "failed  step (0 s)"


def test_an_object_that_nobody_has_looked_at_yet_is_pending_in_the_tables_of_the_demos() -> None:
    assert jobs.row({}) == ("Pending", "", "", "", "")
    assert serving._row({}) == ("Pending", "", "", "")
    assert sweep.row({}) == ("Pending", "", "", "", "")
    status = {"phase": "Ready", "readyText": "1/1", "adaptersText": "2/2"}
    assert serving._row(status) == ("Ready", "1/1", "2/2", "")


def test_a_command_of_the_cluster_that_ctrl_c_ends_prints_no_traceback() -> None:
    command = [sys.executable, "-uc", SLOW]
    process = subprocess.Popen(command, cwd=ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize("demo", ["tools.demo", "tools.demo.serving", "tools.demo.sweep"])
def test_a_demo_on_a_cluster_of_yours_names_in_a_line_what_it_lacks(demo: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "CLUSTER": "existing"}
    command = [sys.executable, "-m", demo]
    done = subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("MissingEnvironment: CLUSTER=existing needs AWS_ENDPOINT_URL, ")
    assert "TUNERY_SERVER_IMAGE" in line
