"""The init container: the base model in its folder, from S3, a claim or nowhere, and its last words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode
from tunery_api.serving import ServeSpec
from tunery_server.adapters.base import read_base
from tunery_server.fetch_model import main

from kit.server.loader import WHO, write_base
from tools.cluster.s3 import S3Server


def spec_of(tmp_path: Path, uri: str, **more: Any) -> ServeSpec:
    (tmp_path / "model").mkdir(exist_ok=True)
    fields = {"identity": WHO.model_dump(), "model": {"uri": uri}, "servedName": "org/base", **more}
    return ServeSpec.model_validate(fields | {"modelDir": str(tmp_path / "model")})


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNERY_TERMINATION_PATH", str(tmp_path / "termination"))
    return tmp_path / "termination"


def secret(tmp_path: Path, server: S3Server) -> dict[str, str]:
    folder = tmp_path / "secret"
    folder.mkdir()
    for key, value in server.environment().items():
        (folder / key).write_text(value)
    return {"name": "s3", "path": str(folder), "field": "spec.model.secretRef"}


def upload(server: S3Server, folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        server.client().put_object(Bucket="models", Key=f"{prefix}/{path.name}", Body=path.read_bytes())


@pytest.mark.slow
def test_a_model_in_a_bucket_lies_in_the_folder_under_its_own_names(
    tmp_path: Path, s3_server: S3Server, said: Path
) -> None:
    source = write_base(tmp_path / "source")
    (source / "modeling.py").write_text("raise SystemExit")
    upload(s3_server, source, "served")
    spec = spec_of(tmp_path, "s3://models/served", modelSecret=secret(tmp_path, s3_server))
    assert main(spec) == ExitCode.OK
    assert not said.exists()
    model = Path(spec.model_dir)
    assert {path.name for path in model.iterdir() if not path.name.startswith(".")} == {
        "config.json",
        "model.safetensors",
    }
    assert (model / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    base = read_base(model)
    assert base.digest is not None
    assert len(base.tensors) == 6
    inode = (model / "model.safetensors").stat().st_ino
    assert main(spec) == ExitCode.OK
    assert (model / "model.safetensors").stat().st_ino == inode, "nothing is brought twice"


def test_a_model_in_a_claim_is_used_where_it_lies(tmp_path: Path, said: Path) -> None:
    write_base(tmp_path / "claim" / "llama")
    (tmp_path / "claim" / "llama" / "pytorch_model.bin").write_bytes(b"pickle")
    spec = spec_of(tmp_path, "pvc://claim/llama", modelMount=str(tmp_path / "claim"))
    assert main(spec) == ExitCode.OK
    weights = Path(spec.model_dir, "model.safetensors")
    assert weights.is_symlink()
    assert weights.resolve() == tmp_path / "claim" / "llama" / "model.safetensors"
    assert not Path(spec.model_dir, "pytorch_model.bin").exists()
    assert read_base(Path(spec.model_dir)).model_type == "llama"
    (tmp_path / "claim" / "llama" / "generation_config.json").write_text("{}")
    shutil.copy(weights, tmp_path / "claim" / "llama" / "other.safetensors")
    assert main(spec) == ExitCode.OK
    (tmp_path / "claim" / "llama" / "other.safetensors").unlink()
    assert main(spec) == ExitCode.OK
    assert not Path(spec.model_dir, "other.safetensors").is_symlink()
    assert not said.exists()


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (shutil.rmtree, "ModelNotFound", "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "ModelUnsupported", "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "ModelUnsupported", "no safetensors files"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "ModelUnsupported",
            "holds an adapter beside the model",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
            "ModelUnsupported",
            "spec.model.uri: model.safetensors is cut off",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_told_in_the_termination_message(
    tmp_path: Path, said: Path, damage: Any, reason: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(write_base(tmp_path / "claim" / "llama"))
    assert main(spec_of(tmp_path, "pvc://claim/llama", modelMount=str(tmp_path / "claim"))) == ExitCode.USER_ERROR
    failure = json.loads(said.read_text())["failure"]
    assert failure["reason"] == reason
    assert words in failure["message"]
    assert failure["remedies"]
    assert reason in capsys.readouterr().err


def test_a_secret_that_is_missing_is_named_and_a_defect_is_a_defect(
    tmp_path: Path, said: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"name": "s3", "path": str(tmp_path / "nothing"), "field": "spec.model.secretRef"}
    assert main(spec_of(tmp_path, "s3://models/served", modelSecret=missing)) == ExitCode.USER_ERROR
    assert "spec.model.secretRef: the Secret s3" in json.loads(said.read_text())["failure"]["message"]
    monkeypatch.setattr("tunery_server.fetch_model.bring_model", lambda spec: 1 / 0)
    assert main(spec_of(tmp_path, "s3://models/served")) == ExitCode.BUG
    assert json.loads(said.read_text())["failure"]["reason"] == "InternalError"


def test_a_model_larger_than_the_disk_is_refused_before_its_first_byte(
    tmp_path: Path, s3_server: S3Server, said: Path
) -> None:
    upload(s3_server, write_base(tmp_path / "source"), "large")
    disk = {"bytes": 1000, "field": "spec.resources.ephemeralStorage"}
    spec = spec_of(tmp_path, "s3://models/large", modelSecret=secret(tmp_path, s3_server), disk=disk)
    assert main(spec) == ExitCode.USER_ERROR
    failure = json.loads(said.read_text())["failure"]
    assert failure["reason"] == "WontFit"
    assert "spec.resources.ephemeralStorage" in failure["message"]


def test_without_api_keys_it_is_said_before_the_model_is_brought(tmp_path: Path, said: Path) -> None:
    keys = {"name": "keys", "path": str(tmp_path / "keys"), "field": "spec.access.apiKeysSecretRef"}
    spec = spec_of(tmp_path, "s3://models/served", apiKeys=keys)
    assert main(spec) == ExitCode.USER_ERROR
    failure = json.loads(said.read_text())["failure"]
    assert failure["reason"] == "SecretNotFound"
    assert "spec.access.apiKeysSecretRef: the Secret keys is missing" in failure["message"]
    assert failure["remedies"][0]["text"].startswith("Create it with one key for each client")
    assert list(Path(spec.model_dir).iterdir()) == []
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "web").write_text("key-of-web")
    assert main(spec) != ExitCode.OK
    assert "apiKeysSecretRef" not in said.read_text(), "now it is the model that cannot be brought"
