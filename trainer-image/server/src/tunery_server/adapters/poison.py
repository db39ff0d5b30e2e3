"""The breaker: a version that twice took the engine down with it is left out, so that the rest is served.

What is being tried stands in a file before the engine is told of it, so that a restart of the gateway, or of the whole
pod's containers, does not forget it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_server.adapters.notes import read_note, write_whole

STRIKES: Final = 2
_SPOILS: Final = 1_000
"""Strikes of a version after which the engine lived, and answered nonsense."""
_LOADING: Final = ".loading"
_STRUCK: Final = ".strikes.json"

_log = logging.getLogger(__name__)


class Breaker:
    """Keeps its two files in `root`."""

    def __init__(self, root: Path) -> None:
        self._loading = root / _LOADING
        self._struck = root / _STRUCK
        self._strikes: dict[str, int] = {}

    def read(self) -> None:
        """Take what an earlier process of this replica has left."""
        self._strikes = {sha: n for sha, n in read_note(self._struck).items() if type(n) is int}

    def begin(self, sha256: str, birth: str | None) -> None:
        """Note that this start of the engine is about to be told of a version; raises TuneryError(DiskFull).

        A version that it has not come back from stays the one that is noted: that is what it hangs at.
        """
        if read_note(self._loading).get("engine") == birth and self.trying() is not None:
            return
        try:
            write_whole(self._loading, json.dumps({"sha256": sha256, "engine": birth}).encode())
        except OSError as error:
            message = f"{self._loading} cannot be written: {error.strerror}"
            raise TuneryError(FailureReason.DISK_FULL, message) from error

    def trying(self) -> str | None:
        """Return the version that was being tried when an earlier process ended: it may never have answered."""
        found = read_note(self._loading).get("sha256")
        return found if isinstance(found, str) else None

    def end(self, sha256: str, *, answered: bool = False) -> None:
        """Note that the engine lives, whatever it said; a version that answered its probe has no strikes any more."""
        self._loading.unlink(missing_ok=True)
        if answered and self._strikes.pop(sha256, 0):
            self._write()

    def engine_started(self, birth: str | None) -> str | None:
        """Look at what was being tried, now that the engine is up.

        Returns the version that is struck: what the engine was told of before it went away.
        """
        found = read_note(self._loading)
        sha256 = found.get("sha256")
        if not isinstance(sha256, str) or found.get("engine") == birth:
            return None
        self._strikes[sha256] = self._strikes.get(sha256, 0) + 1
        _log.warning("the engine ended while it was given %s, for the %d. time", sha256[:12], self._strikes[sha256])
        self._write()
        self._loading.unlink(missing_ok=True)
        return sha256

    def leave_out(self, sha256: str) -> None:
        """Have a version left out that has done the engine harm, though it lives."""
        self._strikes[sha256] = _SPOILS
        self._write()

    def check(self, sha256: str) -> None:
        """Raise TuneryError(EngineFailed) for a version that is left out."""
        strikes = self._strikes.get(sha256, 0)
        if strikes >= STRIKES:
            what = f"the engine ended {strikes} times while it was given this version"
            if strikes >= _SPOILS:
                what = "the engine answered the base model with NaN after it was asked with this version"
            raise TuneryError(
                FailureReason.ENGINE_FAILED,
                f"{what}; this replica leaves it out",
                retry("Check the log of the container engine, and publish the adapter again"),
            )

    def _write(self) -> None:
        try:
            write_whole(self._struck, json.dumps(self._strikes, sort_keys=True).encode())
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._struck, error.strerror)
