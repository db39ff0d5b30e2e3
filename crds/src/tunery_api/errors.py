"""What is wrong with a spec: every error at once, each with the path of its field."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class FieldError(NamedTuple):
    """One thing that is wrong: `spec.lora.rank` and `must be at least 1, is 0`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidSpec(Exception):
    """A manifest that cannot be run; it carries every error that was found."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


def near(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` where one of `known` is close to `word`, in any case of letters; else nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
