"""Safetensors files read and written one tensor, or a block of rows, at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch

from tunery_common.errors import TuneryError
from tunery_trainer.merging.files import CHUNK, Files

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The format's names of types, as its specification lists them."""
DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER: Final = 100_000_000
"""Bytes; the limit of the reference implementation."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `start` and `end` are bytes from the beginning of the file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def row_bytes(self) -> int:
        """Size of one slice along the first dimension."""
        return (self.end - self.start) // self.shape[0] if self.shape and self.shape[0] else self.end - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """Name, type and shape of a tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(files: Files, file: str) -> dict[str, TensorInfo]:
    """Return the tensors of a file, in the order of their bytes.

    Raises TuneryError with the folder's `damaged` reason when the file is cut, has bytes too many, or is none.
    """
    size = files.sizes()[file]
    length = int.from_bytes(files.read(file, 0, 8), "little") if size >= 8 else 0
    if length < 2 or length > min(MAX_HEADER, size - 8):
        raise _corrupt(files, file, "is no complete safetensors file")
    try:
        header = json.loads(bytes(files.read(file, 8, length)))
        infos = {name: _info(file, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(files, file, "has an unreadable safetensors header") from error
    infos = dict(sorted(infos.items(), key=lambda item: item[1].start))
    _check_spans(files, file, infos, size)
    return infos


def _info(file: str, entry: dict[str, Any], base: int) -> TensorInfo:
    start, end = (base + int(offset) for offset in entry["data_offsets"])
    return TensorInfo(file, DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]), start, end)


def _check_spans(files: Files, file: str, infos: dict[str, TensorInfo], size: int) -> None:
    """Tensors must follow each other without a hole and end where the file ends."""
    position = 8 + int.from_bytes(files.read(file, 0, 8), "little")
    for name, info in infos.items():
        if info.start != position or info.end - info.start != math.prod(info.shape) * info.dtype.itemsize:
            raise _corrupt(files, file, f"has a header that does not fit its tensor {name}")
        position = info.end
    if position != size:
        raise _corrupt(files, file, f"should have {position} bytes and has {size}")


def _corrupt(files: Files, file: str, what: str) -> TuneryError:
    return TuneryError(files.damaged, f"{files.label}/{file} {what}")


def read_tensor(files: Files, info: TensorInfo) -> torch.Tensor:
    """Return one whole tensor."""
    return _read(files, info, info.start, info.end - info.start, info.shape)


def read_rows(files: Files, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Return rows `start` to `stop` (the first dimension) of a tensor."""
    begin = info.start + start * info.row_bytes
    return _read(files, info, begin, (stop - start) * info.row_bytes, (stop - start, *info.shape[1:]))


def _read(files: Files, info: TensorInfo, start: int, length: int, shape: tuple[int, ...]) -> torch.Tensor:
    if length == 0:
        return torch.empty(shape, dtype=info.dtype)
    data = files.read(info.file, start, length)
    # torch wants memory it may write to; bytes are copied once, a bytearray is used as it is.
    writable = data if isinstance(data, bytearray) else bytearray(data)
    return torch.frombuffer(writable, dtype=info.dtype).view(shape)


class Writer:
    """Writes a safetensors file whose layout is known: the header first, then each tensor in its turn.

    Used as a context manager; leaving it before every byte was written raises ValueError, unless another
    exception is already on its way.
    """

    def __init__(self, path: Path, layouts: list[Layout], metadata: dict[str, str] | None = None) -> None:
        self.path = path
        self.layouts = layouts
        self._header = _header_bytes(layouts, metadata or {"format": "pt"})
        self._expected = len(self._header) + sum(layout.size for layout in layouts)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "wb", buffering=0)
        self._written = 0
        self.write_bytes(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not flushed to the disk: the file is uploaded from here, and its digest read back from there.
        self._file.close()
        if kind is None and self._written != self._expected:
            raise ValueError(f"{self.path.name}: {self._written} of {self._expected} bytes were written")

    def write(self, tensor: torch.Tensor) -> None:
        """Write the next tensor, or the next rows of one; its type must be the laid-out one already."""
        flat = tensor.contiguous().view(-1)
        if flat.numel():
            self.write_bytes(flat.view(torch.uint8).numpy().data)

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Write raw bytes; one call to the system may take less than all of them."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            done = self._file.write(view)
            self._written += done
            view = view[done:]

    def copy(self, files: Files, info: TensorInfo) -> None:
        """Copy the bytes of a tensor as they are."""
        for start in range(info.start, info.end, CHUNK):
            self.write_bytes(files.read(info.file, start, min(CHUNK, info.end - start)))


def _header_bytes(layouts: list[Layout], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for layout in layouts:
        header[layout.name] = {
            "dtype": DTYPE_NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [position, position + layout.size],
        }
        position += layout.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
