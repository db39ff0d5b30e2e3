"""A target of make that has no room on the disk for what it writes ends with one sentence, before it writes."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path

import pytest

from kit.projects import ROOT
from tools.cluster import binaries, disk
from tools.cluster.disk import DEMO, SERVING, TEST

Usage = namedtuple("Usage", "total used free")
CACHE = ("bin", "buildah", "registry")
ENGINE = "registry/docker/registry/v2/repositories/tunery-engine"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a cluster's state, which is not there, beside an empty cache and an empty repository."""
    monkeypatch.setattr(disk, "cache_dir", lambda: tmp_path / "tunery")
    monkeypatch.setattr(disk, "REPOSITORY", tmp_path / "repository")
    return tmp_path / "state" / "cluster"


def free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr("tools.cluster.disk.shutil.disk_usage", lambda _: Usage(0, 0, int(gigabytes * 1e9)))


@pytest.mark.parametrize(
    ("goal", "environment", "cache", "cluster", "needed"),
    [
        (TEST, False, (), (), 12),
        (TEST, True, ("bin",), (), 3),
        (DEMO, False, (), (), 42),
        (SERVING, False, (), (), 65),
        (DEMO, True, CACHE, (), 15),
        (DEMO, True, CACHE, ("containerd",), 3),
        (SERVING, True, CACHE, ("containerd",), 26),
        (SERVING, True, (*CACHE, ENGINE), ("containerd",), 12),
        (SERVING, True, (*CACHE, ENGINE), ("containerd", "engine-vllm"), 3),
    ],
)
def test_what_is_there_counts(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    goal: str,
    environment: bool,
    cache: tuple[str, ...],
    cluster: tuple[str, ...],
    needed: int,
) -> None:
    root = state.parents[1]
    there = [*(root / "tunery" / name for name in cache), *(state / name for name in cluster)]
    for path in [*there, *[root / "repository" / "tests" / ".venv"] * environment]:
        path.mkdir(parents=True, exist_ok=True)
    free(monkeypatch, needed)
    disk.check(goal, state)
    free(monkeypatch, needed - 0.6)
    with pytest.raises(disk.NoRoom, match=f"^{needed} GB of free disk are needed, and .* has {needed - 0.6:.1f} GB"):
        disk.check(goal, state)


def test_the_pages_say_what_it_takes_from_nothing() -> None:
    """The numbers are those of `test_what_is_there_counts`."""
    for page, needed in (
        ("README.md", "42 GB of disk (65 GB with `make demo-serving`)"),
        ("docs/quickstart.md", "42 GB of free disk (65 with `demo-serving`)"),
    ):
        assert needed in " ".join((ROOT / page).read_text().split()), page


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(("goal", "needed"), [(TEST, 12), (DEMO, 42)])
@pytest.mark.parametrize("missing", [0, 1])
def test_make_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], goal: str, needed: int, missing: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["binaries", goal])
    monkeypatch.setattr(binaries, "default_state_dir", lambda: Path("/nowhere"))
    monkeypatch.setattr("tools.cluster.packages.os.geteuid", lambda: 0)
    free(monkeypatch, needed - missing)
    assert binaries.main() == missing
    said = capsys.readouterr().err
    assert said.startswith(f"{needed} GB of free disk are needed, and ") is bool(missing)
    assert said.count("\n") == missing


def test_make_demo_without_root_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["binaries", DEMO])
    monkeypatch.setattr("tools.cluster.packages.os.geteuid", lambda: 1000)
    assert binaries.main() == 1
    said = "The local cluster runs containers. Fix: run make as root (sudo -i opens a shell).\n"
    assert capsys.readouterr().err == said
