"""How the engine answers while it ends: in words of its own, which are of no request's making."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Final

ENDS: Final = frozenset(
    {"cannot schedule new futures after shutdown", "cannot schedule new futures after interpreter shutdown"}
)
"""vLLM ends its threads first, for seconds before it closes its socket: what comes meanwhile gets 500 with these words.

They are of Python's concurrent.futures.thread (seen with vLLM 0.32).
"""
DIED: Final = frozenset({"EngineCore encountered an issue. See stack trace (above) for the root cause."})
"""What every request in flight gets whose engine has died: vllm/v1/engine/exceptions.py, EngineDeadError."""
STANDS_SECONDS: Final = 15.0
"""For so long after such an answer the replica asks for no requests: until its engine is gone, or started again."""


def engines_words(read: bytes) -> str | None:
    """Return the message of an error, None where the answer holds none."""
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        return str(json.loads(read)["error"]["message"])
    return None


class Dying:
    """When the engine last said that it ends."""

    def __init__(self) -> None:
        self._said: float | None = None

    def said(self) -> None:
        """Take note that it says so."""
        self._said = time.monotonic()

    def answers(self) -> None:
        """Take note that it answers as ever."""
        self._said = None

    @property
    def now(self) -> bool:
        """Tell whether it is ending: no request is to come meanwhile."""
        return self._said is not None and time.monotonic() - self._said < STANDS_SECONDS
