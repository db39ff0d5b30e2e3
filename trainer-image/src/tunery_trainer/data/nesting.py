"""How deep a row may be nested: what reads it, renders it and writes it down goes down by its own stack."""

from __future__ import annotations

from typing import Any, Final

MAX_DEPTH: Final = 100
TOO_DEEP: Final = f"is nested more than {MAX_DEPTH} levels deep"


def too_deep(value: Any, brackets: int) -> bool:
    """Tell whether `value`, which was written with so many opening brackets, is nested deeper than is read."""
    if brackets <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return False
    return True
