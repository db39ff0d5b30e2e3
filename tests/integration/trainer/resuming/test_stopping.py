"""SIGTERM, kill -9 and a rerun: training goes on from the newest complete checkpoint, to the same weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunery_api.reasons import ExitCode

from kit.fork_server import Process
from kit.story import Case, command, environment, read_curve, run_here, start

LONG = {"maxSteps": 80, "learningRate": 1e-3}
KEPT = {"keepAfterSuccess": True}


def wait_for(path: Path, pattern: str, process: Process) -> None:
    """Wait until a file that matches is below `path`."""
    deadline = time.monotonic() + 240
    while not _is_there(path, pattern):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)


def _is_there(path: Path, pattern: str) -> bool:
    with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is listed
        return any(path.glob(pattern))
    return False


def finish(path: Path) -> str:
    """Run to the end and return what was printed."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    assert (path.parent / "out" / "manifest.json").exists()
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGKILL, -signal.SIGKILL)], ids=["term", "kill"]
)
def test_a_stopped_run_resumes(case: Case, sign: signal.Signals, code: int) -> None:
    told = sign == signal.SIGTERM
    path = case(training=LONG, **({"tracking": {"tensorboard": True}} if told else {}))
    process = start(path)
    wait_for(path.parent / "work" / "checkpoints", "*/step-*/complete.json", process)
    process.send_signal(sign)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert not (path.parent / "out" / "manifest.json").exists()
    before = read_curve(path.parent / "out-report") if told else []
    assert (path.parent / "out-report" / "training_curves.png").exists() is told
    assert "Resuming from the checkpoint of step" in finish(path)
    points = read_curve(path.parent / "out")
    assert [point["step"] for point in points] == list(range(81)), "none twice, and none left out"
    assert points[: max(0, len(before) - 1)] == before[:-1], "of its last step an evaluation was put off"
    assert not list((path.parent / "out-report").glob("[ct]*"))
    if told:
        events = EventAccumulator(str(path.parent / "out" / "runs")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 81))


def test_sigterm_is_answered_while_libraries_are_imported(case: Case) -> None:
    process = subprocess.Popen(
        command("run", case()), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(1.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert time.monotonic() - begin < 10


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "AdaLoRA"])
def test_a_resume_is_exact(case: Case, method: str) -> None:
    """20 straight steps end in the very weights of 10 steps, a resume, and 10 more."""
    path = case(method=method, lora=None, checkpoint={"everySteps": 10, "keep": 2} | KEPT, evaluation={"everySteps": 6})
    finish(path)
    straight = load_file(path.parent / "out" / "adapter_model.safetensors")
    curve = read_curve(path.parent / "out")
    shutil.rmtree(path.parent / "out")
    last = next((path.parent / "work" / "checkpoints").glob("*/step-000020"))
    shutil.rmtree(last)
    assert "Resuming from the checkpoint of step 10" in finish(path)
    resumed = load_file(path.parent / "out" / "adapter_model.safetensors")
    assert straight.keys() == resumed.keys()
    assert max(float((straight[name] - resumed[name]).abs().max()) for name in straight) == 0.0
    again = read_curve(path.parent / "out")
    assert again[:11] == curve[:11], "up to the checkpoint it is the first attempt's, its times included"
    assert [(each["step"], each.get("loss")) for each in again] == [(each["step"], each.get("loss")) for each in curve]


@pytest.mark.slow
def test_a_half_written_checkpoint_is_never_resumed_from(case: Case) -> None:
    path = case(checkpoint=KEPT)
    finish(path)
    shutil.rmtree(path.parent / "out")
    prefix = next((path.parent / "work" / "checkpoints").glob("*/step-000020")).parent
    (prefix / "step-000020" / "complete.json").unlink()
    assert "Resuming from the checkpoint of step 15" in finish(path)


@pytest.mark.slow
def test_a_finished_run_that_was_not_published_is_not_trained_again(case: Case) -> None:
    path = case(checkpoint=KEPT)
    finish(path)
    before = load_file(path.parent / "out" / "adapter_model.safetensors")
    shutil.rmtree(path.parent / "out")
    output = finish(path)
    assert "Resuming from the checkpoint of step 20" in output
    after = load_file(path.parent / "out" / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert os.path.getsize(path.parent / "out" / "README.md") > 0
    assert json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]["metrics"]["loss"] > 0


@pytest.mark.slow
def test_checkpoints_go_once_the_adapter_is_published(case: Case) -> None:
    path = case()
    finish(path)
    left = [file for file in (path.parent / "work" / "checkpoints").rglob("*") if file.is_file()]
    assert left == []
    assert "Resuming" not in finish(path), "after success nothing is resumed: the result is said again"
