"""Log lines of the server: to stderr, each without credentials."""

from __future__ import annotations

import logging
from typing import Final

from tunery_api.redact import RedactingFormatter

MAX_LINE: Final = 8192


def configure_logging() -> None:
    """Send every line to stderr; what aiohttp tells of each request, or of each bad one, is left out."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", MAX_LINE))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("aiohttp.access", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
