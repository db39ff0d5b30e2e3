"""How much memory a container has in use: as the kubelet counts it, of the limit that it has."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tunery_trainer.process.memory import container_memory

UNLIMITED = "9223372036854771712\n"
"""As cgroup v1 says that there is no limit."""


def cgroup(folder: Path, limit: str, current: str = "900\n", stat: str = "anon 300\ninactive_file 500\n") -> Path:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(current)
    (folder / "memory.stat").write_text(stat)
    return folder


def cgroup_v1(folder: Path, limit: str) -> Path:
    memory = folder / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text(limit)
    (memory / "memory.usage_in_bytes").write_text("900\n")
    (memory / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500\n")
    return folder


def statm(folder: Path, text: str = "900 70 30 1 0 60 0\n") -> Path:
    path = folder / "statm"
    path.write_text(text)
    return path


def test_pages_of_files_that_can_be_dropped_do_not_count(tmp_path: Path) -> None:
    assert container_memory(cgroup=cgroup(tmp_path, "1000\n")) == (400, 1000)


def test_the_older_cgroup_says_the_same(tmp_path: Path) -> None:
    assert container_memory(cgroup=cgroup_v1(tmp_path, "1000\n")) == (400, 1000)


@pytest.mark.parametrize(("limit", "current"), [("max\n", "900\n"), ("1000\n", "many\n")])
def test_without_a_limit_or_a_number_nothing_is_said(tmp_path: Path, limit: str, current: str) -> None:
    assert container_memory(cgroup=cgroup(tmp_path, limit, current)) is None
    assert container_memory(cgroup=tmp_path / "nowhere") is None


def test_where_the_cgroup_has_no_limit_the_one_of_the_manifest_counts(tmp_path: Path) -> None:
    mine = (70 - 30) * resource.getpagesize()
    for folder in (cgroup(tmp_path, "max\n"), tmp_path / "nowhere"):
        assert container_memory(5_000_000, folder, statm(tmp_path)) == (mine, 5_000_000)
    assert container_memory(5_000_000, cgroup_v1(tmp_path, UNLIMITED), statm(tmp_path)) == (mine, 5_000_000)


def test_the_limit_that_is_kept_goes_before_the_one_that_was_asked_for(tmp_path: Path) -> None:
    assert container_memory(5000, cgroup(tmp_path, "1000\n"), statm(tmp_path)) == (400, 1000)


def test_a_process_that_is_not_counted_is_not_guessed(tmp_path: Path) -> None:
    assert container_memory(5000, tmp_path, tmp_path / "statm") is None
    assert container_memory(5000, tmp_path, statm(tmp_path, "hardly any\n")) is None


MANY_LENGTHS = """
import sys
from pathlib import Path
from tunery_trainer.process.environment import prepare_environment
prepare_environment(Path(sys.argv[1]), 0)
import torch
weights = [torch.randn(64, width, dtype=torch.bfloat16) for width in (64, 72, 80, 88)]
def held(rows):
    for length in rows:
        for weight in weights:
            torch.ones(length, 64, dtype=torch.bfloat16) @ weight
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
before = held([1000])
print(held(range(1, 301)) - before)
"""


@pytest.mark.slow
def test_rows_of_ever_new_lengths_take_no_more_memory(tmp_path: Path) -> None:
    """oneDNN's kernels of 1,200 products in BFloat16 came to 650 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_LENGTHS, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 100
