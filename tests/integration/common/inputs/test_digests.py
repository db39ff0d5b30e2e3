"""What was hashed once is not read again, a changed file is, and a run does not wait for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs import digests
from tunery_common.inputs.digests import BOOK, FolderDigest

from kit import mounts

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, as they are."""
    names: list[str] = []
    plain = digests.hash_file

    def spy(path: Path) -> str:
        names.append(path.name)
        return plain(path)

    monkeypatch.setattr(digests, "hash_file", spy)
    return names


def _digest(folder: Path) -> str:
    return FolderDigest.begin(folder, FILES).wait()


def _expected(files: dict[str, bytes]) -> str:
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def test_a_second_run_reads_nothing(folder: Path, read: list[str]) -> None:
    assert _digest(folder) == _expected(FILES)
    assert sorted(read) == sorted(FILES)
    read.clear()
    assert _digest(folder) == _expected(FILES)
    assert read == []


@pytest.mark.parametrize("kind", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(folder: Path, read: list[str], kind: str) -> None:
    _digest(folder)
    path = folder / "model.safetensors"
    status = path.stat()
    if kind == "size":
        path.write_bytes(b"v" * 1001)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif kind == "time":
        path.write_bytes(b"v" * 1000)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        (folder / "new").write_bytes(b"v" * 1000)
        os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (folder / "new").rename(path)
    read.clear()
    assert _digest(folder) == _expected({**FILES, "model.safetensors": path.read_bytes()})
    assert read == ["model.safetensors"]


def test_a_file_that_is_written_while_it_is_read_is_not_remembered(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = digests.hash_file

    def write_meanwhile(path: Path) -> str:
        found = plain(path)
        if path.name == "model.safetensors":
            path.write_bytes(b"v" * 1001)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(digests, "hash_file", write_meanwhile)
        _digest(folder)
    assert _digest(folder) == _expected({**FILES, "model.safetensors": b"v" * 1001})


@pytest.mark.parametrize("text", ["", "[]", '{"config.json": 3}', '{"config.json": []}', "\0"])
def test_a_book_that_is_none_is_passed_over(folder: Path, text: str) -> None:
    (folder / BOOK).write_text(text)
    assert _digest(folder) == _expected(FILES)


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    with mounts.read_only(folder, folder):
        yield folder


def test_a_claim_that_is_mounted_read_only_is_no_error(read_only: Path) -> None:
    assert _digest(read_only) == _expected(FILES)
    assert not (read_only / BOOK).exists()


def test_nobody_waits_while_the_files_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    plain = digests.hash_file

    def slow(path: Path) -> str:
        assert let_go.wait(20)
        return plain(path)

    monkeypatch.setattr(digests, "hash_file", slow)
    begun = FolderDigest.begin(folder, FILES)
    let_go.set()
    assert begun.wait() == _expected(FILES)


def test_reading_does_not_hold_up_the_end_of_a_run() -> None:
    program = """
import pathlib, time
from tunery_common.inputs import digests
digests.hash_file = lambda path: time.sleep(60)
digests.FolderDigest.begin(pathlib.Path("/etc"), ["hosts"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)


def test_a_file_that_is_gone_says_so(folder: Path) -> None:
    begun = FolderDigest.begin(folder, [*FILES, "model-2.safetensors"])
    with pytest.raises(TuneryError, match=r"spec\.model\.uri: cannot read model-2\.safetensors") as caught:
        begun.wait()
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_folder_in_the_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    (folder / "model-2.safetensors").mkdir()
    begun = FolderDigest.begin(folder, [*FILES, "model-2.safetensors"])
    with pytest.raises(TuneryError, match=r"cannot read model-2\.safetensors: Is a directory") as caught:
        begun.wait()
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
