"""The endpoint's certificate: reloaded without a restart, its authority too, and its expiry is a metric."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from prometheus_client import REGISTRY

from tunery_operator.progress.tls import Certificate, keep_fresh
from tunery_operator.tools.renew_certificate import Files, make

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import lorajob
from kit.operator.process import OperatorProcess
from kit.operator.reporting import Pods, Site, certificates
from kit.operator.stage import make_namespace

FILES = ("tls.crt", "tls.key", "ca.crt")


async def peer(site: Site) -> bytes:
    """Return the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=site.tls / "ca.crt")
    _, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


async def test_certificate_and_authority_are_rotated_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_operator.progress.tls.CHECK_SECONDS", 0.05)
    folder, later = certificates(tmp_path / "first"), certificates(tmp_path / "later")
    authorities: list[str] = []
    async with Site(folder, Pods(set())) as site:
        task = asyncio.create_task(keep_fresh(site.certificate, authorities.append))
        before = await peer(site)
        # One file at a time, as a rotation may be seen: key and certificate do not fit each other in between.
        for name in FILES:
            shutil.copy(later / name, folder / name)
            await asyncio.sleep(0.1)
        assert not task.done()
        assert await peer(site) != before
        task.cancel()
    assert authorities == [(later / "ca.crt").read_text()]


EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def signs_itself(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, host: str) -> Files:
    """Return a certificate of that key, as cert-manager or a company's authority may make one."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "theirs")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(hours=1)).not_valid_after(NOW + timedelta(days=30))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return Files(pem, pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@contextlib.asynccontextmanager
async def connected(site: Site, authority: bytes, *, named: bool) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Connect as a client that trusts an authority, with or without SNI; yields what asks over that connection."""
    context = ssl.create_default_context(cadata=authority.decode())
    context.check_hostname = named
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", site.port, ssl=context, server_hostname=HOST if named else ""
    )

    async def ask() -> bytes:
        writer.write(b"POST / HTTP/1.1\r\nHost: tunery\r\nContent-Length: 0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return head.split(b"\r\n")[0]

    yield ask
    writer.close()


@pytest.mark.parametrize("named", [True, False], ids=["with-sni", "without-sni"])
async def test_a_certificate_of_another_kind_of_key_takes_the_place_of_the_one_before(
    named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = signs_itself(EC, HOST), signs_itself(RSA, HOST), signs_itself(EC, HOST)
    write(tmp_path, first)
    async with Site(tmp_path, Pods(set()), host=HOST) as site, connected(site, first.ca, named=named) as old:
        for files in (second, third):
            write(tmp_path, files)
            assert site.certificate.reload()
            assert site.certificate.fault is None
            async with connected(site, files.ca, named=named) as new:
                assert await new() == await old() == b"HTTP/1.1 401 Unauthorized"
        with pytest.raises(ssl.SSLCertVerificationError):
            await connected(site, first.ca, named=named).__aenter__()
        # Caught half way: what was served is served on.
        (tmp_path / "tls.crt").write_bytes(second.certificate)
        assert not site.certificate.reload()
        async with connected(site, third.ca, named=named) as new:
            assert await new() == b"HTTP/1.1 401 Unauthorized"
    [warned] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "tls.key is not the key of tls.crt" in warned


HOST = "tunery.tunery-system.svc"
NOW = datetime.now(UTC)
GOOD, OTHER = make(HOST, 3650, NOW), make(HOST, 3650, NOW)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param(GOOD, None, id="good"),
        pytest.param(make("other.svc", 3650, NOW), f"certificate is not valid for '{HOST}'", id="host"),
        pytest.param(GOOD._replace(ca=OTHER.ca), "certificate", id="authority"),
        pytest.param(GOOD._replace(ca=OTHER.ca + GOOD.ca), None, id="one-of-two-authorities"),
        pytest.param(GOOD._replace(ca="# für Pods\n".encode() + GOOD.ca), None, id="in-any-alphabet"),
        pytest.param(make(HOST, 7, NOW - timedelta(days=8)), "certificate has expired", id="over"),
        pytest.param(make(HOST, 0, NOW), "certificate has expired", id="no-days"),
    ],
)
def test_why_pods_do_not_trust_the_certificate_is_logged_once(
    files: Files, why: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, files)
    caplog.set_level("INFO")
    certificate = Certificate(tmp_path, HOST)
    assert certificate.authority.isascii(), "pods read no other"
    certificate.reload()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (0 if why is None else 1)
    if why is not None:
        assert why in (certificate.fault or "")
        assert f"can't report: the files of {tmp_path}: {certificate.fault}. Fix: " in warned[0]
        write(tmp_path, GOOD)
        assert certificate.reload()
        assert "Pods can trust the progress endpoint's certificate" in caplog.text
    assert certificate.fault is None


LOCKED = EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
SMALL = signs_itself(rsa.generate_private_key(65537, 1024), HOST)


@pytest.mark.parametrize("before", [True, False], ids=["rotated", "at-the-start"])
@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param({"tls.crt": GOOD.certificate[:300]}, "tls.crt is invalid: ", id="cut"),
        pytest.param({"tls.crt": None}, "tls.crt can't be read: No such file", id="no-certificate"),
        pytest.param({"tls.key": OTHER.key}, "tls.key is not the key of tls.crt", id="key-of-another"),
        pytest.param({"tls.key": signs_itself(RSA, HOST).key}, "tls.key is not the key of tls.crt", id="other-kind"),
        pytest.param({"tls.key": b"hello"}, "tls.key is invalid: ", id="no-key"),
        pytest.param({"tls.key": GOOD.key[:100]}, "tls.key is invalid: ", id="key-cut"),
        pytest.param({"tls.key": LOCKED}, "tls.key is invalid: Password was not given", id="key-locked"),
        pytest.param(
            {"tls.crt": SMALL.certificate, "tls.key": SMALL.key},
            "tls.crt and tls.key are invalid: [SSL: EE_KEY",
            id="key-small",
        ),
        pytest.param({"ca.crt": b"hello"}, "ca.crt is invalid: ", id="no-authority"),
        pytest.param({"ca.crt": None}, "ca.crt can't be read: No such file", id="authority-missing"),
        pytest.param({"ca.crt": b"\xff\xfe"}, "ca.crt is invalid: ", id="no-text"),
    ],
)
def test_an_invalid_certificate_is_logged_once_with_its_secret_and_stops_nothing(
    files: dict[str, bytes | None], why: str, before: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, OTHER if before else GOOD)
    certificate = Certificate(tmp_path, HOST, "corp") if before else None
    old = certificate and certificate.context
    write(tmp_path, GOOD)
    for name, text in files.items():
        (tmp_path / name).unlink() if text is None else (tmp_path / name).write_bytes(text)
    certificate = certificate or Certificate(tmp_path, HOST, "corp")
    for _ in range(3):
        assert certificate.reload() is False
    # All or nothing: neither half of a pair, nor its authority alone.
    assert certificate.context is old
    assert certificate.authority == ((OTHER.ca if before else b"" if "ca.crt" in files else GOOD.ca).decode())
    assert (certificate.fault is None) == before
    [logged] = [record for record in caplog.records if record.levelname != "INFO"]
    assert logged.levelname == ("WARNING" if before else "ERROR")
    assert f"Secret corp: {why}" in logged.getMessage()
    assert ("Kept the progress endpoint's former certificate" if before else "rejects reports") in logged.getMessage()
    write(tmp_path, GOOD)
    assert certificate.reload() is True
    assert (certificate.fault, certificate.authority) == (None, GOOD.ca.decode())


def test_a_fault_is_logged_again_after_an_hour_or_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD._replace(key=OTHER.key))
    certificate = Certificate(tmp_path, HOST)
    (tmp_path / "tls.key").write_bytes(b"hello")
    certificate.reload()
    certificate.reload()
    assert len(caplog.records) == 2
    monkeypatch.setattr("tunery_operator.progress.tls.LOG_AGAIN_SECONDS", 0.0)
    certificate.reload()
    assert len(caplog.records) == 3


async def test_nobody_is_served_until_there_is_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_operator.progress.tls.CHECK_SECONDS", 0.05)
    write(tmp_path, signs_itself(EC, HOST)._replace(ca=b"none"))
    authorities: list[str] = []
    async with Site(tmp_path, Pods(set()), host=HOST) as site:
        task = asyncio.create_task(keep_fresh(site.certificate, authorities.append))
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        files = signs_itself(RSA, HOST)
        write(tmp_path, files)
        await asyncio.sleep(0.3)
        async with connected(site, files.ca, named=True) as ask:
            assert await ask() == b"HTTP/1.1 401 Unauthorized"
        task.cancel()
    assert authorities == [files.ca.decode()]


def write(folder: Path, files: Files) -> None:
    """Lay a certificate into a folder as the Secret does."""
    for name, pem in zip(("ca.crt", "tls.crt", "tls.key"), files, strict=True):
        (folder / name).write_bytes(pem)


@pytest.mark.slow
def test_a_job_that_runs_no_pod_gets_the_new_authority(
    api: Api, own_operator: Callable[..., OperatorProcess], progress_tls: Path, tmp_path: Path
) -> None:
    folder, namespace = tmp_path / "tls", make_namespace(api)
    shutil.copytree(progress_tls, folder)
    served = (folder / "tls.crt").read_text()
    (folder / "tls.crt").write_text(served[:300])
    # It starts, is ready and works without a certificate that it could serve, and says what to mend.
    operator = own_operator(progress={"tlsDir": str(folder), "tlsSecret": "corp"}).start()
    for name in ("held", "works"):
        namespace.apply(lorajob(name, preflight="Skip"))
    queued = lorajob("queued", preflight="Skip")
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    namespace.apply(queued)
    before = {name: namespace.job(f"{name}-train") for name in ("held", "works", "queued")}
    namespace.api.patch(namespace.path("jobs", "queued-train"), {"spec": {"suspend": True}})
    namespace.patch_spec("held", suspend=True)
    namespace.wait_phase("held", "Suspended")
    pod = namespace.run_pod("works-train", node="one")
    namespace.wait_running("works")
    assert operator.metric('tunery_certificate_expiry_timestamp_seconds{certificate="serving"}') == 0
    told = [line for line in operator.log.read_text().splitlines() if " ERROR " in line]
    assert len(told) == 1
    assert "rejects reports" in told[0]
    assert "Secret corp: tls.crt is invalid: " in told[0]
    operator.stop()
    (folder / "tls.crt").write_text(served)
    old = (folder / "ca.crt").read_text()
    (folder / "ca.crt").write_text(f"{old}{old}")
    operator.start()
    namespace.patch_spec("held", suspend=False)
    eventually("the Job is another", lambda: namespace.job("held-train")["metadata"]["uid"] != uid(before["held"]))
    assert authority(namespace.job("held-train")) == f"{old}{old}"
    namespace.finish("held")
    namespace.wait_phase("held", "Succeeded")
    for name in ("works", "queued"):
        namespace.patch_spec(name, activeDeadlineSeconds=100000)
        assert uid(namespace.job(f"{name}-train")) == uid(before[name])
    # The Job goes in the very look that sees its pod's end: the ledger has that end all the same.
    namespace.patch_spec("works", suspend=True)
    eventually("it is being deleted", lambda: "deletionTimestamp" in (namespace.get("pods", pod) or {})["metadata"])
    saved = {"uri": "s3://adapters/c/step-000013", "step": 13}
    namespace.end_pod(pod, 143, message={"checkpoint": saved}, seconds=1)
    status = namespace.wait_phase("works", "Suspended")
    attempt = status["attemptHistory"][0]
    assert (attempt["seconds"], attempt["reason"], status["checkpoint"]) == (1, "Suspended", saved)
    assert namespace.get("jobs", "works-train") is None


def uid(job: Json) -> str:
    found: str = job["metadata"]["uid"]
    return found


def authority(job: Json) -> str:
    """Return what the pods of a Job trust."""
    pem: str = job["spec"]["template"]["metadata"]["annotations"]["tunery.dev/progress-ca"]
    return pem


def test_a_metric_shows_when_both_certificates_expire(tmp_path: Path) -> None:
    folder = certificates(tmp_path / "tls")
    Certificate(folder, "127.0.0.1")
    for label, name in (("serving", "tls.crt"), ("ca", "ca.crt")):
        expires = x509.load_pem_x509_certificate((folder / name).read_bytes()).not_valid_after_utc
        shown = REGISTRY.get_sample_value("tunery_certificate_expiry_timestamp_seconds", {"certificate": label})
        assert shown == expires.timestamp()
