"""A .zst file as a stream of bytes that notices when its end is missing, and holds no more than a block of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import zstandard

MAX_WINDOW: Final = 128 << 20
"""Bytes that a frame may look back over, and that are held for it: as many as the command `zstd -d` takes."""
_LONGEST_HEADER: Final = 18
_MAGIC: Final = 4
_SKIPPED: Final = range(0x184D2A50, 0x184D2A60)
"""Begin frames that hold no data."""
_ONE_BYTE: Final = 1
"""The type of a block that is one byte, as often as its size says."""
_CHUNK: Final = 1 << 18


class ZstdReader(io.RawIOBase):
    """Unpacks block by block, each of which is at most 128 KiB, however little of the file that takes.

    Zstandard's own readers either unpack all that they are given or end quietly in the middle of a frame. Reading
    raises EOFError when the file ends within a frame, is no zstd data, or has a frame with a larger window.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer cannot be sliced
        """Fill `buffer` with up to its length; 0 at the end of the data."""
        while not self._ready:
            try:
                if self._frame is not None:
                    self._ready = memoryview(self._next_block(self._frame))
                elif not self._next_frame():
                    return 0
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

    def _next_frame(self) -> bool:
        """Read the head of the next frame; return whether there is one."""
        head = self._file.read(_LONGEST_HEADER)
        if not head:
            return False
        if len(head) >= _MAGIC and int.from_bytes(head[:_MAGIC], "little") in _SKIPPED:
            self._skip(head)
            return True
        told = zstandard.get_frame_parameters(head)
        if told.window_size > MAX_WINDOW:
            raise EOFError(
                f"a zstd frame has a window of {told.window_size >> 20:,} MiB, and {MAX_WINDOW >> 20} MiB are the most "
                "that is unpacked: compress it without --long"
            )
        length = zstandard.frame_header_size(head)
        self._file.seek(length - len(head), io.SEEK_CUR)
        self._has_checksum = told.has_checksum
        self._frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        self._frame.decompress(head[:length])
        return True

    def _skip(self, head: bytes) -> None:
        self._file.seek(2 * _MAGIC - len(head), io.SEEK_CUR)
        left = int.from_bytes(head[_MAGIC : 2 * _MAGIC], "little")
        if len(head) < 2 * _MAGIC:
            raise _incomplete()
        while left:
            left -= len(self._read(min(left, _CHUNK)))

    def _next_block(self, frame: zstandard.ZstdDecompressionObj) -> bytes:
        head = self._read(3)
        told = int.from_bytes(head, "little")
        is_last, kind, size = told & 1, told >> 1 & 3, told >> 3
        packed = head + self._read(1 if kind == _ONE_BYTE else size)
        if is_last:
            packed += self._read(4 if self._has_checksum else 0)
            self._frame = None
        data = frame.decompress(packed)
        if is_last and not frame.eof:
            raise _incomplete()
        return data

    def _read(self, length: int) -> bytes:
        found = self._file.read(length)
        if len(found) < length:
            raise _incomplete()
        return found


def _incomplete() -> EOFError:
    return EOFError("the last zstd frame is not complete")
