"""Remove what cut-off uploads of our own prefix left behind; it costs money and nobody sees it."""

from __future__ import annotations

import logging
from typing import Final

from tunery_common.errors import TuneryError
from tunery_common.storage.base import StorePath

STALE_UPLOAD_SECONDS: Final = 24 * 3600
"""Younger ones may be another attempt's that still goes on."""

_log = logging.getLogger(__name__)


def remove_stale_uploads(place: StorePath, older_than_seconds: float = STALE_UPLOAD_SECONDS) -> int:
    """Abort unfinished uploads below `place` that are older than a day, or than was said; return how many.

    Credentials may lack the rights for it, and a server may not offer it: neither is a reason to stop.
    """
    try:
        return place.store.abort_stale_uploads(place.prefix, older_than_seconds)
    except TuneryError as error:
        _log.info("unfinished uploads were not looked for: %s", error.message)
        return 0
