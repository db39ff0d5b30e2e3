"""As many threads as the container has CPUs, whichever version of cgroup says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunery_trainer.process.environment import cpu_limit

V2, QUOTA, PERIOD = "cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({V2: "200000 100000\n"}, 2),
        ({V2: "50000 100000\n"}, 1),
        ({V2: "6400000 100000\n"}, 8),  # more than the node has
        ({V2: "max 100000\n"}, 8),
        ({QUOTA: "300000\n", PERIOD: "100000\n"}, 3),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, 8),
        ({QUOTA: "300000\n"}, 8),
        ({V2: "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_cpu_limit(files: dict[str, str], limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit
