"""What `make test` says before it builds anything."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple

import pytest

from tools.cluster import binaries

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "code"), [(6, 1), (13, 0)])
def test_little_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["binaries", "--check"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free * 10**9))
    monkeypatch.setattr(binaries, "_DISK_AGAIN_GB", binaries._DISK_GB)
    assert binaries.main() == code
    said = capsys.readouterr().err
    assert said.startswith("12 GB of free disk are needed, and ") is bool(code)
    assert said.count("\n") == code
