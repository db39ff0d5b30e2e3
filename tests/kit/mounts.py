"""File systems that a test mounts. Only root may mount: the tests of other users are skipped, and pytest says so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path, at: Path) -> Iterator[Path]:
    """Mount `folder` at `at`, without the right to write."""
    with _mounted(at, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", at], check=True)
        yield at


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """Mount an empty file system of 1 MiB."""
    with _mounted(at, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        yield at


@contextmanager
def _mounted(at: Path, *what: str) -> Iterator[None]:
    if os.geteuid() != 0:  # CI runs these tests as root
        pytest.skip("only root may mount a file system")
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *what, at], check=True)
    try:
        yield
    finally:
        # The trace of an error may still hold a file open.
        subprocess.run(["umount", "--lazy", at], check=True)
