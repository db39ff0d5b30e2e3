"""The platform's own certificate authorities: whatever opens a connection trusts them beside the public ones."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from botocore.httpsession import get_cert_path

from tunery_api.names import CA_BUNDLE_ENV
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError, first_line

READ_BY: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables that libraries read: OpenSSL, and with it the hub's client; requests (MLflow, W&B); boto3."""
_FILE: Final = "tunery-ca-bundle.pem"
_STORE: Final = retry(
    "Ask a cluster admin to store PEM certificates in the ConfigMap and key that trainer.caBundle names"
)


def trust_platform(environment: MutableMapping[str, str] = os.environ, folder: Path | None = None) -> None:
    """Let this process, and those that it starts, trust the authorities that the platform has mounted, if it has.

    They are put behind the public ones, in a file of its own in `folder` (the temporary one): a ConfigMap that holds
    only a private authority takes nothing away. A variable that is set already stays. Raises MOUNT_FAILED where what
    is mounted holds no certificate.
    """
    mounted = environment.get(CA_BUNDLE_ENV)
    if not mounted:
        return
    try:
        own = Path(mounted).read_text(encoding="utf-8")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=own)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        message = f"the platform's certificate authorities in {mounted} cannot be used: {first_line(error)}"
        raise TuneryError(FailureReason.MOUNT_FAILED, message, _STORE) from error
    public = Path(str(get_cert_path(True))).read_text(encoding="utf-8")
    target = (folder or Path(tempfile.gettempdir())) / _FILE
    written = target.with_suffix(f".{os.getpid()}")
    written.write_text(f"{public.rstrip()}\n{own}", encoding="utf-8")
    written.replace(target)
    for name in READ_BY:
        environment.setdefault(name, str(target))
