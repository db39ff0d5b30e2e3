"""The endpoint's certificates: served, handed to pods, read again when they were rotated, and never silently over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from tunery_operator.metrics import CERTIFICATE_EXPIRY

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 30.0
TELL_AGAIN_SECONDS: Final = 3600.0
"""What is wrong with the same files is told again after so long."""
_FILES: Final = ("tls.crt", "tls.key", "ca.crt")
_UTC_TIME: Final = 0x17
_CONTEXT_0: Final = 0xA0
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_NO_PAIR: Final = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"})
"""OpenSSL's words for a key that is another certificate's."""


class UnusableCertificate(Exception):
    """What lies in the folder cannot be served, or no pod could be told to trust it; the message names the file."""


class _Loaded(NamedTuple):
    """What was read of the folder, all of it good."""

    context: ssl.SSLContext
    authority: str
    ends: dict[str, datetime]
    """By the label of the metric."""


class Certificate:
    """What the endpoint shows of itself: the certificate in a folder, as it was last read and was good.

    It stops nothing: where there is none yet, nobody is served, and it is looked for again.
    """

    def __init__(self, folder: Path, secret: str = "") -> None:
        """Read it; `secret` is the name of the Secret that the folder is made of, for the log."""
        self.folder = folder
        self.fault: str | None = None
        """Why what lies in the folder now is not taken; None: it is."""
        self._secret = f"Secret {secret}" if secret else f"the files of {folder}"
        self._loaded: _Loaded | None = None
        self._authority = ""
        self._known: tuple[bytes | None, ...] | None = None
        self._told_at = 0.0
        self.renew()

    def load(self) -> None:
        """Read it anew: new connections use it, those that stand go on. Raises UnusableCertificate.

        All or nothing: where anything is wrong with a file, what was read before goes on in every part. Into a new
        context each time: OpenSSL keeps a certificate for each kind of key, and one that is RSA now would stand beside
        the former of an elliptic curve, which it prefers.
        """
        loaded = _read(self.folder)
        self._loaded, self._authority, self.fault = loaded, loaded.authority, None
        for label, ends in loaded.ends.items():
            CERTIFICATE_EXPIRY.labels(label).set(ends.timestamp())

    def renew(self) -> bool:
        """Load it where a file has changed, or was not good; True where another is served now.

        What is wrong is told once for each content, and again after an hour.
        """
        contents = _contents(self.folder)
        changed = contents != self._known
        if not changed and self.fault is None:
            return False
        self._known = contents
        try:
            self.load()
        except UnusableCertificate as error:
            self._refuse(str(error), changed=changed)
            return False
        return True

    def _refuse(self, fault: str, *, changed: bool) -> None:
        self.fault = fault
        if self._loaded is None:
            # Pods that are made meanwhile can report once the rest is mended.
            self._authority = _authority_in(self.folder)
            for label in ("serving", "ca"):
                CERTIFICATE_EXPIRY.labels(label).set(0)
        if not changed and time.monotonic() - self._told_at < TELL_AGAIN_SECONDS:
            return
        self._told_at = time.monotonic()
        so = (
            "the progress endpoint has no certificate that it could be served with, and takes no reports: jobs run on, "
            "and nothing is heard of them"
            if self._loaded is None
            else "the progress endpoint's new certificate is not taken, and the one before is served on"
        )
        logger.log(
            logging.ERROR if self._loaded is None else logging.WARNING,
            "%s: %s: %s. Mend that (progress.certificate in the chart's values says whose it is; one that the chart "
            "has made is made anew as docs/operations.md says, at Upgrade); it is read again within two minutes, "
            "without a restart",
            so,
            self._secret,
            fault,
        )

    @property
    def context(self) -> ssl.SSLContext | None:
        """What to serve the next connection with, never to be kept; None: there is none yet."""
        return self._loaded and self._loaded.context

    @property
    def authority(self) -> str:
        """What pods are to trust, as PEM; empty: not known."""
        return self._authority


def _read(folder: Path) -> _Loaded:
    """Return all that lies in the folder; raises UnusableCertificate where any of it is not good."""
    certificate, key, authority = (_text(folder, name) for name in _FILES)
    ends = {"serving": _end("tls.crt", certificate), "ca": _end("ca.crt", authority)}
    _trusting(authority)
    if "ENCRYPTED" in key:
        raise UnusableCertificate("tls.key is encrypted, and nobody is there to give its passphrase")
    if "PRIVATE KEY-----" not in key:
        raise UnusableCertificate("tls.key holds no private key in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    except OSError as error:
        reason = getattr(error, "reason", None)
        if reason in _NO_PAIR:
            raise UnusableCertificate("tls.key is not the key of tls.crt") from error
        raise UnusableCertificate(f"tls.crt and tls.key cannot be used: {error}") from error
    return _Loaded(context, _for_pods(authority), ends)


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UnusableCertificate(f"{name} is missing") from error
    except (OSError, ValueError) as error:
        raise UnusableCertificate(f"{name} cannot be read: {error}") from error


def _end(name: str, pem: str) -> datetime:
    try:
        return not_after(pem)
    except (ValueError, IndexError) as error:
        raise UnusableCertificate(f"{name} holds no whole certificate in PEM") from error


def _trusting(pem: str) -> ssl.SSLContext:
    """Return what a pod verifies with that trusts this authority alone; raises UnusableCertificate where it is none.

    Of its text only the certificates count, as for OpenSSL where it reads a file.
    """
    found = "\n".join(_CERTIFICATE.findall(pem))
    if found:
        with contextlib.suppress(OSError, ValueError):
            return ssl.create_default_context(cadata=found)
    raise UnusableCertificate("ca.crt holds no whole certificate in PEM")


def _for_pods(pem: str) -> str:
    """Return an authority as pods read it, who know ASCII only: as it is, or without what stands between."""
    return pem if pem.isascii() else "\n".join([*_CERTIFICATE.findall(pem), ""])


def _authority_in(folder: Path) -> str:
    """Return the authority of a folder of which another file is not good; empty where it is not good either."""
    with contextlib.suppress(UnusableCertificate):
        pem = _text(folder, "ca.crt")
        _trusting(pem)
        return _for_pods(pem)
    return ""


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
        """Find out anew; of a certificate that is not there it has told itself."""
        context = self._certificate.context
        if context is None:
            self.fault = self._certificate.fault
            return
        fault = _fault(context, self._certificate.authority, self._host)
        if fault not in (None, self.fault):
            logger.warning(
                "pods cannot trust the progress endpoint's certificate: %s. They train on, and nothing is heard of "
                "them: correct the Secret that progress.certificate in the chart's values names",
                fault,
            )
        elif fault is None and self.fault is not None:
            logger.info("pods can trust the progress endpoint's certificate again")
        self.fault = fault


def _fault(context: ssl.SSLContext, authority: str, host: str) -> str | None:
    """Shake hands in memory, as a pod does that trusts the authority; return why it would not, None where it would."""
    inwards, outwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(inwards, outwards, server_side=True)
    trusting = _trusting(authority)
    pods = trusting.wrap_bio(outwards, inwards, server_hostname=host)
    for side in (pods, ours, pods):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except ssl.SSLError as error:
            return str(error)
    return None


async def keep_fresh(certificate: Certificate, use_ca: Callable[[str], None], look: Callable[[], None]) -> None:
    """Read certificate and authority again whenever a file has changed.

    `use_ca` gets a new authority as PEM: run configurations that are written from then on hand it to their pods.
    `look` is called each time: a certificate may also end.
    """
    while True:
        look()
        await asyncio.sleep(CHECK_SECONDS)
        authority = certificate.authority
        if certificate.renew():
            logger.info("the progress endpoint's certificate was read anew: new connections are served with it")
        if certificate.authority != authority:
            use_ca(certificate.authority)
            logger.info(
                "the progress endpoint's authority was rotated: pods that run can report no more, new Jobs trust it"
            )


def _contents(folder: Path) -> tuple[bytes | None, ...]:
    """Return what the files hold; None of one that cannot be read."""
    return tuple(map(_content, (folder / name for name in _FILES)))


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


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
