"""What the first bytes of a file say against its name: another compression, another encoding, no data at all."""

from __future__ import annotations

import io
import json
import re
import shlex
from typing import Final

from tunery_common.errors import TuneryError
from tunery_common.storage.mistaken import is_page, is_pointer
from tunery_trainer.data.faults import AGAIN, damaged
from tunery_trainer.data.sources import DataFile

LENGTH: Final = 64
BOM: Final = b"\xef\xbb\xbf"

_GZIP, _PARQUET = b"\x1f\x8b", (b"PAR1", b"PARE")
_ZSTD: Final = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
"""A frame, or one to be skipped."""
_PACKED: Final = {
    rb"PK\x03\x04": "a zip archive",
    rb"\xfd7zXZ\x00": "compressed by xz",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2",
}
_BY_ZEROS: Final = {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}
_CSV_HEADER: Final = re.compile(rb'"?[A-Za-z_][\w -]{0,63}"?(,"?[A-Za-z_][\w -]{0,63}"?)+')
"""Two names of columns or more, of letters: what no line of JSON is."""
_UNPACK: Final = {".gz": ("gzip -dc", " | gzip"), ".zst": ("zstd -dc", " | zstd")}


def check_name(source: DataFile, start: bytes) -> None:
    """Raise TuneryError (DatasetInvalid) where a file's first bytes, as they lie on the disk, are of another kind."""
    name, packed = source.name, _packing(source.suffix)
    if is_pointer(start):
        fix = "Download the file itself, as `git lfs pull` does, and upload that"
        raise damaged(name, "is a pointer of Git LFS to the file, and not the file", fix)
    if is_page(start):
        raise damaged(name, "is a web page, and no data", "Download the file itself, and upload that")
    if source.suffix == ".parquet":
        if start and not start.startswith(_PARQUET):
            why = "is not a readable parquet file: it does not begin as one"
            raise damaged(name, why, f"{AGAIN}, or rename it by its format, such as .jsonl")
        return
    found = _kind(start)
    if packed and found != packed:
        is_it = "is empty, which a compressed file never is" if not start else f"is not compressed as {packed} says"
        fix = f"{AGAIN}, or rename it without {packed} if it is not compressed"
        raise damaged(name, f"the compressed data is damaged: the file {is_it}", fix)
    if not packed and found is not None:
        raise damaged(name, f"is compressed ({found}), and its name does not say so", f"Rename it to {name}{found}")
    if not packed and start.startswith(_PARQUET):
        raise damaged(name, "is a parquet file, and its name does not say so", "Rename it to .parquet")
    what = next((what for sign, what in _PACKED.items() if re.match(sign, start)), None)
    if what is not None:
        raise damaged(name, f"is {what}, which is not read", "Unpack it, and upload its content")


def check_encoding(source: DataFile, stream: io.BufferedReader) -> None:
    """Raise TuneryError (DatasetInvalid) where the text of a file begins in UTF-16 or UTF-32."""
    encoding = _encoding(stream.peek(LENGTH)[:LENGTH])
    if encoding is not None:
        raise not_utf8(source.name, f"is {encoding} and not UTF-8", encoding)


def check_text(source: DataFile, stream: io.BufferedReader) -> None:
    """Raise TuneryError (DatasetInvalid) where a file named as CSV begins as JSON, or one named as JSON as CSV."""
    line, end, _ = stream.peek(LENGTH).removeprefix(BOM).lstrip().partition(b"\n")
    if not end:
        return
    kind = source.suffix.removesuffix(packed := _packing(source.suffix))
    named = source.name[: -len(source.suffix)]
    if kind == ".csv" and _is_json(line):
        name = f"{named}.jsonl{packed}"
        raise damaged(source.name, "holds JSON, and its name says that it is CSV", f"Rename it to {name}")
    if kind != ".csv" and _CSV_HEADER.fullmatch(line.strip()) and not _is_json(line):
        why = "begins as CSV does, with names of columns, and its name says that it is JSON"
        raise damaged(source.name, why, f"Rename it to {named}.csv{packed}, if it is CSV")


def _is_json(line: bytes) -> bool:
    """Tell whether a line is one of JSON lines, or the first one of an array."""
    if line.strip() == b"[":
        return True
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def not_utf8(name: str, why: str, encoding: str) -> TuneryError:
    """Return the failure of a file of which `encoding` is, or may be, the encoding."""
    unpack, pack = _UNPACK.get(_packing(name.lower()), ("", ""))
    path = shlex.quote(name)
    convert = f"iconv -f {encoding} -t UTF-8"
    command = f"{unpack} {path} | {convert}{pack}" if unpack else f"{convert} {path}"
    return damaged(name, why, f"Replace the file by the output of `{command}`")


def _packing(suffix: str) -> str:
    return next((packed for packed in _UNPACK if suffix.endswith(packed)), "")


def _kind(start: bytes) -> str | None:
    return ".gz" if start.startswith(_GZIP) else ".zst" if _ZSTD.match(start) else None


def _encoding(start: bytes) -> str | None:
    """The name that iconv has for the encoding; None for what may be UTF-8.

    Both kinds of file begin with characters of ASCII, so their first ones show by the place of the zeros.
    """
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return _BY_ZEROS.get("".join("x" if byte else "0" for byte in start[:4]))
