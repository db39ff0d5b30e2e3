"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file in place of the one that is there, in one piece, so that a killed machine has the one or the other.

    Only one process may write it.
    """
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
