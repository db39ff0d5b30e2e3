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
from typing import IO, Final, cast

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.zstd import ZstdReader
from tunery_server.door.body import MAX_BODY

MAX_LINE: Final = MAX_BODY
"""Bytes of a line: no more of a body is let in by the server."""
_BUFFER: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    index: int
    """Among these lines, from 0 on."""
    number: int
    """In the file, from 1 on."""
    raw: bytes
    """Of a line that is too long no more than tells so."""


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
                for number, raw in enumerate(_raw_lines(file, sha), 1):
                    text = raw.removeprefix(_BOM) if number == 1 else raw
                    if text.strip():
                        yield Line(index, number, text)
                        index += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = f"spec.input.uri: {self._uri} cannot be unpacked: {first_line(error)}"
            hint = "Put a whole file there, packed as its name says, and retry."
            raise TuneryError(FailureReason.INPUT_INVALID, message, hint) from error
        self.digest = sha.hexdigest()


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdReader(path), _BUFFER)
    return path.open("rb", buffering=_BUFFER)


def _raw_lines(file: IO[bytes], sha: hashlib._Hash) -> Iterator[bytes]:
    while raw := file.readline(MAX_LINE + 1):
        sha.update(raw)
        rest = raw
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
            sha.update(rest)
        yield raw
