"""Where the local cluster keeps what it builds once and what it runs on."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE = Path(__file__).resolve().parent


@cache
def cache_dir() -> Path:
    """Return the folder of what survives clusters and checkouts: binaries, base images, the converted model.

    Read once: the trainer changes XDG_CACHE_HOME of the process that it runs in.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tunery"


def default_state_dir() -> Path:
    """Return the state folder of the demo cluster; TUNERY_CLUSTER_STATE overrides it."""
    chosen = os.environ.get("TUNERY_CLUSTER_STATE")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(chosen) if chosen else Path(base) / "tunery" / "cluster"
