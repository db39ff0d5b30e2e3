"""The endpoint's certificate, read again when it was rotated."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 30.0


def server_context(folder: Path) -> ssl.SSLContext:
    """Return a context that serves tls.crt with tls.key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, folder)
    return context


def load(context: ssl.SSLContext, folder: Path) -> None:
    """Read the certificate into a context: new connections use it."""
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")


def read_ca(folder: Path) -> str:
    """Return the certificate authority that pods verify the endpoint with, as PEM."""
    return (folder / "ca.crt").read_text()


async def keep_fresh(context: ssl.SSLContext, folder: Path) -> None:
    """Read the certificate again whenever its file has changed."""
    known = (folder / "tls.crt").read_bytes()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            content = (folder / "tls.crt").read_bytes()
            if content != known:
                load(context, folder)
                known = content
                logger.info("the progress endpoint's certificate was rotated")
        except (OSError, ssl.SSLError) as error:
            # Caught between two files of a rotation: the next look finds both.
            logger.warning("the progress endpoint's certificate could not be read: %s", error)
