"""The endpoint's certificates: served, handed to pods, read again when they were rotated, and never silently over."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tunery_operator.metrics import CERTIFICATE_EXPIRY

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 30.0
_FILES: Final = ("tls.crt", "tls.key", "ca.crt")
_UTC_TIME: Final = 0x17
_CONTEXT_0: Final = 0xA0


class Certificate:
    """What the endpoint shows of itself: the certificate in a folder, as it was last read."""

    def __init__(self, folder: Path) -> None:
        """Read it; raises as `load`."""
        self.folder = folder
        self.load()

    def load(self) -> None:
        """Read it anew: new connections use it, those that stand go on. Raises OSError, ValueError where it is none.

        Into a new context each time, and nothing changes where that fails. OpenSSL keeps a certificate for each kind
        of key: one that is RSA now would stand beside the former of an elliptic curve, which it prefers.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.folder / "tls.crt", self.folder / "tls.key")
        self._context = context
        tell_expiry(self.folder)

    @property
    def context(self) -> ssl.SSLContext:
        """What to serve the next connection with; never to be kept."""
        return self._context


def read_ca(folder: Path) -> str:
    """Return the certificate authority that pods verify the endpoint with, as PEM."""
    return (folder / "ca.crt").read_text()


class Trust:
    """Whether pods can trust the endpoint under the name that they are told; the log says why not, once for each cause.

    It stops nothing: who runs and cannot report trains on.
    """

    def __init__(self, certificate: Certificate, host: str) -> None:
        self._certificate = certificate
        self._host = host
        self.fault: str | None = None
        """Why they cannot, in the words of a pod's own TLS; None: they can."""

    def look(self) -> None:
        """Find out anew; raises OSError where ca.crt is no certificate of any."""
        fault = _fault(self._certificate.context, self._certificate.folder / "ca.crt", self._host)
        if fault not in (None, self.fault):
            logger.warning(
                "pods cannot trust the progress endpoint's certificate: %s. They train on, and nothing is heard of "
                "them: correct the Secret that progress.certificate in the chart's values names",
                fault,
            )
        elif fault is None and self.fault is not None:
            logger.info("pods can trust the progress endpoint's certificate again")
        self.fault = fault


def _fault(context: ssl.SSLContext, ca_file: Path, host: str) -> str | None:
    """Shake hands in memory, as a pod does that trusts the authority; return why it would not, None where it would."""
    inwards, outwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(inwards, outwards, server_side=True)
    trusting = ssl.create_default_context(cafile=ca_file)
    pods = trusting.wrap_bio(outwards, inwards, server_hostname=host)
    for side in (pods, ours, pods):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


async def keep_fresh(certificate: Certificate, use_ca: Callable[[str], None], look: Callable[[], None]) -> None:
    """Read certificate and authority again whenever a file has changed.

    `use_ca` gets a new authority as PEM: run configurations that are written from then on hand it to their pods.
    `look` is called each time: a certificate may also end.
    """
    folder = certificate.folder
    known, authority = _contents(folder), read_ca(folder)
    while True:
        try:
            look()
        except (OSError, ValueError) as error:
            logger.warning("the progress endpoint's authority could not be read: %s", error)
        await asyncio.sleep(CHECK_SECONDS)
        try:
            contents = _contents(folder)
            if contents == known:
                continue
            certificate.load()
            known = contents
            logger.info("the progress endpoint's certificate was rotated")
            if (pem := read_ca(folder)) != authority:
                authority = pem
                use_ca(pem)
                logger.info(
                    "the progress endpoint's authority was rotated: pods that run can report no more, new Jobs trust it"
                )
        except (OSError, ValueError) as error:
            # Caught between two files of a rotation: the next look finds both.
            logger.warning("the progress endpoint's certificate could not be read: %s", error)


def _contents(folder: Path) -> tuple[bytes, ...]:
    return tuple((folder / name).read_bytes() for name in _FILES)


def tell_expiry(folder: Path) -> None:
    """Set the metric that tells when the certificate and its authority end."""
    for label, name in (("serving", "tls.crt"), ("ca", "ca.crt")):
        ends = not_after((folder / name).read_text())
        CERTIFICATE_EXPIRY.labels(label).set(ends.timestamp())


def not_after(pem: str) -> datetime:
    """Return when the first certificate of a PEM text ends; raises ValueError where there is none.

    RFC 5280: Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version, serialNumber, signature, issuer,
    validity SEQUENCE { notBefore, notAfter }, … } … }. The standard library parses a certificate only for the peer of
    a handshake.
    """
    end = pem.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE-----") : end])
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = [content for tag, content in _elements(signed) if tag != _CONTEXT_0]
    _, (tag, text) = _elements(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of a DER sequence's content."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length
