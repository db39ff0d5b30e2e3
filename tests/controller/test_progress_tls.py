"""The endpoint's certificates: rotated without a restart, the authority too, and their end is a metric."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client import REGISTRY

from controller.reporting import Pods, Site, certificates
from tunery_operator.progress.tls import keep_fresh, not_after, read_ca, server_context

FILES = ("tls.crt", "tls.key", "ca.crt")


def served(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


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
        task = asyncio.create_task(keep_fresh(site.context, folder, authorities.append))
        before = await peer(site)
        # One file at a time, as a rotation may be seen: key and certificate do not fit each other in between.
        for name in FILES:
            shutil.copy(later / name, folder / name)
            await asyncio.sleep(0.1)
        assert not task.done()
        assert await peer(site) != before
        task.cancel()
    assert authorities == [read_ca(later)]


def test_the_end_of_both_certificates_is_told(tmp_path: Path) -> None:
    folder = certificates(tmp_path / "tls")
    server_context(folder)
    for label, name in (("serving", "tls.crt"), ("ca", "ca.crt")):
        pem = (folder / name).read_text()
        ends = served(pem).not_valid_after_utc
        assert not_after(pem) == ends
        told = REGISTRY.get_sample_value("tunery_certificate_expiry_timestamp_seconds", {"certificate": label})
        assert told == ends.timestamp()


def test_what_holds_no_certificate_is_an_error() -> None:
    with pytest.raises(ValueError, match="substring not found"):
        not_after("nothing")
