"""Whether a further request has begun on a connection: aiohttp's parser keeps a part of a head to itself."""

from __future__ import annotations

from typing import Final

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

_END: Final = b"\r\n\r\n"
"""Of a head, and of a body in chunks."""
_BLANK: Final = b"\r\n"
"""Bytes that begin nothing: some clients send a line too much behind a body, which HTTP has servers pass over."""


class Further:
    """Told of all bytes that come, it knows whether some came behind the last request that is whole.

    Where it cannot know it says no, so that nobody's connection is closed who keeps one as he may. So it is fooled by
    who wants to: by a body with the end of a head in the right place, or one that is compressed.
    """

    __slots__ = ("_body", "_left", "_message", "_tail", "_whole", "begun")

    def __init__(self) -> None:
        self.begun = False
        self._message: RawRequestMessage | None = None
        """The last request."""
        self._body: StreamReader | None = None
        self._whole = True
        self._left: int | None = 0
        """Bytes of its body that are to come; None: nobody knows."""
        self._tail = b""

    def came(self, data: bytes, message: object = None, body: StreamReader | None = None) -> None:
        """Take note of bytes that were parsed, and of the last request whose head they have ended, if any."""
        if body is not None:
            self._message, self._body = message if isinstance(message, RawRequestMessage) else None, body
        was_whole, self._whole = self._whole, self._body is None or self._body.is_eof()
        self.begun = self._whole and self._behind(data, new=body is not None, was_whole=was_whole)
        self._left = None if self._whole else self._to_come()
        self._tail = (self._tail + data[-len(_END) :])[-len(_END) :]

    def _behind(self, data: bytes, *, new: bool, was_whole: bool) -> bool:
        """Tell whether bytes are left behind a request that is whole now."""
        if not new and was_whole:
            return self.begun or bool(data.strip(_BLANK))
        if self._message is None:
            return False
        if self._message.chunked:
            return not self._ended(data)
        if not new:
            return self._left is not None and bool(data[self._left :].strip(_BLANK))
        length = _length(self._message)
        return len(data) >= length and not self._ended(data, length)

    def _ended(self, data: bytes, behind: int = 0) -> bool:
        """Tell whether there is an end so many bytes before the last of them, or before blank ones that follow."""
        came = self._tail + data
        blank = len(data) - len(data.rstrip(_BLANK))
        end = len(came) - behind
        return came.find(_END, max(0, end - blank - len(_END)), end) >= 0

    def _to_come(self) -> int | None:
        message, body = self._message, self._body
        if message is None or body is None or message.chunked or message.compression is not None:
            return None
        return _length(message) - body.total_bytes


def _length(message: RawRequestMessage) -> int:
    return int(message.headers.get("Content-Length", "0"))
