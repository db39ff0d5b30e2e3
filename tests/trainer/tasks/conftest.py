"""The operator's way into the trainer: a run.json, Secrets as files, and a real S3 server; a sweep at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient

from cluster.s3 import S3Server
from kit.ended_sweep import EndedSweep, below
from kit.explained import Train, explained_runs
from kit.learned import write_learned_model
from kit.story import Case, Run, manifest


@pytest.fixture
def run_file(tmp_path: Path, case: Case, s3_server: S3Server) -> Run:
    """Uploads model and data, mounts a Secret, and writes the operator's run.json."""
    case()
    client = s3_server.client()
    for path in (tmp_path / "model").iterdir():
        client.upload_file(str(path), "models", f"{tmp_path.name}/{path.name}")
    client.upload_file(str(tmp_path / "data.jsonl"), "datasets", f"{tmp_path.name}/data.jsonl")
    secret = tmp_path / "secret"
    secret.mkdir()
    for name, value in s3_server.environment().items():
        (secret / name).write_text(value)

    def write(
        secret_path: Path = secret,
        bucket: str = "adapters",
        uid: str = "u-1",
        name: str = "run.json",
        own: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        output = f"s3://{bucket}/{tmp_path.name}/out"
        spec: dict[str, Any] = manifest(
            tmp_path,
            model={"uri": f"s3://models/{tmp_path.name}", "secretRef": {"name": "s3"}},
            dataset={"uri": f"s3://datasets/{tmp_path.name}/data.jsonl", "secretRef": {"name": "s3"}},
            output={"uri": output, "secretRef": {"name": "s3"}},
            **changes,
        )["spec"]
        mounted = {
            purpose: {"name": "s3", "path": str(secret_path), "field": f"spec.{purpose}.secretRef"}
            for purpose in ("model", "dataset", "output")
        }
        content = {
            "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": uid},
            "loraJob": spec,
            "outputUri": output,
            "checkpointUri": f"s3://adapters/{tmp_path.name}/checkpoints/{uid}",
            "secrets": mounted,
            "memoryBytes": 8 * 2**30,
            "workDir": str(tmp_path / "work"),
        }
        path = tmp_path / name
        path.write_text(json.dumps(content | (own or {})))
        return path

    return write


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
