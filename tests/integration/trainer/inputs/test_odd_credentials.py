"""A Secret whose value has odd characters is refused by its key's name, and no value is shown, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tunery_api.failures import Failure
from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport
from tunery_common.storage import credentials

from kit.story import manifest, run_here
from tools.cluster.s3 import S3Server

FIRST, SECOND = "FwoGZXIvYXdzEXAMPLE/+token", "rest-of-the-TOKEN=="
S3_VALUES = {
    "AWS_ACCESS_KEY_ID": "ASKEYIDFORTHISTEST",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "AWS_SESSION_TOKEN": f"{FIRST}{SECOND}",
}

Preflight = Callable[[dict[str, dict[str, str]]], tuple[Failure, str]]


@pytest.fixture
def preflight(tmp_path: Path, s3_server: S3Server) -> Preflight:
    """Mounts Secrets by purpose, runs preflight with them, and returns its failure and everything it said."""

    def run(secrets: dict[str, dict[str, str]]) -> tuple[Failure, str]:
        uris = {"dataset": "s3://datasets/none.jsonl", "output": f"s3://adapters/{tmp_path.name}"}
        uris["model"] = "hf://owner/model" if "HF_TOKEN" in secrets.get("model", {}) else "s3://models/none"
        blocks: dict[str, Any] = {name: {"uri": uri, "secretRef": {"name": "s3"}} for name, uri in uris.items()}
        wandb = {"project": "p", "secretRef": {"name": "wandb"}} if "wandb" in secrets else None
        spec = manifest(tmp_path, **blocks, tracking={"wandb": wandb} if wandb else {})["spec"]
        mounted = {}
        for purpose in (*uris, *(["wandb"] if wandb else [])):
            folder = tmp_path / "secrets" / purpose
            folder.mkdir(parents=True)
            for key, value in (s3_server.environment() | secrets.get(purpose, {})).items():
                (folder / key).write_text(value)
            mounted[purpose] = {"name": "s3", "path": str(folder), "field": f"spec.{purpose}.secretRef"}
        content = {
            "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
            "loraJob": spec,
            "outputUri": uris["output"],
            "secrets": mounted,
            "workDir": str(tmp_path / "work"),
        }
        (tmp_path / "run.json").write_text(json.dumps(content))
        message = tmp_path / "termination"
        done = run_here("preflight", tmp_path / "run.json", TUNERY_TERMINATION_PATH=str(message))
        assert done.returncode != ExitCode.OK
        failure = PreflightReport.model_validate_json(message.read_text()).failure
        assert failure is not None
        return failure, done.stdout + done.stderr + message.read_text()

    return run


def shown(secret: str, output: str) -> list[str]:
    """Return the parts of a secret, as it is or encoded for a URL, that stand in what was said."""
    parts = [part for part in secret.replace("\x07", "\n").split("\n") if len(part) >= 6]
    return [part for part in (*parts, *map(quote, parts)) if part in output]


@pytest.mark.parametrize("purpose", ["model", "dataset", "output"])
@pytest.mark.parametrize("key", S3_VALUES)
def test_an_s3_key_with_a_line_break_within(preflight: Preflight, purpose: str, key: str) -> None:
    value = f"{FIRST}\n{SECOND}\n"
    failure, output = preflight({purpose: S3_VALUES | {key: value}})
    assert failure.reason == "SecretNotFound"
    assert failure.message.startswith(f"spec.{purpose}.secretRef: the key {key} of the Secret s3 ")
    assert "line break" in failure.message
    patch = f"""kubectl patch secret s3 -n team --type=merge -p '{{"stringData":{{"{key}":"VALUE"}}}}'"""
    assert patch in failure.remedies[0].text
    assert not shown(value, output)


@pytest.mark.parametrize("odd", ["\n", "\r\n", " ", "\t", "\x07", "\u200b", "ü"])
def test_a_hub_token_with_an_odd_character_within(preflight: Preflight, odd: str) -> None:
    value = f"hf_{FIRST}{odd}{SECOND}"
    failure, output = preflight({"model": {"HF_TOKEN": value}})
    assert failure.reason == "SecretNotFound"
    assert "the key HF_TOKEN of the Secret s3" in failure.message
    assert not shown(f"hf_{FIRST}\n{SECOND}", output)


def test_a_tracking_key_with_a_line_break_within(preflight: Preflight) -> None:
    failure, output = preflight({"wandb": {"WANDB_API_KEY": f"{FIRST}\n{SECOND}"}})
    assert "the key WANDB_API_KEY" in failure.message
    assert not shown(f"{FIRST}\n{SECOND}", output)


def test_a_line_break_at_the_end_is_no_part_of_the_value(preflight: Preflight, s3_server: S3Server) -> None:
    values = {key: f" {value}\r\n" for key, value in s3_server.environment().items()}
    failure, output = preflight({"model": values, "dataset": values, "output": values})
    assert failure.reason == "ModelNotFound"
    assert not shown(s3_server.secret_key, output)


@pytest.mark.parametrize("key", S3_VALUES)
def test_what_a_library_says_of_an_odd_value_is_hidden(
    preflight: Preflight, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second check: if such a value came through, the HTTP client would name it in its refusal."""
    monkeypatch.setattr(credentials, "_check_characters", lambda *_: None)
    value = f"{FIRST}\n{SECOND}\x07more-of-it"
    failure, output = preflight({"output": S3_VALUES | {key: value}})
    assert failure.reason in ("StorageUnavailable", "StorageAccessDenied")
    assert not shown(value, output)


def test_what_a_hub_client_says_of_an_odd_token_is_hidden(
    preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_check_characters", lambda *_: None)
    value = f"{FIRST}\n{SECOND}\x07more-of-it"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    _, output = preflight({"model": {"HF_TOKEN": value, "HF_ENDPOINT": "http://127.0.0.1:1"}})
    assert not shown(value, output)
