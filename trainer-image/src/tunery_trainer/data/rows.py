"""The row on its way through: where it came from, what it became, or why it is bad."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands in the files."""

    file: str
    number: int
    unit: str = "line"
    """`line`, or `row` where the file has no lines (parquet)."""

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


class RowError(Exception):
    """One bad row: the field (may be empty) and why. It never ends the job by itself."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}" if field else why)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as read: an object, or the reason why it is none."""

    place: Place
    value: JsonObject | RowError


@dataclass(frozen=True, slots=True)
class Example:
    """One valid row: either plain text, or a conversation with the tools that it may use."""

    place: Place
    text: str | None = None
    messages: tuple[JsonObject, ...] = ()
    tools: tuple[JsonObject, ...] = ()

    def digest(self) -> bytes:
        """16 bytes, equal for rows that train the same."""
        content = json.dumps([self.text, self.messages, self.tools], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).digest()
