"""A .zst file as a stream of bytes that notices when its end is missing."""

from __future__ import annotations

import io
from pathlib import Path

import zstandard

_CHUNK = 1 << 18


class ZstdReader(io.RawIOBase):
    """Decompresses frame by frame (zstandard's own reader ends quietly in the middle of a frame).

    Reading raises EOFError when the file ends within a frame or is no zstd data.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""
        self._started = False

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer cannot be sliced
        """Fill `buffer` with up to its length; 0 at the end of the data."""
        while not self._ready:
            if not (compressed := self._next_input()):
                return 0
            try:
                self._ready = self._frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()

    def _next_input(self) -> bytes:
        left = self._frame.unused_data if self._frame.eof else b""
        compressed = left or self._file.read(_CHUNK)
        if not compressed and self._started and not self._frame.eof:
            raise EOFError("the last zstd frame is not complete")
        if compressed and self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = self._started or bool(compressed)
        return compressed
