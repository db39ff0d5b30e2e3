"""`tunery submit` as a tenant against a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunery.cli import run
from tunery.manifest import to_yaml

from kit.operator.api import Json, eventually
from kit.operator.objects import Namespace, adaptermerge, adapterserver, lorajob

Run = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def write(path: Path, *bodies: Json) -> str:
    path.write_text("---\n".join(map(to_yaml, bodies)))
    return str(path)


def test_all_objects_of_a_file_are_created(as_tenant: Run, team: Namespace, file: Path) -> None:
    merge = adaptermerge(
        "m", [{"loraJobRef": {"name": "a"}, "weight": 0.5}, {"loraJobRef": {"name": "b"}, "weight": 0.5}]
    )
    done = as_tenant("submit", "-f", write(file, lorajob("a", training={"learningRate": 2e-4}), lorajob("b"), merge))
    assert (done.code, done.out) == (0, "lorajob/a created\nlorajob/b created\nadaptermerge/m created\n"), done.err
    created = team.get("lorajobs", "a")
    assert created is not None
    assert created["spec"]["training"]["learningRate"] == 0.0002
    assert team.get("adaptermerges", "m")


def test_json_shows_the_objects_as_the_api_server_stored_them(as_tenant: Run, file: Path) -> None:
    assert json.loads(as_tenant("-o", "json", "submit", "-f", write(file, lorajob("a"))).out)["metadata"]["uid"]


@pytest.mark.parametrize("mode", ["client", "server"])
def test_a_dry_run_creates_nothing(as_tenant: Run, team: Namespace, file: Path, mode: str) -> None:
    done = as_tenant("submit", "-f", write(file, lorajob("a"), lorajob("b")), "--dry-run", mode)
    assert (done.code, done.out) == (0, f"lorajob/a valid ({mode} dry run)\nlorajob/b valid ({mode} dry run)\n")
    assert team.get("lorajobs", "a") is None


def test_an_object_that_exists_is_an_error_that_says_what_to_do(as_tenant: Run, team: Namespace, file: Path) -> None:
    team.apply(lorajob("b"))
    done = as_tenant("submit", "-f", write(file, lorajob("a"), lorajob("b")))
    assert done.code == 1
    assert f"lorajob/b exists already in namespace {team.name}" in done.err
    assert f"tunery resubmit lorajob/b -n {team.name}" in done.err
    assert f"kubectl apply -n {team.name} -f" in done.err
    assert team.get("lorajobs", "a") is None, "one that is rejected keeps all from being created"


def test_the_namespace_of_the_manifest_is_used(
    as_tenant: Run, tenant_kubeconfig: Path, team: Namespace, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = lorajob("a")
    body["metadata"]["namespace"] = team.name
    assert run(["--kubeconfig", str(tenant_kubeconfig), "submit", "-f", write(file, body)]) == 0
    assert team.get("lorajobs", "a")
    body["metadata"]["namespace"] = "other"
    assert as_tenant("submit", "-f", write(file, body)).code == 2


def test_a_missing_permission_names_the_object(as_tenant: Run, file: Path) -> None:
    done = as_tenant("submit", "-f", write(file, adapterserver("s")))
    assert done.code == 1
    assert done.err.startswith("Forbidden: adapterserver/s: ")
    assert "tunery doctor" in done.err


def test_the_api_server_may_generate_the_name(as_tenant: Run, file: Path) -> None:
    body = lorajob("a")
    body["metadata"]["generateName"] = "a-"
    del body["metadata"]["name"]
    done = as_tenant("submit", "-f", write(file, body))
    assert done.code == 0, done.err
    assert re.fullmatch(r"lorajob/(a-\w{5}) created. To follow it: tunery watch lorajob/\1 -n .*\n", done.out)


def test_train_submits_a_job(as_tenant: Run, team: Namespace) -> None:
    done = as_tenant("train", "--model", "hf://o/m", "--data", "s3://d/rows.jsonl", "--secret", "s3", "--gpus", "0")
    assert done.code == 0, done.err
    name = done.out.split()[0].removeprefix("lorajob/")
    assert name.startswith("m-rows-")
    created = team.get("lorajobs", name)
    assert created is not None
    assert created["spec"]["dataset"] == {"uri": "s3://d/rows.jsonl", "secretRef": {"name": "s3"}}


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1), ("Stopped", 3)])
def test_watch_follows_all_objects_to_their_end(
    as_tenant: Run, team: Namespace, put_status: Run, file: Path, phase: str, code: int
) -> None:
    def end() -> None:
        eventually("both exist", lambda: team.get("lorajobs", "b"))
        put_status("a", phase=phase)
        put_status("b", phase="Succeeded")

    with ThreadPoolExecutor() as pool:
        pool.submit(end)
        done = as_tenant("submit", "-f", write(file, lorajob("a"), lorajob("b")), "--watch")
    assert done.code == code, done
    assert done.out.startswith("lorajob/a created\nlorajob/b created\n")
    assert phase in done.out


def test_a_server_of_the_same_file_is_not_followed(tunery: Run, team: Namespace, put_status: Run, file: Path) -> None:
    """It never finishes."""

    def end() -> None:
        eventually("it exists", lambda: team.get("lorajobs", "a"))
        put_status("a", phase="Succeeded")

    with ThreadPoolExecutor() as pool:
        pool.submit(end)
        done = tunery("submit", "-f", write(file, adapterserver("s"), lorajob("a")), "--watch")
    assert done.code == 0, done.err
    assert done.out.startswith("adapterserver/s created\nlorajob/a created\n")
