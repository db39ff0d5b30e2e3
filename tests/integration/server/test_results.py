"""The program `fetch` as its pod runs it, against a real S3 server: ranges, tokens, storage that fails, and its end."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tunery_api.reasons import ExitCode
from tunery_api.runspec import RunSpec
from tunery_common.storage import open_store
from tunery_common.termination import TERMINATION_PATH_ENV

from kit.s3 import credentials
from kit.server.results import BEARER, REPORT, fetch_run, publish_result, sha256, write_run, write_secret
from tools.cluster.ports import free_port
from tools.cluster.s3 import S3Server

LARGE = 300 << 20
"""More than the memory limit of the container."""
LIMIT = 256 << 20

Serve = Callable[[RunSpec], "Running"]


class Running:
    """The program, and requests to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers={**BEARER, **headers}, timeout=60)

    def results(self) -> dict[str, Any]:
        return {group["group"]: group for group in self.get("/v1/results").json()}

    def peak_bytes(self) -> int:
        """Return the most memory that it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10

    def wait_open(self) -> None:
        for _ in range(300):
            try:
                self.get("/")
            except requests.ConnectionError:
                assert self.process.poll() is None, "it ended"
                time.sleep(0.1)
            else:
                return
        raise AssertionError("it opened no port")


@contextmanager
def _process(folder: Path, run: RunSpec) -> Iterator[Running]:
    port = free_port()
    command = (sys.executable, "-m", "tunery_server", "fetch", str(write_run(folder, run)), "--port", str(port))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(command, env=environment | {TERMINATION_PATH_ENV: str(folder / "words")})
    try:
        yield Running(process, port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts the program, and returns once it answers."""
    running = []

    def start(run: RunSpec) -> Running:
        entered = _process(tmp_path, run)
        running.append(entered)
        program = entered.__enter__()
        program.wait_open()
        return program

    yield start
    for each in running:
        each.__exit__(None, None, None)


def run_of(folder: Path, server: S3Server, bucket: str, **values: str) -> RunSpec:
    """Return the run with the output Secret as it is mounted."""
    return fetch_run(f"s3://{bucket}/team", write_secret(folder / "secret", server.environment() | values))


@pytest.mark.slow
def test_ranges_of_a_large_file_put_together_have_its_digest(
    tmp_path: Path, s3_server: S3Server, bucket: str, serve: Serve
) -> None:
    root = open_store(f"s3://{bucket}/team", credentials(s3_server), "spec.output.uri")
    publish_result(tmp_path / "made", root.below("out"), "uid-1", "merged/weights.safetensors")
    data = secrets.token_bytes(1 << 20) * (LARGE >> 20)
    root.store.put_bytes(root.key("reports/uid-1/data-report.json"), REPORT)
    root.store.put_bytes(root.key("reports/uid-1/report.html"), data)
    program = serve(run_of(tmp_path, s3_server, bucket))

    groups = program.results()
    adapter = {file["path"]: file for file in groups["adapter"]["files"]}
    for path, file in adapter.items():
        whole = program.get(f"/v1/files/adapter/{path}").content
        assert (len(whole), sha256(whole)) == (file["size"], file["sha256"]), path
    assert "merged/weights.safetensors" in adapter
    assert program.get("/v1/files/reports/data-report.json").content == REPORT

    part, found = 8 << 20, []
    for start in range(0, LARGE, part):
        answer = program.get("/v1/files/reports/report.html", Range=f"bytes={start}-{start + part - 1}")
        assert answer.status_code == 206
        found.append(answer.content)
    assert sha256(b"".join(found)) == sha256(data)
    with requests.get(
        f"http://127.0.0.1:{program.port}/v1/files/reports/report.html", headers=BEARER, stream=True, timeout=60
    ) as answer:
        assert sum(len(chunk) for chunk in answer.iter_content(1 << 20)) == LARGE
    assert program.peak_bytes() < LIMIT, "a file is never in memory"


def test_another_token_and_another_address_get_nothing(
    tmp_path: Path, s3_server: S3Server, bucket: str, serve: Serve
) -> None:
    program = serve(run_of(tmp_path, s3_server, bucket))
    answer = program.get("/v1/results", Authorization="Bearer of-another")
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.2:{program.port}/v1/results", headers=BEARER, timeout=5)
    listening = subprocess.run(["ss", "-Htln", f"sport = :{program.port}"], capture_output=True, text=True, check=True)
    assert [line.split()[3] for line in listening.stdout.splitlines()] == [f"127.0.0.1:{program.port}"]


@pytest.mark.parametrize(
    ("values", "reason", "status"),
    [
        pytest.param({"AWS_SECRET_ACCESS_KEY": "wrong-secret-key"}, "StorageAccessDenied", 403, id="denied"),
        pytest.param({"AWS_SECRET_ACCESS_KEY": ""}, "SecretNotFound", 403, id="no-key"),
        pytest.param({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "StorageUnavailable", 502, id="away"),
    ],
)
def test_storage_that_fails_is_reported_with_the_reason(
    tmp_path: Path, s3_server: S3Server, bucket: str, serve: Serve, values: dict[str, str], reason: str, status: int
) -> None:
    program = serve(run_of(tmp_path, s3_server, bucket, **values))
    groups = program.results()
    assert {name: (group["files"], group["reason"]) for name, group in groups.items()} == {
        "adapter": ([], reason),
        "reports": ([], reason),
    }
    answer = program.get("/v1/files/adapter/adapter_model.safetensors")
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert "wrong-secret-key" not in answer.text


def test_without_the_secret_it_says_so(tmp_path: Path, s3_server: S3Server, bucket: str, serve: Serve) -> None:
    run = run_of(tmp_path, s3_server, bucket)
    for file in (tmp_path / "secret").iterdir():
        file.unlink()
    adapter = serve(run).results()["adapter"]
    assert adapter["reason"] == "SecretNotFound"
    assert "spec.output.secretRef: the Secret s3" in adapter["message"]


def test_sigterm_ends_it_at_once_also_while_the_storage_hangs(
    tmp_path: Path, s3_server: S3Server, bucket: str, serve: Serve
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        program = serve(run_of(tmp_path, s3_server, bucket, AWS_ENDPOINT_URL=endpoint))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(program.get, "/v1/results")
            silent.accept()
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(5) == ExitCode.TERMINATED
            assert isinstance(asked.exception(), requests.ConnectionError)


def test_a_run_that_it_cannot_read_is_a_failure_with_a_message(tmp_path: Path) -> None:
    run = fetch_run("s3://b/team").model_copy(update={"fetch": None})
    with _process(tmp_path, run) as program:
        assert program.process.wait(60) == ExitCode.BUG
    assert "no token digest" in (tmp_path / "words").read_text()
