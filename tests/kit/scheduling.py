"""Which test files one worker of pytest-xdist runs because they share servers that take long to start."""

from __future__ import annotations

from typing import Final

SHARING: Final = {
    "control plane": (
        "integration/api/",
        "integration/operator/",
        "integration/workflows/",
        "integration/trainer/sweeping/test_local_sweep.py",
    ),
    "installation": ("integration/chart/installed/",),
}
"""The beginnings of their names, by what they share."""


def scope_of(nodeid: str) -> str:
    """Return what the file of a test shares with others, or the file: tests of one scope run on one worker."""
    file = nodeid.split("::")[0]
    return next((shared for shared, names in SHARING.items() if file.startswith(names)), file)
