"""Load and check the certificate of the progress endpoint, and reload it when its files change.

tools/renew_certificate.py renews it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tunery_operator.metrics import CERTIFICATE_EXPIRY

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 30.0
LOG_AGAIN_SECONDS: Final = 3600.0
"""An unchanged fault is logged again after this time."""
_FIX: Final = (
    "Fix: correct the Secret that progress.certificate in the chart's values names, or renew the chart's own "
    "(docs/operations.md, Upgrade). Tunery reads it again within two minutes"
)

_FILES: Final = ("tls.crt", "tls.key", "ca.crt")

T = TypeVar("T")


class UnusableCertificate(Exception):
    """A file of the certificate is missing or invalid; the message names the file."""


@dataclass(frozen=True)
class _Loaded:
    """Valid content of the folder; two are equal if their files are."""

    files: tuple[bytes, ...]
    authority: str
    context: ssl.SSLContext = field(compare=False)
    expires: dict[str, datetime] = field(compare=False)
    """By label of the metric."""


class Certificate:
    """The certificate in a folder, as it was last read and valid.

    Without a valid one, the endpoint refuses connections; everything else works.
    """

    def __init__(self, folder: Path, host: str, secret: str = "") -> None:
        """Read the folder; `host` is the name that pods connect to, `secret` names the folder's Secret in the log."""
        self.fault: str | None = None
        """Why pods can't trust the endpoint; None: they can."""
        self.authority = ""
        """The certificate authority for pods, as PEM; empty: unknown."""
        self._folder, self._host = folder, host
        self._source = f"Secret {secret}" if secret else f"the files of {folder}"
        self._loaded: _Loaded | None = None
        self._logged: tuple[str | None, float] = (None, 0.0)
        self.reload()

    @property
    def context(self) -> ssl.SSLContext | None:
        """Return what to serve the next connection with; None: no valid certificate yet."""
        return None if self._loaded is None else self._loaded.context

    def reload(self) -> bool:
        """Read the files again; return whether new connections get another certificate.

        All files count together: if one is invalid, the former certificate and authority stay.
        """
        before, invalid = self._loaded, None
        try:
            found = _read(self._folder)
            if found != before:
                self._loaded = found
        except UnusableCertificate as error:
            invalid = str(error)
        if self._loaded is None:
            # Jobs created meanwhile trust the authority, so that their pods report once the pair is valid.
            self.fault, self.authority = invalid, _authority_alone(self._folder)
        else:
            self.fault = _trust_fault(self._loaded, self._host)
            self.authority = self._loaded.authority
        self._show(invalid)
        return self._loaded is not before

    def _show(self, invalid: str | None) -> None:
        """Write the metric, and log a fault once and then every hour."""
        for label in ("serving", "ca"):
            expires = self._loaded.expires[label].timestamp() if self._loaded is not None else 0
            CERTIFICATE_EXPIRY.labels(label).set(expires)
        fault, now = invalid or self.fault, time.monotonic()
        known, logged_at = self._logged
        if fault == known and (fault is None or now - logged_at < LOG_AGAIN_SECONDS):
            return
        self._logged = (fault, now)
        if fault is None:
            logger.info("Pods can trust the progress endpoint's certificate")
        elif self._loaded is None:
            text = "No certificate for the progress endpoint; it rejects reports while jobs continue: %s: %s. %s"
            logger.error(text, self._source, fault, _FIX)
        elif invalid is not None:
            text = "Kept the progress endpoint's former certificate, as the new one is invalid: %s: %s. %s"
            logger.warning(text, self._source, fault, _FIX)
        else:
            text = "Pods can't trust the progress endpoint's certificate, and can't report: %s: %s. %s"
            logger.warning(text, self._source, fault, _FIX)


async def keep_fresh(certificate: Certificate, use_ca: Callable[[str], None]) -> None:
    """Read the certificate again and again; `use_ca` gets a new authority, which Jobs created from then on trust."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        authority = certificate.authority
        if certificate.reload():
            logger.info("Loaded the progress endpoint's new certificate for new connections")
        if certificate.authority != authority:
            use_ca(certificate.authority)
            logger.info("Loaded the progress endpoint's new authority: only pods of new Jobs trust it")


def _read(folder: Path) -> _Loaded:
    """Return the folder's content. Raises UnusableCertificate if any file of it is invalid."""
    files = tuple(_content(folder, name) for name in _FILES)
    certificate = _parse("tls.crt", files[0], x509.load_pem_x509_certificate)
    key = _parse("tls.key", files[1], lambda pem: load_pem_private_key(pem, None))
    authorities = _parse("ca.crt", files[2], x509.load_pem_x509_certificates)
    if key.public_key() != certificate.public_key():
        raise UnusableCertificate("tls.key is not the key of tls.crt")
    # A new context each time: in a former one, OpenSSL keeps a certificate for each kind of key.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # pods don't resume sessions
    try:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    except OSError as error:
        raise UnusableCertificate(f"tls.crt and tls.key are invalid: {error}") from error
    expires = {"serving": certificate.not_valid_after_utc, "ca": authorities[0].not_valid_after_utc}
    return _Loaded(files, _pem(authorities), context, expires)


def _content(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UnusableCertificate(f"{name} can't be read: {error.strerror}") from error


def _parse(name: str, pem: bytes, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnusableCertificate(f"{name} is invalid: {error}") from error


def _authority_alone(folder: Path) -> str:
    """Return the authority as PEM, whatever the other files hold; empty if it is invalid."""
    with contextlib.suppress(UnusableCertificate):
        return _pem(_parse("ca.crt", _content(folder, "ca.crt"), x509.load_pem_x509_certificates))
    return ""


def _pem(certificates: list[x509.Certificate]) -> str:
    """Return certificates as PEM without the comments of their file: pods read only ASCII."""
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def _trust_fault(loaded: _Loaded, host: str) -> str | None:
    """Return why a pod would end the TLS handshake, or None; both sides run in memory."""
    inwards, outwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = loaded.context.wrap_bio(inwards, outwards, server_side=True)
    try:
        trust = ssl.create_default_context(cadata=loaded.authority)
        pod = trust.wrap_bio(outwards, inwards, server_hostname=host)
        for side in (pod, server, pod):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return str(error)
    return None
