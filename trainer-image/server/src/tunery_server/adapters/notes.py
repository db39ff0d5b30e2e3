"""Small files beside the adapters, written whole or not at all: what must outlive the gateway's own restart."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SERVED: Final = ".served.json"
_USED: Final = ".used.json"
USED_SECONDS: Final = 60.0
"""Between two writes of what was asked for when."""

_log = logging.getLogger(__name__)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step; raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(content)
    os.replace(draft, path)


def read_note(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class ServedNote:
    """Which version each name led to, once it had answered its probe: after a restart that is taken up again."""

    def __init__(self, root: Path) -> None:
        self._path = root / _SERVED
        self._known: dict[str, str] = {}

    def read(self) -> None:
        """Take what an earlier process of this replica has left."""
        self._known = {name: sha for name, sha in read_note(self._path).items() if isinstance(sha, str)}

    def get(self, name: str) -> str | None:
        """Return the digest of the version that `name` led to last."""
        return self._known.get(name)

    def digests(self) -> frozenset[str]:
        """Return all of them."""
        return frozenset(self._known.values())

    def keep(self, served: Mapping[str, str]) -> None:
        """Note what names lead to now; without room on the disk it is known only until this process ends."""
        if served == self._known:
            return
        self._known = dict(served)
        try:
            write_whole(self._path, json.dumps(self._known, sort_keys=True).encode())
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)


class UsedNote:
    """When each name was last asked for: after a restart of the gateway those of late are loaded first."""

    def __init__(self, root: Path) -> None:
        self._path = root / _USED
        self._known: dict[str, int] = {}
        self._last = -math.inf

    def due(self, now: float) -> bool:
        """Tell whether it is time to note it again; whoever asks does so then."""
        if now - self._last < USED_SECONDS:
            return False
        self._last = now
        return True

    def read(self) -> dict[str, int]:
        """Return what an earlier process of this replica has left."""
        self._known = {name: when for name, when in read_note(self._path).items() if type(when) is int and when > 0}
        return self._known

    def keep(self, used: Mapping[str, int]) -> None:
        """Note what is so now; without room on the disk it is known only until this process ends."""
        if used == self._known:
            return
        self._known = dict(used)
        try:
            write_whole(self._path, json.dumps(self._known).encode())
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)
