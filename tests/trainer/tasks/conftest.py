"""The operator's way into the trainer: a run.json, Secrets as files, and a real S3 server; a sweep at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient

from kit.ended_sweep import EndedSweep, below
from kit.explained import Train, explained_runs
from kit.learned import write_learned_model
from kit.run_files import RunFiles
from kit.story import Case, Run
from tools.cluster.s3 import S3Server


@pytest.fixture
def run_file(tmp_path: Path, case: Case, s3_server: S3Server) -> Run:
    """Uploads model and data, mounts a Secret, and writes the operator's run.json."""
    case()
    return RunFiles(tmp_path, s3_server).write


@pytest.fixture(scope="session")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows the rows of make_rows: a run can make it worse."""
    return write_learned_model(tiny_model, tmp_path_factory.mktemp("learned"))


@pytest.fixture
def train(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    return explained_runs(tmp_path, learned, monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path, tiny_model: Path) -> EndedSweep:
    """A sweep on the disk."""
    (tmp_path / "model").symlink_to(tiny_model)
    place = open_store(tmp_path.as_uri(), ambient(), "test")
    ended = below(place.store, place.prefix, tiny_model)
    ended.publish_trials(tmp_path / "saved")
    return ended
