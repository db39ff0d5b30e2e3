"""The row on its way through: where it came from, what it became, or why it is bad."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

JsonObject = dict[str, Any]

_CANONICAL: Final = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands in the files."""

    file: str
    number: int
    unit: str = "line"
    """`line`, or `row` where the file has no lines (parquet)."""

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


def encodable(text: str) -> str:
    """What of the data is named in reports, with halves of surrogate pairs as escapes: nothing could write them."""
    return text.encode(errors="backslashreplace").decode()


class RowError(Exception):
    """One bad row: the field (may be empty) and why; `columns`: it has the columns of no format."""

    def __init__(self, field: str, why: str, *, columns: bool = False) -> None:
        self.field, self.why, self.columns = encodable(field), encodable(why), columns
        super().__init__(f"{self.field}: {self.why}" if field else self.why)


def json_type(value: object) -> str:
    """The name of a value's type as JSON knows it, for messages; of what only parquet has, the name Python has."""
    names: dict[type, str] = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
    names |= {list: "array", tuple: "array", dict: "object"}
    return names.get(type(value), type(value).__name__)


def as_object(value: Any) -> JsonObject | RowError:
    """`value` as the object that a row must be, or why it is none."""
    return value if isinstance(value, dict) else RowError("", f"must be a JSON object, found {json_type(value)}")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as read: an object, or the reason why it is none."""

    place: RowPlace
    value: JsonObject | RowError


@dataclass(frozen=True, slots=True)
class Example:
    """One valid row: either plain text, or a conversation with the tools that it may use."""

    place: RowPlace
    text: str | None = None
    completion_at: int | None = None
    """Of a text: characters before its completion, which alone is learned; None: all of it is."""
    messages: tuple[JsonObject, ...] = ()
    tools: tuple[JsonObject, ...] = ()
    context: frozenset[int] = frozenset()
    """Indexes of the assistant's messages that are read only, as the row's own weight or train says."""

    rejected: Example | None = None
    """Of a pair: the other answer to the same prompt, with everything before it."""
    desirable: bool | None = None
    """Of a single answer: whether it is wanted; None where nobody says."""

    @property
    def answers(self) -> tuple[int, ...]:
        """Indexes of the assistant's messages."""
        return tuple(index for index, message in enumerate(self.messages) if message["role"] == "assistant")

    @property
    def trained(self) -> tuple[int, ...]:
        """Indexes of the messages to learn."""
        return tuple(index for index in self.answers if index not in self.context)

    def digest(self) -> bytes:
        """16 bytes, equal for rows that train the same."""
        content: list[Any] = [self.text, self.messages, self.tools]
        # Only where there is something to add: which rows are held out hangs on the digest, and shall stay.
        if self.context or self.completion_at is not None:
            content += [sorted(self.context), self.completion_at]
        if self.rejected is not None or self.desirable is not None:
            content += [self.rejected and self.rejected.digest().hex(), self.desirable]
        return hashlib.blake2b(_CANONICAL(content).encode(), digest_size=16).digest()
