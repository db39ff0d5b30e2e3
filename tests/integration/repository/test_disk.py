"""What the demos say of the disk before they begin: only where it is too small for what is not there yet."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path

import pytest

from kit.projects import ROOT
from tools.cluster import binaries, disk

Usage = namedtuple("Usage", "total used free")
ENGINE = "registry/docker/registry/v2/repositories/tunery-engine"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a cluster's state, which is not there, beside an empty cache."""
    monkeypatch.setattr(disk, "cache_dir", lambda: tmp_path / "tunery")
    return tmp_path / "state" / "cluster"


def told(state: Path, monkeypatch: pytest.MonkeyPatch, free: float, engine: bool) -> str | None:
    monkeypatch.setattr("tools.cluster.disk.shutil.disk_usage", lambda _: Usage(0, 0, int(free * 1e9)))
    return disk.warning(state, engine=engine)


def have(state: Path, *names: str) -> None:
    for name in names:
        (state.parents[1] / "tunery" / name).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("there", "cluster", "engine", "needed"),
    [
        ((), (), False, 34),
        ((), (), True, 57),
        (("buildah", "registry", "bin"), (), False, 15),
        (("buildah", "registry", "bin"), ("containerd",), False, 3),
        (("buildah", "registry", "bin"), ("containerd",), True, 26),
        (("buildah", ENGINE, "bin"), ("containerd",), True, 12),
        (("buildah", ENGINE, "bin"), ("containerd", "engine-vllm"), True, 3),
    ],
)
def test_what_is_there_counts(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    cluster: tuple[str, ...],
    engine: bool,
    needed: int,
) -> None:
    have(state, *there)
    for name in cluster:
        (state / name).mkdir(parents=True)
    assert told(state, monkeypatch, needed, engine) is None
    text = told(state, monkeypatch, needed - 0.6, engine)
    assert text is not None
    assert text.startswith(f"{needed - 1} GB of disk are free, and some {needed} more are about to be written")
    assert str(state) in text


def test_the_pages_say_what_it_takes_from_nothing(state: Path) -> None:
    """With tests/.venv, 7 GB, which `make setup` makes before."""
    for page, needed in (
        ("README.md", "40 GB of disk (65 GB with `make demo-serving`)"),
        ("docs/quickstart.md", "40 GB of free disk (65 with `demo-serving`)"),
    ):
        assert needed in " ".join((ROOT / page).read_text().split()), page
    assert disk.lacking(state, engine=False) + 7 == pytest.approx(40, abs=2)
    assert disk.lacking(state, engine=True) + 7 == pytest.approx(65, abs=2)


@pytest.mark.parametrize(("free", "code"), [(6, 1), (13, 0)])
def test_make_test_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["binaries", "--check"])
    monkeypatch.setattr("tools.cluster.disk.shutil.disk_usage", lambda _: Usage(0, 0, free * 10**9))
    monkeypatch.setattr(binaries, "_DISK_AGAIN_GB", binaries._DISK_GB)
    assert binaries.main() == code
    said = capsys.readouterr().err
    assert said.startswith("12 GB of free disk are needed, and ") is bool(code)
    assert said.count("\n") == code
