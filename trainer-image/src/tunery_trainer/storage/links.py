"""What is said of links, and of files that the kernel does not let be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

IN_THE_WAY: Final = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What the kernel says where something stands there that is no file, and will not become one by waiting."""


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
