"""Sections and tables of the Markdown that lies beside a result."""

from __future__ import annotations

from collections.abc import Sequence


def section(title: str, content: str, level: int = 2) -> str:
    """Return a heading and what stands below it; empty where nothing does."""
    return f"{'#' * level} {title}\n\n{content}" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, one line a row whatever stands in its cells; empty without rows."""
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
