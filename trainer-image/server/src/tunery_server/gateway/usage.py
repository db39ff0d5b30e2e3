"""The number of tokens of an answer, read in passing: the bytes go on as they come."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

MAX_EVENT: Final = 1 << 20
"""What is held of an event whose end has not come; one that is longer is none of ours."""
_MARK: Final = b'"usage"'
"""Within a string of JSON its quotes would be escaped."""
_ENDS: Final = re.compile(rb"(?>\r\n|\n|\r){2}")
_LINES: Final = re.compile(rb"\r\n|\n|\r")
_MOST_TOKENS: Final = 10**9


@dataclass(frozen=True)
class Usage:
    """Tokens that were read and written."""

    prompt: int
    completion: int


def usage_of(answer: object) -> Usage | None:
    """Return what an answer, or an event of one, says of itself: in OpenAI's words, old or new."""
    if not isinstance(answer, dict):
        return None
    inner = answer.get("response")
    told = answer.get("usage") or (inner.get("usage") if isinstance(inner, dict) else None)
    if not isinstance(told, dict):
        return None
    return Usage(_count(told, "prompt_tokens", "input_tokens"), _count(told, "completion_tokens", "output_tokens"))


def _count(told: dict[str, Any], *names: str) -> int:
    found = next((told[name] for name in names if name in told), 0)
    return found if isinstance(found, int) and 0 <= found <= _MOST_TOKENS else 0


def usage_in(body: bytes) -> Usage | None:
    """Return what a whole answer says of itself. Only the part that says it is read: the rest may be large.

    A token may read `usage`, too, and stand behind it among the log-probabilities.
    """
    place = body.rfind(_MARK)
    while place >= 0:
        behind = body[place + len(_MARK) : place + len(_MARK) + 4096].decode(errors="replace").lstrip()
        if behind.startswith(":"):
            with suppress(ValueError, RecursionError):
                value = json.JSONDecoder().raw_decode(behind[1:].lstrip())[0]
                if (found := usage_of({"usage": value})) is not None:
                    return found
        place = body.rfind(_MARK, 0, place)
    return None


class UsageReader:
    """Reads a stream of server-sent events.

    `swallow`: the event that holds only the number of tokens is left out, for a client that had not asked for it.
    """

    def __init__(self, swallow: bool) -> None:
        self._swallow = swallow
        self._tail = b""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what of the stream goes on now: with `swallow` whole events only, else `data`."""
        if not self._tail and _MARK not in data and data.endswith((b"\n\n", b"\r\n\r\n")):
            return data
        whole = self._tail + data
        cut = _end_of_last(whole)
        if cut == 0 and len(whole) > MAX_EVENT:
            cut = len(whole)
        complete, self._tail = whole[:cut], whole[cut:]
        kept = self._read(complete)
        return kept if self._swallow else data

    def end(self) -> bytes:
        """Return what is left at the end of the stream."""
        rest, self._tail = self._tail, b""
        kept = self._read(rest)
        return kept if self._swallow else b""

    def _read(self, events: bytes) -> bytes:
        if _MARK not in events:
            return events
        return b"".join(event for event in _split(events) if _MARK not in event or not self._look(event))

    def _look(self, event: bytes) -> bool:
        """Take the number of tokens from an event; return whether it holds nothing else."""
        lines = [line[5:].removeprefix(b" ") for line in _LINES.split(event) if line.startswith(b"data:")]
        try:
            payload = json.loads(b"\n".join(lines))
        except (ValueError, RecursionError):
            return False
        found = usage_of(payload)
        self.usage = found or self.usage
        return found is not None and payload.get("choices") == []


def _end_of_last(data: bytes) -> int:
    r"""Return where the last complete event ends, or 0. A \r at the very end may be the half of a line's end."""
    if b"\r" not in data:
        place = data.rfind(b"\n\n")
        return place + 2 if place >= 0 else 0
    ends = [found.end() for found in _ENDS.finditer(data)]
    if ends and ends[-1] == len(data) and data.endswith(b"\r"):
        ends.pop()
    return ends[-1] if ends else 0


def _split(events: bytes) -> Iterator[bytes]:
    start = 0
    for found in _ENDS.finditer(events):
        yield events[start : found.end()]
        start = found.end()
    if start < len(events):
        yield events[start:]
