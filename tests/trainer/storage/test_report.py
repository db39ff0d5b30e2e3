"""Progress reaches an HTTPS server in the protocol of transformers' KubeflowCallback; messages fit and hide secrets."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tunery_api.names import TERMINATION_LIMIT
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure, PreflightReport, ProgressUpdate, RunResult
from tunery_api.scrub import register_secret
from tunery_api.status import (
    AdapterStatus,
    DatasetStatus,
    MemoryStatus,
    MergeInputStatus,
    Phase,
    ResolvedStatus,
    ResolvedValue,
)
from tunery_trainer.report import ProgressReporter, termination_bytes, write_termination


@dataclass
class Operator:
    """An HTTPS server that keeps what was posted."""

    url: str
    ca: Path
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answer: int = 200

    def environment(self, token: Path) -> dict[str, str]:
        return {
            "KUBEFLOW_TRAINER_SERVER_URL": self.url,
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(self.ca),
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
        }


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    key, certificate = _certificate(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.posts.append((self.headers["Authorization"], body))
            self.send_response(found.answer)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Operator(f"https://127.0.0.1:{server.server_port}/progress/team-a/bot", certificate)
    yield found
    server.shutdown()
    server.server_close()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "operator")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "tls.key", folder / "tls.crt"


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_posts_the_protocol_and_its_extension(operator: Operator, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    reporter = ProgressReporter(operator.environment(token))
    reporter.step(21, 50, epoch=0.42, eta_seconds=61.7, tokens_per_second=1234.5)
    reporter.metrics({"loss": 1.5, "grad_norm": float("nan")})
    reporter.phase(Phase.TRAINING)
    _wait(lambda: operator.posts)
    authorization, body = operator.posts[0]
    assert authorization == "Bearer first"
    status = body["trainerStatus"]
    datetime.datetime.fromisoformat(status.pop("lastUpdatedTime"))
    assert status == {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 62,
        "metrics": [{"name": "loss", "value": "1.5"}],
        "step": 21,
        "totalSteps": 50,
        "epoch": "0.42",
        "tokensPerSecond": "1234.5",
        "phase": "Training",
    }
    ProgressUpdate.model_validate(body)
    token.write_text("second")
    reporter.checkpoint("s3://b/step-000021", 21)
    reporter.close()
    assert operator.posts[-1][0] == "Bearer second"
    assert operator.posts[-1][1]["trainerStatus"]["checkpoint"] == {"uri": "s3://b/step-000021", "step": 21}


def test_an_operator_that_refuses_or_is_gone_does_not_hold_the_run_up(operator: Operator, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    operator.answer = 503
    reporter = ProgressReporter(operator.environment(token))
    started = time.monotonic()
    for step in range(1000):
        reporter.step(step, 1000)
    assert time.monotonic() - started < 1
    reporter.phase(Phase.TRAINING)
    _wait(lambda: operator.posts)
    operator.answer = 200
    reporter.close()
    assert operator.posts[-1][1]["trainerStatus"]["step"] == 999

    gone = ProgressReporter({**operator.environment(token), "KUBEFLOW_TRAINER_SERVER_URL": "https://127.0.0.1:1/x"})
    gone.phase(Phase.TRAINING)
    started = time.monotonic()
    gone.close()
    assert time.monotonic() - started < 8


def test_server_with_another_certificate_gets_no_token(operator: Operator, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, operator.ca = _certificate(other)
    (tmp_path / "token").write_text("t")
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.TRAINING)
    reporter.close()
    assert operator.posts == []


def test_without_a_server_lines_are_printed() -> None:
    out = io.StringIO()
    reporter = ProgressReporter({}, out)
    reporter.phase(Phase.TRAINING)
    reporter.step(5, 10, eta_seconds=65)
    reporter.metrics({"loss": 2.25})
    reporter.close()
    assert out.getvalue().splitlines()[-1] == "Training  step 5/10 (50 %)  loss 2.25  00:01:05 left"


def _large_result() -> RunResult:
    return RunResult(
        adapter=AdapterStatus(uri="s3://b/" + "p" * 900, manifest_sha256="a" * 64, size_bytes=1),
        dataset=DatasetStatus(rows=10, first_invalid=["ü" * 500] * 5),
        memory=MemoryStatus(estimate_bytes=1),
        resolved=ResolvedStatus(
            rank=8,
            target_modules=["m" * 200] * 20,
            values=[ResolvedValue(name="n", value="v" * 200, source="Preset")] * 30,
        ),
        inputs=[MergeInputStatus(uri="s3://b/" + "i" * 300, rank=1)] * 3,
    )


def test_termination_message_drops_the_optional_parts_in_order() -> None:
    data = termination_bytes(_large_result())
    assert len(data) <= TERMINATION_LIMIT
    document = json.loads(data)
    assert RunResult.model_validate(document).adapter is not None
    assert document["resolved"] == {"rank": 8}
    assert document["dataset"] == {"rows": 10}
    assert len(document["inputs"]) == 3


def test_small_termination_message_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("TUNERY_TERMINATION_PATH", str(path))
    report = PreflightReport(dataset=DatasetStatus(rows=3, first_invalid=["line 17"]))
    write_termination(report)
    assert PreflightReport.model_validate_json(path.read_bytes()) == report


def test_termination_message_shows_no_credential(tmp_path: Path) -> None:
    register_secret("hunter2-hunter2")
    message = (
        "key AKIAIOSFODNN7EXAMPLE, hf_abcdefghijkl, hunter2-hunter2\x1b[31m, https://b/x?X-Amz-Signature=abc123&a=1"
    )
    failure = Failure(reason=FailureReason.STORAGE_ACCESS_DENIED, message=message)
    write_termination(RunResult(failure=failure), tmp_path / "log")
    text = (tmp_path / "log").read_text()
    for secret in ("AKIAIOSFODNN7EXAMPLE", "hf_abcdefghijkl", "hunter2", "\\u001b", "abc123"):
        assert secret not in text
    assert "&a=1" in text
