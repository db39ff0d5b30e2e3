"""Which custom_id stands in two lines; on the disk, so that the number of lines costs no memory."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SHARDS: Final = 256
_RECORD: Final = struct.Struct("<16sQ")
"""A digest, of which nobody finds two equal by chance in any file, and the number of the line."""
_FLUSH_BYTES: Final = 16 << 10
"""Of each shard in memory: 4 MiB in all."""


class Repeated:
    """Takes each custom_id with its line; says at the end which lines repeat an earlier one.

    Digests go to one of 256 files by their first byte; each fits into memory by itself: of 100 million lines 80 MB.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = [bytearray() for _ in range(_SHARDS)]
        self.known = 0
        """Repetitions that were noticed by the way: not all of them, but most where they are many of few names."""
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, custom_id: str, number: int) -> None:
        """Take one; lines come in their order."""
        digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        held = self._held[digest[0]]
        held += _RECORD.pack(digest, number)
        if len(held) >= _FLUSH_BYTES:
            self._flush(digest[0])

    def found(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each line that repeats a custom_id, and that of the line it stood in first."""
        for shard in range(_SHARDS):
            self._flush(shard)
            first: dict[bytes, int] = {}
            path = self._path(shard)
            for digest, number in _RECORD.iter_unpack(path.read_bytes() if path.exists() else b""):
                if digest in first:
                    yield number, first[digest]
                else:
                    first[digest] = number

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self, shard: int) -> None:
        held = self._held[shard]
        if held:
            digests = [digest for digest, _ in _RECORD.iter_unpack(held)]
            self.known += len(digests) - len(set(digests))
            with self._path(shard).open("ab") as file:
                file.write(held)
            held.clear()

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:02x}"
