"""`tunery submit` without a cluster: what it reads, what it rejects, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunery.cli import run
from tunery.manifest import to_yaml

from kit.operator.objects import lorajob


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that asks for a cluster fails."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(f"{to_yaml(lorajob('a'))}---\n{to_yaml(lorajob('b'))}")
    return path


def test_a_dry_run_of_the_client_needs_no_cluster(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "-f", str(manifest), "--dry-run", "client"]) == 0
    assert capsys.readouterr().out == "lorajob/a valid (client dry run)\nlorajob/b valid (client dry run)\n"


def test_json_is_one_object_a_line(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-o", "json", "submit", "-f", str(manifest), "--dry-run", "client"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["metadata"]["name"] for line in lines] == ["a", "b"]


def test_an_invalid_manifest_is_rejected_before_a_cluster_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(to_yaml(lorajob("a", resources={"gpus": -1, "gpu": 2})))
    assert run(["submit", "-f", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"InvalidSpec: {path} has 2 errors",
        "  spec.resources.gpus: must be at least 0, is -1",
        "  spec.resources.gpu: unknown field; did you mean gpus?",
    ]


@pytest.mark.parametrize("arguments", [["--watch", "--dry-run", "client"], ["--dry-run", "maybe"], ["extra"]])
def test_options_that_make_no_sense_are_usage_errors(manifest: Path, arguments: list[str]) -> None:
    assert run(["submit", "-f", str(manifest), *arguments]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("folder", "can't be read"), (b"\xff\xfe", "is not UTF-8"), (b"", "has no document")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "job.yaml"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert run(["submit", "-f", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path} {message}" in error


def test_stdin_is_read_and_output_fits_any_encoding(manifest: Path) -> None:
    """Also with a byte order mark, as editors of Windows write it."""
    body = lorajob("a", stop="ä ✓")
    command = [sys.executable, "-m", "tunery", "-o", "json", "submit", "-f", "-", "--dry-run", "client"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, input=b"\xef\xbb\xbf" + to_yaml(body).encode(), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == body


@pytest.mark.parametrize(("word", "near"), [("submt", "submit"), ("watc", "watch"), ("xyz", None)])
def test_a_misspelled_command_gets_a_near_one(word: str, near: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([word]) == 2
    end = f" Did you mean {near}?" if near else ""
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: No such command '{word}'.{end}"
