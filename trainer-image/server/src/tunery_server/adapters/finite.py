"""Are an adapter's weights numbers? Looked at byte by byte, without a library of tensors, at the speed of a disk.

A number is none (NaN, or infinite) where all bits of its exponent are set. On CPUs one such adapter spoils what the
engine has kept for the base model and for others, and the probe would come too late for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tunery_api.manifest import WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.headers import ADAPTER_HEADER, Span, read_spans

CHUNK: Final = 1 << 20
_TRAIN_AGAIN: Final = retry("Train it again with a lower learning rate or without a loss of NaN, and publish that")


@dataclass(frozen=True)
class _Format:
    """Where the exponent of a type lies: the mask of the highest byte, and of the one below it."""

    width: int
    high: int
    low: int


_FORMATS: Final = {
    "F64": _Format(8, 0x7F, 0xF0),
    "F32": _Format(4, 0x7F, 0x80),
    "BF16": _Format(2, 0x7F, 0x80),
    "F16": _Format(2, 0x7C, 0x00),
}


def _table(mask: int) -> bytes:
    """Return what makes 1 of each byte that has all bits of `mask`, and 0 of any other."""
    return bytes(int(byte & mask == mask) for byte in range(256))


_TABLES: Final = {mask: _table(mask) for form in _FORMATS.values() for mask in (form.high, form.low)}


def check_finite(path: Path) -> None:
    """Raise TuneryError(AdapterCorrupt) naming the first tensor of a file that holds what is no finite number.

    Raises BadHeader, and OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        for span in read_spans(path, ADAPTER_HEADER):
            form = _FORMATS.get(span.dtype)
            if form is not None and _holds_none(file, span, form):
                message = f"{WEIGHTS_FILE} holds NaN, or an infinite number, in {span.name[:200]}"
                raise TuneryError(FailureReason.ADAPTER_CORRUPT, message, _TRAIN_AGAIN)


def _holds_none(file: BinaryIO, span: Span, form: _Format) -> bool:
    file.seek(span.start)
    left = span.size
    while left > 0:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            return False
        left -= len(chunk)
        if none_in(chunk, form.width, form.high, form.low):
            return True
    return False


def none_in(chunk: bytes, width: int, high: int, low: int) -> bool:
    """Tell whether one of the little-endian numbers in `chunk` has all bits of its exponent set."""
    marked = chunk[width - 1 :: width].translate(_TABLES[high])
    if 1 not in marked:
        return False
    if not low:
        return True
    below = chunk[width - 2 :: width].translate(_TABLES[low])
    return int.from_bytes(marked, "little") & int.from_bytes(below, "little") != 0
