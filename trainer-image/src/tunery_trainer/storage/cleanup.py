"""Remove what cut-off uploads of our own prefix left behind; it costs money and nobody sees it."""

from __future__ import annotations

import logging
from typing import Final

from tunery_trainer.errors import TrainerError
from tunery_trainer.storage.base import Store

STALE_UPLOAD_SECONDS: Final = 24 * 3600
"""Younger ones may be another attempt's that still goes on."""

_log = logging.getLogger(__name__)


def remove_stale_uploads(store: Store, prefix: str, older_than_seconds: float = STALE_UPLOAD_SECONDS) -> int:
    """Abort unfinished uploads below `prefix` that are older than a day, or than was said; return how many.

    Credentials may lack the rights for it, and a server may not offer it: neither is a reason to stop.
    """
    try:
        return store.abort_stale_uploads(prefix, older_than_seconds)
    except TrainerError as error:
        _log.info("unfinished uploads were not looked for: %s", error.message)
        return 0
