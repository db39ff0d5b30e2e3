"""The files of a model's weights, looked at by names, sizes and headers: which of them is damaged, and by what."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import Location
from tunery_common.storage import open_store
from tunery_common.storage.mistaken import is_page, is_pointer

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"
Types = Mapping[str, Mapping[str, str]]
"""Of each file the format's name of each tensor's type, such as BF16."""

_SUFFIX: Final = ".safetensors"
_LENGTH: Final = 8
"""Bytes that say how long the header is."""
_LONGEST: Final = 100_000_000
"""Bytes of a header; the limit of the reference implementation."""
_LARGEST_JSON: Final = 200_000_000
_BEGINNING: Final = 64
_BOM: Final = b"\xef\xbb\xbf"
_READERS: Final = 8
_KINDS: Final = (
    (b"<?xml", "is an XML text, such as the error of an object store"),
    (b"<error", "is an XML text, such as the error of an object store"),
    (b"pk\x03\x04", "is a ZIP archive, such as a pickle of PyTorch"),
    (b"gguf", "is a GGUF file"),
    (b"{", "is a JSON text"),
)
"""How what is taken for weights begins, in lower case."""


@dataclass(frozen=True)
class WeightFiles:
    """The files beside a config.json, wherever they lie."""

    sizes: Mapping[str, int]
    """Bytes by name; what lies in folders below does not count."""
    read: Callable[[str, int, int], bytes]
    """Returns so many bytes of a file from a place on, fewer only at its end."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says; nothing where it is no JSON object, which is told where the model is built."""
        try:
            found = json.loads(self.read(CONFIG, 0, _LARGEST_JSON))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def local_files(folder: Path) -> WeightFiles:
    """Return the files of a local folder; reading raises TuneryError (StorageAccessDenied, StorageUnavailable)."""

    def read(name: str, start: int, length: int) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            denied = error.errno in (errno.EACCES, errno.EPERM)
            reason = FailureReason.STORAGE_ACCESS_DENIED if denied else FailureReason.STORAGE_UNAVAILABLE
            raise TuneryError(reason, f"spec.model.uri: {name} cannot be read: {error.strerror}") from error

    return WeightFiles({path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}, read)


def files_before_download(place: Location, folder: Path) -> WeightFiles | None:
    """Return the files of a model of which `folder` has all but the weights, or is where they lie.

    None for a hub, which has compared what was uploaded with its digest. Reading raises the storage reasons.
    """
    if place.uri.startswith("hf://"):
        return None
    if not place.uri.startswith("s3://"):
        return local_files(folder)
    found = open_store(place.uri, place.credentials, "spec.model.uri")
    names = ((found.relative(entry), entry.size) for entry in found.store.list(found.prefix))
    return WeightFiles(
        {name: size for name, size in names if "/" not in name},
        lambda name, start, length: found.store.read_range(found.key(name), start, length),
    )


def check_weight_files(files: WeightFiles) -> Types:
    """Return the types of all tensors, of no more than the headers of the files that are loaded.

    Raises TuneryError(ModelUnsupported), which names the file that is damaged and what it is, and whatever reading
    raises.
    """
    names = _loaded(files)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: _types(files, name), names), strict=True))


def _loaded(files: WeightFiles) -> list[str]:
    """Return the files that transformers loads: what config.json names, the single one, or those of the index."""
    named = _named(files)
    if named and named.endswith(_SUFFIX):
        return [named]
    if named or SINGLE not in files.sizes:
        return _indexed(files, named or INDEX)
    return [SINGLE]


def _named(files: WeightFiles) -> str | None:
    """Return the file that config.json names, which may be another than the usual."""
    named = files.config.get("transformers_weights")
    return named if isinstance(named, str) and named in files.sizes else None


def _indexed(files: WeightFiles, index: str) -> list[str]:
    """Return the files that an index lists."""
    there = sorted(name for name in files.sizes if name.endswith(_SUFFIX))
    if index not in files.sizes:
        raise _refused(
            f"there is neither {SINGLE} nor {INDEX}, by which weights are found; there is {', '.join(there[:3])}",
            retry(f"Add {INDEX} from where the model comes, or rename a single file to {SINGLE}"),
        )
    content = files.read(index, 0, _LARGEST_JSON)
    problem = _text_problem(content) or _index_problem(content, index)
    if problem:
        raise _damaged(index, problem, content)
    names = sorted(set(json.loads(content)["weight_map"].values()))
    outside = next((name for name in names if "/" in name or "\\" in name or not name.endswith(_SUFFIX)), None)
    if outside is not None:
        raise _refused(
            f"{index} lists {outside!r}, which is not the name of a safetensors file beside it",
            retry(f"Move the safetensors files next to {index}, and list them there by their names alone"),
        )
    missing = [name for name in names if name not in files.sizes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _refused(
            f"{index} lists {missing[0]}{more}, which is not there",
            retry(f"Add {missing[0]}{more} from where the model comes"),
        )
    return names


def damaged_text(folder: Path, names: Iterable[str]) -> TuneryError | None:
    """Return the failure for the first of these JSON files that is damaged; None: none is, or none is there."""
    for name in names:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b"{}"
        problem = _text_problem(content) or _json_problem(content)
        if problem:
            return TuneryError(
                FailureReason.MODEL_UNSUPPORTED, f"spec.model.uri: {name} {problem}", _again(name, content)
            )
    return None


def _json_problem(content: bytes) -> str | None:
    if content.startswith(_BOM):
        return "begins with a byte order mark, which is not read"
    try:
        json.loads(content)
    except ValueError as error:
        return f"is not JSON: {error}"
    return None


def _text_problem(content: bytes) -> str | None:
    """Return what a file is that should be a JSON text, None where it may be one."""
    if not content:
        return "is empty"
    kind = _kind(content)
    return None if kind in (None, "is a JSON text") else kind


def _index_problem(content: bytes, index: str) -> str | None:
    problem = _json_problem(content)
    if problem:
        return problem
    found = json.loads(content)
    if not isinstance(found, dict):
        return "is not a JSON object"
    shards = found.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        return "has no weight_map, which says in which file each tensor lies"
    nowhere = next((tensor for tensor, name in shards.items() if not isinstance(name, str)), None)
    if nowhere is not None:
        return f"does not say by a name in which file {nowhere} lies"
    if not isinstance(found.get("metadata"), dict):
        raise _refused(f"{index} has no metadata, which transformers needs", retry(f'Add "metadata": {{}} to {index}'))
    return None


def _types(files: WeightFiles, name: str) -> dict[str, str]:
    """Return the type of each tensor of a file."""
    size = files.sizes[name]
    if not size:
        raise _damaged(name, "is empty")
    begin = files.read(name, 0, _BEGINNING)
    length = int.from_bytes(begin[:_LENGTH], "little")
    if len(begin) < _LENGTH or not 2 <= length <= _LONGEST or begin[_LENGTH : _LENGTH + 1] not in (b"{", b""):
        raise _damaged(name, _kind(begin) or "is no safetensors file: it does not begin with a header", begin)
    if _LENGTH + length > size:
        raise _damaged(name, f"is cut off within its header, after {size:,} bytes")
    try:
        header = json.loads(files.read(name, _LENGTH, length))
        tensors = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
        end = _LENGTH + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        types = {tensor: str(entry["dtype"]) for tensor, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(name, "has a header that cannot be read") from error
    if size != end:
        what = "is cut off: it has" if size < end else "is longer than its header says: it has"
        raise _damaged(name, f"{what} {size:,} bytes instead of {end:,}")
    return types


def _kind(content: bytes) -> str | None:
    """Return what a file is by how it begins, None where that is not known."""
    begin = content[:_BEGINNING].lstrip().lower()
    if is_pointer(begin):
        return "is a pointer of Git LFS, not the file that it stands for"
    if is_page(begin):
        return "is an HTML page, such as that of an error or of a login"
    return next((what for start, what in _KINDS if begin.startswith(start)), None)


def _damaged(name: str, what: str, content: bytes = b"") -> TuneryError:
    return _refused(f"{name} {what}", _again(name, content))


def _again(name: str, content: bytes) -> Remedy:
    """Return how to fix a damaged file."""
    if is_pointer(content):
        return retry(f"Run git lfs pull where the model was cloned, and replace {name} with the file of that clone")
    if content.startswith(_BOM):
        return retry(f"Save {name} as UTF-8 without it: `sed -i '1s/^\\xEF\\xBB\\xBF//' {name}`")
    return retry(f"Fetch {name} again from where the model comes, and replace this one")


def _refused(cause: str, remedy: Remedy) -> TuneryError:
    message = f"spec.model.uri: its weights cannot be loaded: {cause}"
    return TuneryError(FailureReason.MODEL_UNSUPPORTED, message, remedy)
