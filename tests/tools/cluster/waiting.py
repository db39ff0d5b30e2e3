"""Waiting for something that has a check, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_SECONDS = 0.1


class WaitedTooLong(Exception):
    """A check did not come true in time."""


def wait_until(check: Callable[[], bool], what: str, timeout: float) -> None:
    """Return once `check` is true; raise WaitedTooLong, which names `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise WaitedTooLong(f"{what}: not so after {timeout:.0f} s")
        time.sleep(POLL_SECONDS)
