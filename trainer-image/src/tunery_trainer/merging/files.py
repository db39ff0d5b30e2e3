"""What merging needs of a place that holds files: names and sizes, and bytes from the middle of a file."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.weight_files import WeightFiles
from tunery_common.storage import StorePath

CHUNK = 4 << 20
"""Bytes read, hashed or copied at once."""


class Files(Protocol):
    """A folder of files, local or in S3."""

    @property
    def label(self) -> str:
        """Names the folder in messages: a URI or a field of the spec, never a credential."""
        ...

    @property
    def damaged(self) -> FailureReason:
        """The reason to give when one of the files is cut or unreadable."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by its name relative to the folder."""
        ...

    def read(self, name: str, start: int, length: int) -> bytes | bytearray:
        """Return exactly `length` bytes of a file from offset `start`."""
        ...


class LocalFiles:
    """A local folder."""

    def __init__(
        self, folder: Path, label: str | None = None, damaged: FailureReason = FailureReason.ADAPTER_CORRUPT
    ) -> None:
        self.folder = folder
        self.label: Final = label or folder.name
        self.damaged: Final = damaged

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below the folder; an absent folder has none."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}

    def read(self, name: str, start: int, length: int) -> bytearray:
        """Read without buffering: the result is the only copy."""
        buffer = bytearray(length)
        with open(self.folder / name, "rb", buffering=0) as file:
            file.seek(start)
            view = memoryview(buffer)
            while view.nbytes:
                got = file.readinto(view)
                if not got:
                    raise TuneryError(self.damaged, f"{self.label}/{name} ends {view.nbytes} bytes too early")
                view = view[got:]
        return buffer


class StoreFiles:
    """A place in a store; its sizes are listed once."""

    def __init__(self, place: StorePath, label: str, damaged: FailureReason) -> None:
        self.place = place
        self.label: Final = label
        self.damaged: Final = damaged

    def sizes(self) -> dict[str, int]:
        """Return the size of each object below the place, by its name."""
        return dict(self._sizes)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        place = self.place
        return {place.relative(entry): entry.size for entry in place.store.list(place.prefix)}

    def read(self, name: str, start: int, length: int) -> bytes:
        """Read a range of the object."""
        data = self.place.store.read_range(self.place.key(name), start, length)
        if len(data) != length:
            raise TuneryError(self.damaged, f"{self.label}/{name} ends {length - len(data)} bytes too early")
        return data


class RangeFiles:
    """The files of a model that are read by ranges, such as a hub's."""

    def __init__(self, files: WeightFiles, label: str, damaged: FailureReason) -> None:
        self._files = files
        self.label: Final = label
        self.damaged: Final = damaged

    def sizes(self) -> dict[str, int]:
        """Return the size of each file, by its name."""
        return dict(self._files.sizes)

    def read(self, name: str, start: int, length: int) -> bytes:
        """Read a range of the file."""
        data = self._files.read(name, start, length)
        if len(data) != length:
            raise TuneryError(self.damaged, f"{self.label}/{name} ends {length - len(data)} bytes too early")
        return data


def read_json(files: Files, name: str) -> dict[str, Any]:
    """Return a JSON object; raises TuneryError with the folder's `damaged` reason where the file is none."""
    try:
        value = json.loads(bytes(files.read(name, 0, files.sizes()[name])))
    except ValueError as error:
        raise TuneryError(files.damaged, f"{files.label}/{name} is no JSON") from error
    if not isinstance(value, dict):
        raise TuneryError(files.damaged, f"{files.label}/{name} is no JSON object")
    return value
