"""Commands that hints give are done as they stand, by kubectl and bash, against a real API server."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_dataset
from tunery_common.inputs.location import Location
from tunery_common.storage.credentials import Credentials, from_secret

from kit.kubectl import Kubectl

SPACE = "default"


def command_of(fails: Callable[[], object]) -> str:
    """Return the command that a remedy of a failure names."""
    with pytest.raises(TuneryError) as caught:
        fails()
    [command] = [found for each in caught.value.remedies for found in re.findall("`(.+)`", each.text)]
    return str(command)


def follow(kubectl: Kubectl, command: str, folder: Path) -> None:
    words = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(words, cwd=folder, env=kubectl.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.slow
def test_data_is_put_into_a_config_map_beside_what_it_holds(api_server: Kubectl, tmp_path: Path) -> None:
    """The rows are more than an annotation holds, which a plain apply would write them into."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "FILE").write_text('{"text": "a"}\n' * 30_000)

    def missing(key: str) -> Callable[[], object]:
        place = Location(f"configmap://hinted/{key}", Credentials("none"), mount=mount, namespace=SPACE)
        return lambda: fetch_dataset(place, tmp_path / "cache")

    first = command_of(missing("a.jsonl"))
    follow(api_server, first, tmp_path)
    follow(api_server, first, tmp_path)
    (mount / "a.jsonl").write_text("{}")
    follow(api_server, command_of(missing("b.jsonl")), tmp_path)
    found = api_server.get("configmap", "hinted", SPACE)
    assert found is not None
    assert found["data"].keys() == {"a.jsonl", "b.jsonl"}


def test_a_key_is_written_into_a_secret_that_is_there(api_server: Kubectl, tmp_path: Path) -> None:
    values = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b\nc"}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hinted"}, "data": encoded}
    api_server.apply(secret, namespace=SPACE)
    for key, value in values.items():
        (tmp_path / key).write_text(value)
    follow(api_server, command_of(lambda: from_secret(tmp_path, "hinted", (), "f", SPACE)), tmp_path)
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("bc")
    follow(api_server, command_of(lambda: from_secret(tmp_path, "hinted", ["HF_TOKEN"], "f", SPACE)), tmp_path)
    found = api_server.get("secret", "hinted", SPACE)
    assert found is not None
    assert {key: base64.b64decode(value).decode() for key, value in found["data"].items()} == {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "VALUE",
        "HF_TOKEN": "VALUE",
    }
