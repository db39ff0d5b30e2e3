"""The header of a safetensors file: which tensors it holds, checked against its size; no weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

ADAPTER_HEADER: Final = 32_000_000
"""Bytes of an adapter's header: some 200,000 tensors."""
MODEL_HEADER: Final = 100_000_000
"""Bytes of any other; the limit of the reference implementation."""
FIRST_BYTES: Final = 64 << 10
"""What is read of a file first: more than most adapters' headers take."""
_LENGTH: Final = 8
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8,
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

Part = Callable[[int, int], bytes]
"""Gives so many bytes of a file from a place on, fewer only at its end."""


class BadHeader(Exception):
    """The file is not what a safetensors file is; the message is the end of a sentence about it."""


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """Where a tensor's bytes lie in its file."""

    name: str
    dtype: str
    start: int
    size: int


def read_header(path: Path, longest: int = MODEL_HEADER) -> dict[str, Tensor]:
    """Return the tensors of a file by name; raises BadHeader, and OSError where it cannot be read."""
    with path.open("rb") as file:
        return header_of(lambda start, length: _part(file, start, length), path.stat().st_size, longest)


def header_of(part: Part, size: int, longest: int = MODEL_HEADER) -> dict[str, Tensor]:
    """Return the tensors of a file of `size` bytes, of which `part` gives those from a place on; raises BadHeader."""
    text = _text(part, size, longest)
    return {
        name: Tensor(str(entry["dtype"]), tuple(entry["shape"]))
        for name, entry in _checked(text, size - _LENGTH - len(text)).items()
    }


def read_spans(path: Path, longest: int = MODEL_HEADER) -> list[Span]:
    """Return where each tensor lies, in the order of the file; raises BadHeader, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        text = _text(lambda start, length: _part(file, start, length), size, longest)
    at = _LENGTH + len(text)
    entries = _checked(text, size - at)
    spans = ((name, entry["dtype"], *entry["data_offsets"]) for name, entry in entries.items())
    found = (Span(name, dtype, at + start, end - start) for name, dtype, start, end in spans)
    return sorted(found, key=lambda span: span.start)


def _part(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _text(part: Part, size: int, longest: int) -> bytes:
    """Return the header's JSON; a short one comes with the first part that is asked for."""
    begin = part(0, FIRST_BYTES)
    length = int.from_bytes(begin[:_LENGTH], "little")
    if len(begin) <= _LENGTH or length < 2 or begin[_LENGTH : _LENGTH + 1] != b"{":
        raise BadHeader(_kind(begin[: _LENGTH + 1]))
    if length > longest:
        raise BadHeader(f"says that its header has {length:,} bytes; more than {longest:,} are not read")
    if _LENGTH + length > size:
        raise BadHeader(f"is cut off within its header, after {size:,} bytes")
    text = begin[_LENGTH : _LENGTH + length]
    missing = length - len(text)
    return text + part(_LENGTH + len(text), missing) if missing else text


def _kind(begin: bytes) -> str:
    if begin.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle of PyTorch that only bears the name of a safetensors file"
    return "is no safetensors file: it does not begin with a header"


def _checked(text: bytes, data: int) -> dict[str, dict[str, Any]]:
    """Return what is said of the tensors, whose bytes must follow one another and fill the `data` bytes behind it."""
    try:
        found = json.loads(text)
        entries = {name: entry for name, entry in found.items() if name != "__metadata__"}
        spans = sorted((*_span(entry), name) for name, entry in entries.items())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadHeader("has a header that cannot be read") from error
    at = 0
    for start, end, name in spans:
        if start != at or end - start != _size(entries[name]):
            raise BadHeader(
                f"has a header that says something impossible of {name}: its bytes are not {start} to {end}"
            )
        at = end
    if at != data:
        what = "is cut off" if data < at else "is longer than its header says"
        raise BadHeader(f"{what}: it has {data:,} bytes of tensors instead of {at:,}")
    return entries


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    numbers = [start, end, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(entry["dtype"], str):
        raise ValueError("no offsets")
    return start, end


def _size(entry: dict[str, Any]) -> int | None:
    """Return the bytes that a tensor of this shape has; of a type that is not known, what it says."""
    bits = _BITS.get(entry["dtype"])
    if bits is None:
        return int(entry["data_offsets"][1] - entry["data_offsets"][0])
    return -(-int(math.prod(entry["shape"])) * bits // 8)
