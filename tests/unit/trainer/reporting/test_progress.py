"""Progress reaches an HTTPS server in the protocol of transformers' KubeflowCallback, at the pace that it asks for."""

from __future__ import annotations

import datetime
import io
import ipaddress
import itertools
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from urllib3.exceptions import ConnectTimeoutError, SSLError

from tunery_api.names import PROGRESS_EVERY_ENV
from tunery_api.runspec import ProgressUpdate
from tunery_api.status import Phase
from tunery_common.progress_client import Outage, Pace, Refused, interval_seconds, retry_after
from tunery_trainer import training
from tunery_trainer.reporting.downloads import Downloads
from tunery_trainer.reporting.progress import ProgressReporter, Report, say


@dataclass
class Operator:
    """An HTTPS server that keeps what was posted, when, and over which connection."""

    url: str
    ca: Path
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    answer: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None

    def environment(self, token: Path) -> dict[str, str]:
        return {
            "KUBEFLOW_TRAINER_SERVER_URL": self.url,
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(self.ca),
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
        }


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    key, certificate = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.posts.append((self.headers["Authorization"], body))
            found.times.append(time.monotonic())
            found.connections.add(self.client_address[1])
            self.send_response(found.answer)
            self.send_header("Content-Length", str(len(found.body)))
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Operator(f"https://127.0.0.1:{server.server_port}/progress/team-a/bot", certificate)
    found.context = context
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
    reporter.checkpoint_failed("the checkpoint of step 14 was not stored: AccessDenied")
    _wait(lambda: len(operator.posts) == 2)
    assert operator.posts[-1][1]["trainerStatus"]["checkpointError"].endswith("step 14 was not stored: AccessDenied")
    reporter.checkpoint("s3://b/step-000021", 21)
    reporter.curve("s3://b/curve.jsonl")
    reporter.close()
    assert operator.posts[-1][0] == "Bearer second"
    last = operator.posts[-1][1]["trainerStatus"]
    assert last["checkpoint"] == {"uri": "s3://b/step-000021", "step": 21}
    assert last["curve"] == "s3://b/curve.jsonl"
    assert "checkpointError" not in last


@pytest.mark.slow
def test_a_reference_that_is_scored_before_the_steps_is_progress(operator: Operator, tmp_path: Path) -> None:
    token, out = tmp_path / "token", io.StringIO()
    token.write_text("t")
    reporter = ProgressReporter(operator.environment(token), out)
    reporter.scored(0, 240)
    _wait(lambda: operator.posts)
    reporter.scored(100, 240)
    _wait(lambda: len(operator.posts) > 1)
    reporter.step(0, 50)
    reporter.close()
    told = [body["trainerStatus"] for _, body in operator.posts]
    assert [(status["phase"], status["progressPercentage"], status.get("step")) for status in told] == [
        ("Evaluating", 0, None),
        ("Evaluating", 41, None),
        ("Evaluating", 0, 0),
    ]
    assert out.getvalue().splitlines() == ["Evaluating  0 %"]


@pytest.mark.slow
@pytest.mark.parametrize("url", [None, "https://127.0.0.1:1/gone"], ids=["taken", "gone"])
def test_the_log_of_the_pod_is_told_too_but_not_every_step(operator: Operator, tmp_path: Path, url: str | None) -> None:
    token, out = tmp_path / "token", io.StringIO()
    token.write_text("t")
    variables = operator.environment(token)
    reporter = ProgressReporter(variables | ({"KUBEFLOW_TRAINER_SERVER_URL": url} if url else {}), out)
    reporter.phase(Phase.TRAINING)
    _wait(out.getvalue)
    for step in range(1, 8):
        reporter.step(step, 1000, eta_seconds=90)
        reporter.metrics({"loss": 1 / step})
        time.sleep(0.6)
    reporter.phase(Phase.UPLOADING)
    reporter.close()
    assert out.getvalue().splitlines() == [
        "Training",
        "Uploading  step 7/1000 (0 %)  loss 0.142857",
    ]


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


def test_an_outage_is_told_once_with_what_to_allow_and_that_it_is_over(
    operator: Operator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    caplog.set_level(logging.INFO)
    operator.answer = 403
    reporter = ProgressReporter(operator.environment(token))
    for number, phase in enumerate((Phase.STARTING, Phase.EVALUATING), 1):
        reporter.phase(phase)
        _wait(lambda wanted=number: len(operator.posts) >= wanted)
    operator.answer = 200
    reporter.phase(Phase.TRAINING)
    reporter.close()
    assert [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records] == [
        ("WARNING", "progress cannot be posted to https"),
        ("INFO", "progress is posted to https"),
    ]
    refused, again = (record.getMessage() for record in caplog.records)
    assert f"{operator.url}: the server answered 403. The run goes on" in refused
    assert again.endswith(f"{operator.url} again")

    caplog.clear()
    gone = ProgressReporter({**operator.environment(token), "KUBEFLOW_TRAINER_SERVER_URL": "https://127.0.0.1:1/x"})
    gone.phase(Phase.TRAINING)
    gone.close()
    (said,) = caplog.messages
    assert "Connection refused" in said
    assert "TCP 1 from this pod to 127.0.0.1 is allowed" in said


def test_of_one_outage_each_cause_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage("https://tunery.tunery-system.svc:8443/p", logging.getLogger("outage"))
    untrusted = SSLError("certificate verify failed: self-signed certificate in certificate chain (_ssl.c:1016)")
    for port in range(3):
        outage.failed(Refused(503, retry_after=1.0))
        outage.failed(
            ConnectTimeoutError(f"<HTTPSConnection object at 0x7f{port}> timed out (connect timeout={port}.5)")
        )
    for _ in range(3):
        outage.failed(untrusted)
        outage.failed(Refused(403, None))
        outage.failed(Refused(500, None))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    for said, words, mend in zip(
        caplog.messages,
        ("timed out", "certificate verify failed", "the server answered 403", "the server answered 500"),
        (
            "TCP 8443 from this pod",
            "shows a certificate that this pod trusts",
            "takes the token",
            "its own log says more",
        ),
        strict=True,
    ):
        assert words in said
        assert mend in said
    outage.over()
    outage.over()
    outage.failed(untrusted)
    assert [record.levelname for record in caplog.records[4:]] == ["INFO", "WARNING"], "a new outage is told anew"
    for number in range(50):
        outage.failed(OSError("x" * number))
    assert len(caplog.records) < 16


def test_a_download_is_told_in_the_log_and_to_the_operator(operator: Operator, tmp_path: Path) -> None:
    token, out = tmp_path / "token", io.StringIO()
    token.write_text("t")
    reporter = ProgressReporter(operator.environment(token), out)
    reporter.phase(Phase.STARTING)
    _wait(lambda: len(operator.posts) == 1)
    lines = io.StringIO()
    model = Downloads(reporter, out=lines).of("model")
    for done in range(0, 14_400_000_001, 100_000_000):
        model(done, 14_400_000_000)
        if done == 6_200_000_000:
            _wait(lambda: len(operator.posts) == 2)
    Downloads(reporter, out=lines).of("data set")(812, 812)
    reporter.downloaded()
    reporter.phase(Phase.EVALUATING)
    reporter.close()
    told = [body["trainerStatus"] for _, body in operator.posts]
    assert [(status["phase"], status.get("doing"), status.get("percent")) for status in told] == [
        ("Starting", None, None),
        ("Starting", "downloading", 43),
        ("Evaluating", None, None),
    ]
    assert lines.getvalue().splitlines() == [
        "Downloading model 0 % (0.0 of 14.4 GB)",
        "Downloading model 100 % (14.4 of 14.4 GB)",
        "Downloading data set 100 % (812 of 812 bytes)",
    ]
    often = io.StringIO()
    model = Downloads(before="Preflight  ", out=often, line_seconds=0).of("model")
    for done in (600, 6_200, 14_400):
        model(done, 14_400)
    assert often.getvalue().splitlines() == [
        f"Preflight  Downloading model {told}"
        for told in ("4 % (0.6 of 14.4 kB)", "43 % (6.2 of 14.4 kB)", "100 % (14.4 of 14.4 kB)")
    ]


def test_a_download_in_between_is_a_phase_of_its_own() -> None:
    """A merge combines its adapters before it needs its base: the operator takes a download for one at a start only."""
    told: list[tuple[Any, ...]] = []
    reporter = ProgressReporter({}, io.StringIO())

    def send(report: Report) -> None:
        told.append((report.status.phase, report.status.doing, report.status.percent))

    reporter._sender = SimpleNamespace(send=send)
    steps: list[tuple[Callable[[], None], tuple[Any, ...]]] = [
        (lambda: reporter.phase(Phase.MERGING), ("Merging", None, None)),
        (lambda: reporter.downloading(None), ("Downloading", "downloading", None)),
        (reporter.downloaded, ("Merging", None, None)),
    ]
    for tell, shown in steps:
        tell()
        _wait(lambda shown=shown: told and told[-1] == shown)
    reporter.downloaded()
    reporter.close()
    assert told[-1] == ("Merging", None, None)


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


class Yielding(io.StringIO):
    """A stream that lets another thread write after each piece, as a busy machine may."""

    def write(self, text: str, /) -> int:
        done = super().write(text)
        time.sleep(0.001)
        return done


def test_no_line_comes_into_another_threads_line() -> None:
    out = Yielding()
    reporter = ProgressReporter({}, out)
    for step in range(1, 51):
        reporter.step(step, 50)
        reporter.findings([])  # told at once, and the step with it
        say(f"Finding    at step {step}.", out)
    reporter.close()
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("Finding")] == [f"Finding    at step {n}." for n in range(1, 51)]
    assert all(re.fullmatch(r"Finding    at step \d+\.|step \d+/50 \(\d+ %\)", line) for line in lines), lines


def test_what_goes_on_beside_the_progress_prints_in_one_piece() -> None:
    for path in sorted(Path(training.__file__).parent.glob("*.py")):
        assert not re.search(r"\bprint\(", path.read_text()), f"{path.name}: `say` writes a line in one piece"


@pytest.mark.slow
def test_what_was_measured_after_another_step_is_told_with_its_step() -> None:
    out = io.StringIO()
    reporter = ProgressReporter({}, out)
    reporter.metrics({"base_eval_loss": 3.5})
    for step in (1, 2):
        with reporter.at_once():
            reporter.step(step, 10)
            # Longer than it takes to tell what is known so far.
            time.sleep(1.2)
            reporter.metrics({"loss": 2 + step}, step)
            reporter.metrics({"eval_loss": 3.0} if step == 1 else {}, step)
        _wait(lambda step=step: f"step {step}/" in out.getvalue())
    reporter.close()
    assert out.getvalue().splitlines()[-2:] == [
        "step 1/10 (10 %)  base_eval_loss 3.5  loss 3  eval_loss 3",
        "step 2/10 (20 %)  base_eval_loss 3.5  loss 4  eval_loss 3 (step 1)",
    ]


@pytest.mark.slow
def test_one_connection_carries_all_reports(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    for number, phase in enumerate((Phase.STARTING, Phase.TRAINING, Phase.UPLOADING), 1):
        reporter.phase(phase)
        _wait(lambda wanted=number: len(operator.posts) == wanted)
    reporter.phase(Phase.SUCCEEDED)
    reporter.close()
    assert [body["trainerStatus"]["phase"] for _, body in operator.posts] == [
        "Starting",
        "Training",
        "Uploading",
        "Succeeded",
    ]
    assert len(operator.connections) == 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(operator.times)]
    assert min(gaps) >= 1.0, "the operator answers 429 to what comes faster than one a second"


@pytest.mark.slow
def test_what_was_told_is_repeated_while_nothing_is_new_and_not_printed_again(
    operator: Operator, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("t")
    out = io.StringIO()
    reporter = ProgressReporter({**operator.environment(tmp_path / "token"), PROGRESS_EVERY_ENV: "1.5"}, out)
    reporter.phase(Phase.TRAINING)
    _wait(lambda: len(operator.posts) == 3)
    first, *repeated = (body["trainerStatus"] for _, body in operator.posts)
    assert repeated == [first, first], "with the time of the news itself"
    reporter.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise(operator.times)]
    assert min(gaps[:2]) >= 1.5
    assert out.getvalue().splitlines() == ["Training"]


def test_a_connection_that_the_server_closed_is_made_anew(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    operator.headers = {"Connection": "close"}
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.STARTING)
    _wait(lambda: operator.posts)
    reporter.phase(Phase.TRAINING)
    reporter.close()
    assert operator.posts[-1][1]["trainerStatus"]["phase"] == "Training"
    assert len(operator.connections) == 2


def test_a_renewed_authority_is_taken_over(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.STARTING)
    _wait(lambda: operator.posts)
    renewed = tmp_path / "renewed"
    renewed.mkdir()
    key, certificate = _certificate(renewed)
    assert operator.context is not None
    operator.context.load_cert_chain(certificate, key)
    operator.ca.write_bytes(certificate.read_bytes())
    reporter.phase(Phase.TRAINING)
    _wait(lambda: len(operator.posts) == 2)
    reporter.close()
    assert len(operator.connections) == 2


def test_a_standby_sends_the_reporter_to_the_leader(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    operator.answer, operator.headers = 503, {"Retry-After": "1"}
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.TRAINING)
    _wait(lambda: len(operator.posts) >= 2)
    operator.answer, operator.headers = 200, {}
    reporter.close()
    assert operator.posts[-1][1]["trainerStatus"]["phase"] == "Training"
    assert len(operator.connections) >= 2


def test_the_last_report_is_made_even_if_the_standby_has_it_first(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    operator.answer, operator.headers = 503, {"Retry-After": "1"}
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.SUCCEEDED)
    closing = threading.Thread(target=reporter.close)
    closing.start()
    _wait(lambda: operator.posts)
    operator.answer, operator.headers = 200, {}
    closing.join(10)
    assert len(operator.posts) == 2


@pytest.mark.slow
def test_a_server_that_says_nothing_ends_no_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/x"
        reporter = ProgressReporter({"KUBEFLOW_TRAINER_SERVER_URL": url})
        reporter.phase(Phase.TRAINING)
        started = time.monotonic()
        reporter.step(1, 10)
        assert time.monotonic() - started < 1
        reporter.close()
        assert time.monotonic() - started < 8


def test_pace() -> None:
    pace = Pace()
    assert (pace.delay(urgent=False), pace.delay(urgent=True)) == (3, 1)
    pace.succeeded(30.0)
    pace.succeeded(None)
    assert (pace.delay(urgent=False), pace.delay(urgent=True)) == (30, 1)
    pace.succeeded(5.0)
    waits = []
    for _ in range(6):
        pace.failed(None)
        waits.append(pace.delay(urgent=False))
    assert waits == [10, 20, 40, 60, 60, 60]
    pace.failed(120.0)
    assert pace.delay(urgent=False) == 120
    pace.failed(0.0)
    assert pace.delay(urgent=False) == 1
    pace.succeeded(300.0)
    pace.failed(None)
    assert pace.delay(urgent=False) == 300


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (b'{"intervalSeconds": 1}', 1),
        (b'{"intervalSeconds": 300, "message": "ok"}', 300),
        (b'{"intervalSeconds": 2.5}', 2.5),
        (b'{"intervalSeconds": 0}', None),
        (b'{"intervalSeconds": 301}', None),
        (b'{"intervalSeconds": true}', None),
        (b'{"intervalSeconds": "9"}', None),
        (b'{"intervalSeconds": NaN}', None),
        (b"[1]", None),
        (b"ok", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_the_interval_of_an_answer(answer: bytes, seconds: float | None) -> None:
    assert interval_seconds(answer) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7), ("9999", 300), ("-1", None), ("Wed, 25 Nov 2026 02:00:00 GMT", None), ("²", None)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


@pytest.mark.slow
def test_the_interval_that_the_server_asks_for_is_kept(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    operator.body = b'{"intervalSeconds": 1}'
    reporter = ProgressReporter(operator.environment(tmp_path / "token"))
    reporter.phase(Phase.TRAINING)
    _wait(lambda: operator.posts)
    reporter.step(1, 10)
    _wait(lambda: len(operator.posts) == 2)
    assert operator.times[1] - operator.times[0] < 3
    operator.body = b'{"intervalSeconds": 300}'
    reporter.step(2, 10)
    _wait(lambda: len(operator.posts) == 3)
    reporter.step(3, 10)
    time.sleep(2)
    assert len(operator.posts) == 3
    reporter.checkpoint("s3://b/step-000003", 3)
    _wait(lambda: len(operator.posts) == 4)
    reporter.close()
