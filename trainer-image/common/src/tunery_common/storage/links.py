"""What is said of links that lead to nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def is_dead(path: Path) -> bool:
    """Tell whether it is a link to nothing, or to itself."""
    return path.is_symlink() and not path.exists()


def leads_to_itself(link: Path) -> bool:
    """Tell whether a link leads back to itself, by way of others or not."""
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def said_of_dead(link: Path) -> str:
    """Return what is wrong with a link to nothing, or to itself, as the end of a sentence."""
    if leads_to_itself(link):
        return f"is a link to {os.readlink(link)}, which leads back to itself"
    return f"is a link to {os.readlink(link)}, where nothing is"
