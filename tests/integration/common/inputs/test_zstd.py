"""Files that are packed with zstd: what is unpacked is all there, and held a block at a time."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from tunery_common.inputs.zstd import ZstdReader

DATA = random.Random(7).randbytes(300_000) + b"a" * 400_000
SKIPPED = (0x184D2A53).to_bytes(4, "little") + (10).to_bytes(4, "little") + bytes(10)
READ = """
import io, sys
from pathlib import Path
from tunery_common.inputs.zstd import ZstdReader
file, count = io.BufferedReader(ZstdReader(Path(sys.argv[1]))), 0
while found := file.read(1 << 20):
    count += len(found)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(count, int(peak.split()[1]) >> 10)
"""


def unpacked(tmp_path: Path, content: bytes) -> bytes:
    path = tmp_path / "a.zst"
    path.write_bytes(content)
    with io.BufferedReader(ZstdReader(path)) as file:
        return file.read()


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("has_checksum", [True, False])
@pytest.mark.parametrize("tells_size", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100_000, len(DATA)])
def test_whatever_the_frames_are_like_all_of_them_are_unpacked(
    tmp_path: Path, level: int, has_checksum: bool, tells_size: bool, size: int
) -> None:
    data = DATA[-size:] if size else b""

    def packer() -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=level, write_checksum=has_checksum, write_content_size=tells_size)

    stream = packer().compressobj()
    parts = [
        stream.compress(data[at : at + 70_000]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for at in range(0, size, 70_000)
    ]
    whole, blocks = packer().compress(data), b"".join(parts) + stream.flush()
    assert unpacked(tmp_path, whole) == data
    assert unpacked(tmp_path, SKIPPED + whole + SKIPPED + blocks) == data + data


@pytest.mark.parametrize("left", [1, 3, 5, 9, 1000, -5, -1])
@pytest.mark.parametrize("before", [b"", SKIPPED, zstandard.compress(DATA)])
def test_a_file_that_ends_within_a_frame_is_told(tmp_path: Path, before: bytes, left: int) -> None:
    with pytest.raises(EOFError):
        unpacked(tmp_path, before + zstandard.ZstdCompressor(write_checksum=True).compress(DATA)[:left])


@pytest.mark.parametrize("rest", [b"g", b"garbage " * 9, bytes(40), SKIPPED[:6], SKIPPED[:-1]])
def test_what_is_no_frame_is_told_at_the_end_and_at_the_start(tmp_path: Path, rest: bytes) -> None:
    for before in (b"", zstandard.compress(DATA)):
        with pytest.raises(EOFError):
            unpacked(tmp_path, before + rest)


def test_a_byte_that_was_changed_is_told(tmp_path: Path) -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(DATA))
    packed[200_000] ^= 1
    with pytest.raises(EOFError, match="checksum"):
        unpacked(tmp_path, bytes(packed))


def test_a_window_that_would_take_too_much_memory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for log, is_taken in ((27, True), (28, False)):
        parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
        stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        packed = stream.compress(DATA) + stream.flush()
        if is_taken:
            assert unpacked(tmp_path, packed) == DATA
        else:
            with pytest.raises(EOFError, match=r"a window of 256 MiB, and 128 MiB .*: compress it without --long"):
                unpacked(tmp_path, packed)


def test_a_gigabyte_of_one_letter_is_read_in_little_memory_and_time(tmp_path: Path) -> None:
    path, stream = tmp_path / "bomb.zst", zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        for _ in range(1024):
            file.write(stream.compress(b"a" * (1 << 20)))
        file.write(stream.flush())
    assert path.stat().st_size < 100_000
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    count, peak = map(int, run.stdout.split())
    assert count == 1 << 30
    assert peak < 64, f"{peak} MiB"
    assert time.monotonic() - began < 10
