"""What is met in the place of a file, known by its first bytes: a pointer of Git LFS, a web page."""

from __future__ import annotations

import re
from typing import Final

_POINTER: Final = b"version https://git-lfs"
_PAGE: Final = re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE)


def is_pointer(start: bytes) -> bool:
    """Tell whether it is a pointer of Git LFS, which a clone without `git lfs pull` holds."""
    return start.startswith(_POINTER)


def is_page(start: bytes) -> bool:
    """Tell whether it is an HTML page, such as that of an error or of a login."""
    return _PAGE.match(start) is not None
