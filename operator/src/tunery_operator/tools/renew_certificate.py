"""Provide the Job that makes and renews the progress endpoint's certificate.

The Job's ServiceAccount may create, read and change that one Secret; the operator may read none. The chart doesn't
render the Secret, so nothing that applies or replaces what it renders touches it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import load_connection
from tunery_operator.client.permissions import CERTIFICATE_PERMISSIONS, CREATE_SECRET, GET_SECRET, PATCH_SECRET
from tunery_operator.errors import ApiFailure

logger = logging.getLogger(__name__)

LEAST_LEFT: Final = timedelta(days=30)
"""The Job renews a certificate that ends sooner; one for less than three times that, in its last third."""
_LABELS: Final = {"app.kubernetes.io/component": "certificate", "app.kubernetes.io/part-of": "tunery"}
"""Not the release's: Argo CD prunes what has app.kubernetes.io/instance and is not rendered."""
_MOST_DAYS: Final = 36_500
_CLOCKS_DIFFER: Final = timedelta(hours=1)
_PEM: Final = serialization.Encoding.PEM


class Unusable(Exception):
    """The Secret has no usable certificate; the message says why."""


class Files(NamedTuple):
    """The Secret's content as PEM: the certificate authority that pods trust, the certificate, and its key."""

    ca: bytes
    certificate: bytes
    key: bytes


_KEYS: Final = Files("ca.crt", "tls.crt", "tls.key")  # type: ignore[arg-type] # names in place of contents


def make(host: str, days: int, now: datetime) -> Files:
    """Return a new certificate authority and its certificate for one host name; the authority's key is dropped.

    On curve P-256: a handshake costs the operator a fraction of one with RSA.
    """
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ends = now + timedelta(days=days)
    issuer = _name("tunery-progress-ca")
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = _builder(issuer, issuer, ca_key.public_key(), now, ends)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_usage(signs=True), critical=True).add_extension(ca_id, critical=False)
    of_ca = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    leaf = _builder(_name("tunery-progress"), issuer, key.public_key(), now, ends)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(_usage(signs=False), critical=True).add_extension(of_ca, critical=False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    private = serialization.PrivateFormat.PKCS8
    return Files(
        ca.sign(ca_key, hashes.SHA256()).public_bytes(_PEM),
        leaf.sign(ca_key, hashes.SHA256()).public_bytes(_PEM),
        key.private_bytes(_PEM, private, serialization.NoEncryption()),
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    # A node's clock may be behind.
    return builder.not_valid_before(now - _CLOCKS_DIFFER).not_valid_after(ends)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def check(files: Files, host: str, now: datetime) -> None:
    """Raise Unusable unless pods that trust the CA can connect to `host` for 30 days, or a third of its validity."""
    try:
        authorities = x509.load_pem_x509_certificates(files.ca)
        certificate = x509.load_pem_x509_certificate(files.certificate)
        key = serialization.load_pem_private_key(files.key, None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise Unusable(f"it cannot be read: {error}") from error
    if host not in names.get_values_for_type(x509.DNSName):
        raise Unusable(f"it is not for {host}")
    if key.public_key() != certificate.public_key():
        raise Unusable("its key does not match")
    if not any(_issued(authority, certificate) for authority in authorities):
        raise Unusable("no authority in ca.crt has issued it")
    for each in (certificate, *authorities):
        ends = each.not_valid_after_utc
        if ends < now + min(LEAST_LEFT, (ends - each.not_valid_before_utc) / 3):
            raise Unusable(f"it expires soon, or has expired: {ends:%Y-%m-%d %H:%M} UTC")


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class Request(NamedTuple):
    """The chart's arguments: the Secret of the certificate, its host, and its days."""

    namespace: str
    secret: str
    host: str
    days: int


def ensure(client: KubeClient, request: Request, now: datetime) -> str:
    """Write a certificate into the Secret unless it has a usable one, which running pods trust; return what was done.

    Raises ApiFailure if the API server doesn't answer, or another run was faster.
    """
    present = client.get(GET_SECRET, request.namespace, request.secret)
    if present is None:
        why = "there was none"
        _create(client, request, now)
    else:
        found = _why_not(present, request.host, now)
        if found is None:
            return f"the certificate in the Secret {request.secret} is still valid"
        why = found
        # With its version as precondition: of two runs one writes, and the other one retries.
        meta = {"resourceVersion": present["metadata"]["resourceVersion"]}
        body = {"metadata": meta, "data": _data(make(request.host, request.days, now))}
        client.request(PATCH_SECRET, request.namespace, request.secret, body)
    return f"the certificate for {request.host} in the Secret {request.secret} was created: {why}"


def _create(client: KubeClient, request: Request, now: datetime) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        # A Secret of type kubernetes.io/tls could not be emptied.
        "type": "Opaque",
        "metadata": {"name": request.secret, "labels": _LABELS},
        "data": _data(make(request.host, request.days, now)),
    }
    # A field manager of this run: if another run is faster, the API server reports a conflict for this one.
    manager = {"fieldManager": f"tunery-certificate-{secrets.token_hex(4)}"}
    client.request(CREATE_SECRET, request.namespace, request.secret, body, manager)


def _data(files: Files) -> dict[str, str]:
    return {name: base64.b64encode(pem).decode() for name, pem in zip(map(str, _KEYS), files, strict=True)}


def _why_not(secret: Mapping[str, Any], host: str, now: datetime) -> str | None:
    """Return why a Secret's certificate is unusable, or None."""
    try:
        check(_files(secret), host, now)
    except Unusable as error:
        return str(error)
    return None


def _files(secret: Mapping[str, Any]) -> Files:
    data = secret.get("data") or {}
    if missing := [name for name in _KEYS if not data.get(name)]:
        raise Unusable(f"{', '.join(map(str, missing))} was missing")
    try:
        return Files(*(base64.b64decode(data[name], validate=True) for name in _KEYS))
    except binascii.Error as error:
        raise Unusable(f"it cannot be read: {error}") from error


def _days(text: str) -> int:
    """Return the days of a certificate: at least 1, as no pod could report with an expired one."""
    if text.isdecimal() and 1 <= int(text) <= _MOST_DAYS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not from 1 to {_MOST_DAYS}: set progress.certificate.days")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the certificate; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("namespace", "secret", "host"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--days", type=_days, required=True)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    request = Request(args.namespace, args.secret, args.host, args.days)
    try:
        with KubeClient(load_connection(), allowed=CERTIFICATE_PERMISSIONS) as client:
            done = ensure(client, request, datetime.now(UTC))
    except ApiFailure as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is for an admin, who needs no traceback
        return 1
    logger.info("%s", done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
