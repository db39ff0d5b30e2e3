"""The lines of the input, one at a time: whatever its size, no more of it is held than one of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.zstd import ZstdReader
from tunery_server.gateway.body import MAX_BODY

MAX_LINE: Final = MAX_BODY
"""Bytes of a line: no more of a body is let in by the server."""
_BUFFER: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    index: int
    """Among these lines, from 0 on."""
    number: int
    """In the file, from 1 on."""
    raw: bytes
    """Of a line that is too long no more than tells so."""
    offset: int = 0
    """In the unpacked file."""


class InputLines:
    """The lines of a file, each time from its start; .gz and .zst are unpacked on the way."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path = path
        self._uri = uri
        self.digest = ""
        """SHA-256 of the unpacked content, once an iteration came to its end."""

    def __iter__(self) -> Iterator[Line]:
        """Yield every line that is not blank; raises InputInvalid where the file is not what its name says."""
        sha, index = hashlib.sha256(), 0
        try:
            with closing(_open(self._path)) as file:
                for number, (offset, raw) in enumerate(_raw_lines(file, sha), 1):
                    text = _text(raw, number)
                    if text.strip():
                        yield Line(index, number, text, offset)
                        index += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = f"spec.input.uri: {self._uri} cannot be unpacked: {first_line(error)}"
            upload = retry("Upload the complete file, packed as its name says")
            raise TuneryError(FailureReason.INPUT_INVALID, message, upload) from error
        self.digest = sha.hexdigest()

    def open(self) -> IO[bytes]:
        """Open the file, unpacked on the way."""
        return _open(self._path)

    def changed(self) -> TuneryError:
        """Return that the file is not what it was when it was checked."""
        message = f"spec.input.uri: {self._uri} was changed while it was read"
        return TuneryError(FailureReason.INPUT_INVALID, message, retry("Leave the file unchanged while the batch runs"))


class Place(NamedTuple):
    """Where a line is that was read before."""

    line: int
    """Its index."""
    number: int
    offset: int
    check: int
    """Of its text, for the rest of this process."""

    @classmethod
    def of(cls, line: Line) -> Place:
        """Return that of a line."""
        return cls(line.index, line.number, line.offset, hash(line.raw) & _MASK)


class LinesAgain:
    """Reads lines by their places; best in their order, as what is packed is read from its start to get back."""

    def __init__(self, lines: InputLines) -> None:
        self._lines = lines
        self._file: IO[bytes] | None = None
        self.position = 0

    def is_near(self, place: Place) -> bool:
        """Tell whether reading the line at a place is a matter of a moment."""
        return self.position <= place.offset <= self.position + _BUFFER

    def read(self, place: Place) -> Line:
        """Return the line at a place; raises InputInvalid where another one is there now."""
        try:
            raw = _text(self._read(place.offset), place.number)
        except (EOFError, OSError, zlib.error) as error:
            raise self._lines.changed() from error
        line = Line(place.line, place.number, raw, place.offset)
        if Place.of(line) != place:
            raise self._lines.changed()
        return line

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file, self.position = None, 0

    def _read(self, offset: int) -> bytes:
        if offset < self.position:
            self.close()
        self._file = file = self._file or self._lines.open()
        if file.seekable() and not isinstance(file, gzip.GzipFile):
            self.position = file.seek(offset)
        while self.position < offset and (skipped := file.read(min(offset - self.position, _BUFFER))):
            self.position += len(skipped)
        raw = file.readline(MAX_LINE + 1)
        self.position += len(raw)
        return raw


def _text(raw: bytes, number: int) -> bytes:
    return raw.removeprefix(_BOM) if number == 1 else raw


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdReader(path), _BUFFER)
    return path.open("rb", buffering=_BUFFER)


def _raw_lines(file: IO[bytes], sha: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its offset."""
    offset = 0
    while raw := file.readline(MAX_LINE + 1):
        sha.update(raw)
        rest, length = raw, len(raw)
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
            sha.update(rest)
            length += len(rest)
        yield offset, raw
        offset += length
