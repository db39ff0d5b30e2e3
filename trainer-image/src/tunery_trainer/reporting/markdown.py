"""Sections and tables of the Markdown that lies beside a result."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

_SIGNS: Final = {ord(sign): f"&#{ord(sign)};" for sign in "`*_[]"}


def section(title: str, content: str, level: int = 2) -> str:
    """Return a heading and what stands below it; empty where nothing does."""
    return f"{'#' * level} {title}\n\n{content}" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, one line a row whatever stands in its cells; empty without rows."""
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def literal(text: str) -> str:
    """Return a text of anybody's that Markdown shows as it is: no HTML, no link, no emphasis."""
    return html.escape(text).translate(_SIGNS)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
