"""`make try` with a tiny model and two steps: the trainer's own process, its results, and how an interrupt ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kit import kubectl_yaml
from kit.installation import ROOT
from kit.processes import with_environment
from kit.tiny_models import write_chat_model
from tools.cluster.waiting import wait_until
from tools.demo.local_job import MANIFEST
from tools.demo.recording import record, to_svg

PROGRAM = """
import sys
from pathlib import Path
from tools.cluster import model
from tools.demo import local, local_job
folder, manifest = map(Path, sys.argv[1:3])
model.ensure = lambda: folder.parent / "model"
sys.exit(local.ended(lambda: local_job.run(folder, manifest)))
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The demo's manifest with two steps, LoRA and short rows, beside a tiny model."""
    write_chat_model(tmp_path / "model")
    manifest = kubectl_yaml.load(MANIFEST.read_text())
    manifest["spec"]["method"] = "LoRA"
    manifest["spec"]["training"] |= {"maxSteps": 2, "maxLength": 64}
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path


def start(manifest: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the job with `manifest`, as `make try` does; `folder` is TMPDIR, by which its processes are found."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "try"), str(manifest)],
        cwd=ROOT / "tests",
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_job_leaves_no_process_and_the_next_one_succeeds(
    number: signal.Signals, small: Path, tmp_path: Path
) -> None:
    log = tmp_path / "try" / "trainer.log"
    process = start(small, tmp_path)
    wait_until(lambda: (log.is_file() and log.stat().st_size) or process.poll() is not None, "the trainer runs", 120)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told.count("\n")) == (130, 1)
    assert told.startswith("Interrupted: ")
    wait_until(lambda: not with_environment(f"TMPDIR={tmp_path}"), "no process stays", 30)

    again = start(small, tmp_path)
    shown, errors = again.communicate(timeout=300)
    assert (again.returncode, errors) == (0, "")
    assert "Traceback" not in shown
    assert "Warning" not in shown
    for expected in ("Are you a robot?\n  base model   ", "\nevaluation loss  ", " % (± ", "make demo"):
        assert expected in shown
    assert (tmp_path / "try" / "adapters" / "quickstart" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_job_that_fails_shows_the_end_of_the_trainers_log(small: Path, tmp_path: Path) -> None:
    small.write_text(small.read_text().replace("maxSteps: 2", "maxSteps: -2"))
    process = start(small, tmp_path)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told.startswith("make try: the job failed with exit code ")
    assert "maxSteps" in told
    assert "Traceback" not in told


def test_a_recording_shows_the_last_screen_and_loads_nothing() -> None:
    command = ["printf", r"Install\n  1 s\r\033[K  2 s\r\033[K  done in 3 s\n"]
    text = record(command)
    assert text == "Install\n  done in 3 s\n"
    svg = to_svg(["make", "try"], text)
    assert "done&#160;in&#160;3&#160;s" in svg
    assert "url(http" not in svg
    assert "@import" not in svg
