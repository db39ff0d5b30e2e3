"""How much memory a container has in use: as the kubelet counts it, of the limit that it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery_trainer.process.memory import container_memory


def cgroup(folder: Path, limit: str, current: str = "900\n", stat: str = "anon 300\ninactive_file 500\n") -> Path:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(current)
    (folder / "memory.stat").write_text(stat)
    return folder


def test_pages_of_files_that_can_be_dropped_do_not_count(tmp_path: Path) -> None:
    assert container_memory(cgroup(tmp_path, "1000\n")) == (400, 1000)


@pytest.mark.parametrize(("limit", "current"), [("max\n", "900\n"), ("1000\n", "many\n")])
def test_without_a_limit_or_a_number_nothing_is_said(tmp_path: Path, limit: str, current: str) -> None:
    assert container_memory(cgroup(tmp_path, limit, current)) is None
    assert container_memory(tmp_path / "nowhere") is None
