"""Read what a bucket answers with: every byte that was asked for, or an error where a server or a proxy broke off.

Nobody else looks: neither urllib3, as botocore sets it up, nor http.client tells a body that was cut from a whole one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, cast

from botocore.exceptions import BotoCoreError, IncompleteReadError
from botocore.model import OperationModel
from urllib3.exceptions import ProtocolError

from tunery_common.storage import transfer
from tunery_common.storage.asker import check_waited_for

Answer = Mapping[str, Any]
"""What get_object returns."""
_LONGEST_CHUNK_SECONDS: Final = 0.5
"""Between the first byte of a chunk and the last."""
_ATTEMPTS: Final = 3
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class OtherBytes(BotoCoreError):
    """What is sent is not what was asked for, or nobody can tell whether it is."""

    fmt = "{problem}"


@dataclass(frozen=True)
class Span:
    """Bytes of an object that are asked for."""

    start: int = 0
    length: int | None = None
    """At most so many; None: all that follow."""
    least: int = 0
    """What is known to be there."""

    @property
    def header(self) -> str:
        """The value of the header Range."""
        return f"bytes={self.start}-{'' if self.length is None else self.start + self.length - 1}"


def chunks(answer: Answer, span: Span) -> Iterator[bytes]:
    """Yield the bytes of a span as they come; raises BotoCoreError where they end too soon, or are others.

    They are as they are stored: what Content-Encoding says is not looked at.
    """
    with cast("_Raw", answer["Body"]) as raw:
        announced, came = _announced(answer, raw, span), 0
        for chunk in _coming(raw):
            if announced is not None and came + len(chunk) > announced:
                raise OtherBytes(problem=f"the server sent more than the {announced:,} bytes that it said")
            if span.length is not None and came + len(chunk) > span.length:
                yield chunk[: span.length - came]  # of a whole object that is longer no more is read
                return
            came += len(chunk)
            yield chunk
    expected = max(announced or 0, span.least)
    if came < expected:
        raise IncompleteReadError(actual_bytes=came, expected_bytes=expected)


def whole(ask: Callable[[], Answer], span: Span) -> bytes:
    """Return all of them at once; what breaks off is asked for again, as botocore does before a body has begun."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return b"".join(chunks(ask(), span))
        except (IncompleteReadError, ProtocolError):
            continue
    return b"".join(chunks(ask(), span))


def _announced(answer: Answer, raw: _Raw, span: Span) -> int | None:
    """Return how many bytes are to come; None: they come in chunks, which say by themselves where they end."""
    if answer["ResponseMetadata"]["HTTPStatusCode"] == 206 and "ContentRange" in answer:
        return _of_range(answer["ContentRange"], span)
    if span.start:
        raise OtherBytes(problem="the server sent other bytes than the range that it was asked for")
    if raw.length_remaining is None and not raw.chunked:
        raise OtherBytes(problem="the server does not say how many bytes it sends, and closed the connection")
    return raw.length_remaining


def _of_range(said: str, span: Span) -> int:
    found = _CONTENT_RANGE.fullmatch(said)
    if found is not None:
        count = int(found[2]) + 1 - int(found[1])
        to_the_end = found[3] in ("*", str(int(found[2]) + 1))
        whole = count == span.length or (to_the_end and (span.length is None or count < span.length))
        if int(found[1]) == span.start and count > 0 and whole:
            return count
    raise OtherBytes(problem=f"the server sent {said} where {span.header} was asked for")


def _coming(raw: _Raw) -> Iterator[bytes]:
    """Yield a body in chunks, smaller ones where little comes: a trickle is to be noticed, and meets GivenUp."""
    while True:
        chunk, began = bytearray(), time.monotonic()
        while len(chunk) < transfer.CHUNK_BYTES and time.monotonic() - began < _LONGEST_CHUNK_SECONDS:
            check_waited_for()
            data = raw.read1(transfer.CHUNK_BYTES - len(chunk))
            if not data:
                break
            chunk += data
        if not chunk:
            return
        yield bytes(chunk)


class _Raw(Protocol):
    """What a body of botocore gives within `with`: urllib3's response, which has what its own wrapper has not."""

    chunked: bool
    length_remaining: int | None
    """By Content-Length; None where none is given, or where chunks count instead."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read1(self, most: int) -> bytes:
        """Return what has come, at most so many bytes; none at the end."""
        ...


def refuse_cut(operation_model: OperationModel, response_dict: dict[str, object], **_: object) -> None:
    """Have botocore, before it reads an answer, ask again for one whose text is shorter than its length.

    An empty text would be taken for an empty listing, or for a refusal without a reason.
    """
    body, headers = response_dict["body"], cast("dict[str, str]", response_dict["headers"])
    if not isinstance(body, bytes) or operation_model.http.get("method") == "HEAD":
        return
    said = headers.get("content-length", "")
    if said.isdecimal() and len(body) < int(said) and "transfer-encoding" not in headers:
        response_dict["status_code"] = 500  # as botocore does with half an XML text
