"""What `make try` says where it cannot start, and while it runs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tunery_api.runspec import ProgressMetric, TrainerStatus
from tunery_api.status import Phase

from tools.cluster import disk
from tools.demo import local
from tools.demo.local_job import progress_text


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`ended` takes over both signals of the process."""
    before = {number: signal.getsignal(number) for number in local.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_pythons_of_the_lock_pass(version: tuple[int, int]) -> None:
    local.check_python(version)


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14)])
def test_another_python_is_one_sentence(version: tuple[int, int]) -> None:
    with pytest.raises(local.TryError, match=rf"^python3 is Python 3\.{version[1]}, and the trainer needs .* Fix: "):
        local.check_python(version)


def test_little_disk_is_one_sentence_that_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(20 * 10**9, 14 * 10**9, 6 * 10**9))
    disk.require(6, [tmp_path])
    needed = re.escape(f"10 GB of free disk are needed, and {tmp_path} has 6.0 GB. Fix: ")
    with pytest.raises(disk.NoRoom, match=f"^{needed}"):
        disk.require(10, [tmp_path / "not" / "there"])


def test_a_missing_venv_module_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(local.TryError, match=r"^Python's venv module is missing\. Fix: "):
        local.install_uv(tmp_path / "uv")


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], "no reason was given"),
        (["error: Failed to fetch: `torch`\n", "  Caused by: dns error.\n", "\n"], "dns error"),
        (["  × Failed to download `torch`\n", "  ╰─▶ cause: Connection refused\n"], "Connection refused"),
        (
            ["ERROR: No matching distribution found for uv\n", "make: *** [Makefile:38: uv] Error 1\n"],
            "No matching distribution found for uv",
        ),
    ],
    ids=["silent", "caused-by", "arrow", "pip"],
)
def test_the_cause_of_a_failed_download_is_its_last_line(lines: list[str], cause: str) -> None:
    assert str(local.not_installed(lines)).startswith(f"the packages could not be installed: {cause}. Fix: ")


def test_downloads_are_counted_in_the_lines_of_uv() -> None:
    downloads = local.Downloads()
    assert str(downloads) == ""
    for line in (
        "Using CPython 3.12",
        "Downloading torch (1.0GiB)",
        "Downloading numpy (512.0MiB)",
        " Downloaded numpy",
    ):
        downloads.read(line)
    assert str(downloads) == "512 of 1,536 MiB downloaded"


def test_another_lock_makes_the_environment_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in local.LOCKED:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a")
    monkeypatch.setattr(local, "ROOT", tmp_path)
    before = local.stamp()
    assert before == local.stamp()
    (tmp_path / "trainer-image" / "uv.lock").write_text("b")
    assert before != local.stamp()


def test_a_step_that_fails_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with local.Step("First") as step:
        step.note = "all of it"
    with pytest.raises(local.TryError), local.Step("Second"):
        raise local.TryError("why")
    assert capsys.readouterr().out.splitlines() == ["▸ First", "  done in 0 s: all of it", "▸ Second"]


def test_a_step_shows_its_note_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "LINE_SECONDS", 0.01)
    told = ""
    with local.Step("Wait") as step:
        step.note = "half"
        while "half" not in told:
            told += capsys.readouterr().out
    assert "  0 s: half\n" in told


def _fail() -> None:
    raise local.TryError("why. Fix: that.")


def _interrupted() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("steps", "code", "sentence"),
    [
        (_fail, 1, "make try: why. Fix: that.\n"),
        (_interrupted, 130, "Interrupted: everything that make try started has ended. Run it again to start over.\n"),
    ],
    ids=["error", "sigterm"],
)
def test_an_early_end_is_one_sentence_and_an_exit_code(
    steps: local.Steps, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local.ended(steps) == code
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (TrainerStatus(phase=Phase.EVALUATING), "Evaluating"),
        (
            TrainerStatus(
                phase=Phase.TRAINING,
                step=3,
                total_steps=30,
                estimated_remaining_seconds=40,
                metrics=[ProgressMetric(name="loss", value="2.73285"), ProgressMetric(name="grad_norm", value="1")],
            ),
            "Training, step 3 of 30, loss 2.733, 40 s left",
        ),
    ],
    ids=["phase", "step"],
)
def test_progress_is_one_line(status: TrainerStatus, text: str) -> None:
    assert progress_text(status) == text
