"""Publish what a run has trained as patiently as that is worth: it may be in no checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tunery_api.manifest import Lineage
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.publisher import Published, Target, publish
from tunery_trainer.reporting.progress import say

PATIENCE_SECONDS: Final = 180.0
"""How long storage that does not answer is asked again; a request itself is sent five times, within a second."""
_AGAIN_SECONDS: Final = 10.0


def publish_patiently(folder: Path, target: Target, lineage: Lineage) -> Published:
    """Publish a folder; where storage does not answer, again for PATIENCE_SECONDS, and then raise as `publish` does.

    What another attempt would have to train again is here, and a GPU that waits costs less. A signal ends the process
    meanwhile, as always while it publishes. A volume or a disk that refuses does so the next time, too.
    """
    end = time.monotonic() + (PATIENCE_SECONDS if target.uri.startswith("s3://") else 0)
    while True:
        try:
            return publish(folder, target, lineage)
        except TuneryError as error:
            if error.reason is not FailureReason.STORAGE_UNAVAILABLE or time.monotonic() > end - _AGAIN_SECONDS:
                raise
            say(f"Publishing fails, and is tried again in {_AGAIN_SECONDS:g} s: {error.message}")
        time.sleep(_AGAIN_SECONDS)
