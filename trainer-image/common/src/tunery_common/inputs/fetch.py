"""Bring a model or a data set to the local disk, from wherever the manifest says it lies."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tunery_api.errors import did_you_mean
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError, raise_disk
from tunery_common.inputs.digests import FolderDigest
from tunery_common.inputs.file_selection import data_files, is_model_file, model_files, split_pattern
from tunery_common.inputs.location import FetchedDataset, FetchedModel, Location
from tunery_common.inputs.shared_cache import CacheEntry
from tunery_common.storage import Entry, Store, StorePath, open_store
from tunery_common.storage.base import check_key
from tunery_common.storage.links import is_dead, said_of_dead
from tunery_common.storage.uris import split_uri

if TYPE_CHECKING:
    from tunery_common.inputs.hub import Hub, HubRepo

OnBytesOfTotal = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

MODELS: Final = "models"
"""The kind of base models in a cache."""
_RECORD: Final = ".tunery-fetched.json"
_WORKERS: Final = 8
"""Files at a time, each with a thread that hashes it; requests are bounded by `transfer.STREAMS`."""
_SHOWN: Final = 8
"""So many names of what is there are shown."""
_LOOKED_AT: Final = 200
"""Objects beside a misspelt key that are asked for: a bucket may hold millions."""
_REPLACE_LINK: Final = retry("Replace the link with the file or folder itself, or correct where it leads")


@dataclass(frozen=True)
class ModelIdentity:
    """What a model is by the word of its source: other content has another key."""

    key: str
    names: tuple[str, ...]
    size: int
    """Bytes of all its files."""
    sha256: dict[str, str]
    """By name, where the source tells it."""


class BucketModel(NamedTuple):
    """A model in a bucket: its store, and its objects by their names."""

    store: Store
    entries: dict[str, Entry]


def fetch_model(
    place: Location, cache: Path, *, weights: bool = True, digest: bool = True, progress: OnBytesOfTotal | None = None
) -> FetchedModel:
    """Return the model's folder; `weights=False` (preflight) fetches config and tokenizer only.

    Claims and local folders are used where they lie; what is not known of their digests is read in the background,
    unless `digest=False` says that nobody will ask.
    Raises MODEL_NOT_FOUND, MODEL_GATED, MODEL_UNSUPPORTED (no config.json, no safetensors) and the storage reasons.
    """
    scheme, authority, path = split_uri(place.uri)
    if scheme == "hf":
        return _model_from_hub(place, f"{authority}/{path}", cache, _Meter(progress), weights=weights)
    if scheme == "s3":
        return _model_from_bucket(place, cache, _Meter(progress), weights=weights)
    folder, files = claim_model_files(place)
    sizes = {name: (folder / name).stat().st_size for name in files}
    begun = begin_digest(place, folder, files) if weights and digest else None
    return FetchedModel(folder, None, _weight_bytes(sizes), begun)


def claim_model_files(place: Location) -> tuple[Path, list[str]]:
    """Return the folder of a model that is used where it lies, and its files; raises what fetch_model raises."""
    folder = _local_path(place, "spec.model.uri", split_uri(place.uri)[2])
    entries = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
    for name in filter(is_model_file, sorted(entries)):
        _check_model_file(name, entries[name])
    names = [name for name, entry in entries.items() if entry.is_file()]
    return folder, model_files(names, place.uri, weights=True)


def _check_model_file(name: str, entry: Path) -> None:
    """Raise MODEL_NOT_FOUND where a file of a model is a link to nothing, or a folder that only has its name."""
    if is_dead(entry):
        message = f"spec.model.uri: {name} {said_of_dead(entry)}"
    elif entry.is_dir() and entry.suffix:
        message = f"spec.model.uri: {name} is a folder, and not the file of that name"
    else:
        return
    replace = retry("Replace it with the file itself, or remove it if the model has no such file")
    raise TuneryError(FailureReason.MODEL_NOT_FOUND, message, replace)


def begin_digest(place: Location, folder: Path, files: list[str]) -> FolderDigest:
    """Begin to take the digest of a model that is used where it lies; known ones are in the cache, or beside it."""
    book = place.cache.file("digests", f"{_mark(place.uri)}.json") if place.cache else None
    return FolderDigest.begin(folder, files, book)


def identify_model(place: Location) -> ModelIdentity | None:
    """Return what the source says of the model, None where it is used where it lies; raises what fetch_model raises."""
    scheme, authority, path = split_uri(place.uri)
    if scheme == "hf":
        return _hub_identity(place, open_hub(place, f"{authority}/{path}")[1])
    return _bucket_identity(place, _bucket_model(place)[1]) if scheme == "s3" else None


def fetch_dataset(place: Location, cache: Path, progress: OnBytesOfTotal | None = None) -> FetchedDataset:
    """Return where the data set's files lie on the local disk; all of them, in preflight too.

    Raises DATASET_NOT_FOUND and the storage reasons.
    """
    scheme, authority, path = split_uri(place.uri)
    if scheme == "hf":
        return _dataset_from_hub(place, f"{authority}/{path}", cache, _Meter(progress))
    if scheme == "s3":
        return _dataset_from_bucket(place, cache, _Meter(progress))
    if scheme == "file":
        folder, pattern = split_pattern(path)
        local = _local_path(place, place.field, folder)
        return FetchedDataset(local, pattern)
    if place.mount is None:
        raise _unsupported(place, place.field)
    pattern = check_key(path, f"{place.field}: {place.uri}") if path else ""
    _check_mount(place, place.mount, pattern)
    return FetchedDataset(place.mount, pattern)


def _check_mount(place: Location, mount: Path, pattern: str) -> None:
    """Raise DATASET_NOT_FOUND if the ConfigMap or claim at `mount` does not hold what `pattern` names."""
    scheme, name, _ = split_uri(place.uri)
    # The kubelet's own bookkeeping (..data, ..2026_…) is no key, and is all there is where a ConfigMap is missing: the
    # operator mounts it as optional, so that this sentence, and not a stuck pod, tells of it.
    found = sorted(entry.name for entry in mount.iterdir() if not entry.name.startswith("."))
    whole, glob = split_pattern(pattern)
    # A link to nothing is there all the same; who reads the data set says what is wrong with it.
    if found and (glob or os.path.lexists(mount / whole)):
        return
    if scheme == "configmap":
        lacks = f"has no key '{pattern}'; its keys are: {_shown(found)}"
        what = f"the ConfigMap {name} " + (lacks if found else "does not exist in the job's namespace, or is empty")
        add = retry(f"Write the data into it: `{_into_config_map(place, whole, replaces=not found)}`")
        raise TuneryError(FailureReason.DATASET_NOT_FOUND, f"{place.field}: {what}", add)
    lacks = f"has nothing at '{pattern}'; there are: {_shown(found)}"
    what = f"the claim {name} " + (lacks if found else "is empty")
    raise TuneryError(FailureReason.DATASET_NOT_FOUND, f"{place.field}: {what}")


def _into_config_map(place: Location, key: str, *, replaces: bool) -> str:
    """Return the command that puts a file into a ConfigMap; what a patch does not name stays.

    An apply on the client's side would write the data into an annotation, too, which holds 256 KiB.
    """
    name, where = split_uri(place.uri)[1], f" -n {place.namespace}" if place.namespace else ""
    file = f"{key}=FILE" if key and "/" not in key else "FILE"
    made = f"kubectl create configmap {name}{where} --from-file={file} --dry-run=client -o json"
    if replaces:
        return f"{made} | kubectl apply{where} --server-side -f -"
    return f"{made} | kubectl patch configmap {name}{where} --type=merge --patch-file=/dev/stdin"


class _Meter:
    """Adds up bytes from several threads."""

    def __init__(self, progress: OnBytesOfTotal | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self.total = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self.total)


def _model_from_hub(place: Location, name: str, cache: Path, meter: _Meter, *, weights: bool) -> FetchedModel:
    hub, repo = open_hub(place, name)
    names = model_files(repo.sizes, place.uri, weights=weights)
    held = _held(place, lambda: _hub_identity(place, repo)) if weights else None
    if held:
        return FetchedModel(held.folder, repo.commit, _weight_bytes(repo.sizes))
    folder = cache / f"model-{_mark(place.uri, repo.commit)}"
    meter.total = sum(repo.sizes[each] for each in names)
    check_disk(place, "spec.model.uri", meter.total)
    hub.download(repo, names, folder, meter.add)
    return FetchedModel(folder, repo.commit, _weight_bytes(repo.sizes))


def open_hub(place: Location, name: str, adapter: str | None = None) -> tuple[Hub, HubRepo]:
    """Return the hub that `place` is opened by, and its model `name` at its commit, or the adapter of a field."""
    from tunery_common.inputs.hub import Hub  # huggingface_hub is only needed for hf://

    hub = Hub(place.credentials, "model", adapter)
    return hub, hub.resolve(name, place.revision)


def _hub_identity(place: Location, repo: HubRepo) -> ModelIdentity:
    names = model_files(repo.sizes, place.uri, weights=True)
    key = _mark(place.uri, place.endpoint, repo.commit, *names)
    digests = {name: repo.sha256[name] for name in names if name in repo.sha256}
    return ModelIdentity(key, tuple(names), sum(repo.sizes[name] for name in names), digests)


def _bucket_model(place: Location) -> BucketModel:
    found = open_store(place.uri, place.credentials, "spec.model.uri")
    return BucketModel(found.store, _below(found))


def _bucket_identity(place: Location, entries: dict[str, Entry]) -> ModelIdentity:
    names = model_files(entries, place.uri, weights=True)
    files = [entries[name] for name in names]
    key = _mark(place.uri, place.endpoint, *(f"{each.key}\0{each.size}\0{each.version}" for each in files))
    return ModelIdentity(key, tuple(names), sum(each.size for each in files), {})


def _held(place: Location, identify: Callable[[], ModelIdentity]) -> CacheEntry | None:
    return place.cache.use(MODELS, identify().key) if place.cache else None


def _dataset_from_hub(place: Location, name: str, cache: Path, meter: _Meter) -> FetchedDataset:
    from tunery_common.inputs.hub import Hub

    owner, repo_name, pattern = ([*name.removeprefix("datasets/").split("/", 2), ""])[:3]
    hub = Hub(place.credentials, "dataset")
    repo = hub.resolve(f"{owner}/{repo_name}", place.revision)
    names = data_files(repo.sizes, pattern)
    if not names:
        raise _no_data(place, list(repo.sizes))
    folder = cache / f"dataset-{_mark(place.uri, repo.commit)}"
    meter.total = sum(repo.sizes[each] for each in names)
    check_disk(place, place.field, meter.total)
    hub.download(repo, names, folder, meter.add)
    return FetchedDataset(folder, pattern, repo.commit)


def _model_from_bucket(place: Location, cache: Path, meter: _Meter, *, weights: bool) -> FetchedModel:
    store, entries = _bucket_model(place)
    names = model_files(entries, place.uri, weights=weights)
    sizes = {name: entry.size for name, entry in entries.items()}
    held = _held(place, lambda: _bucket_identity(place, entries)) if weights else None
    if held:
        return FetchedModel(held.folder, None, _weight_bytes(sizes), FolderDigest(held.digests))
    folder = cache / f"model-{_mark(place.uri)}"
    check_disk(place, "spec.model.uri", sum(entries[name].size for name in names))
    digests = _fetch_entries(store, {name: entries[name] for name in names}, folder, meter)
    return FetchedModel(folder, None, _weight_bytes(sizes), FolderDigest(digests) if weights else None)


def _dataset_from_bucket(place: Location, cache: Path, meter: _Meter) -> FetchedDataset:
    base, pattern = split_pattern(place.uri)
    found = open_store(base, place.credentials, place.field)
    store, prefix = found
    folder = cache / f"dataset-{_mark(place.uri)}"
    single = store.head(prefix) if prefix and not pattern else None
    if single is not None:
        name = prefix.rsplit("/", 1)[-1]
        check_disk(place, place.field, single.size)
        _fetch_entries(store, {name: single}, folder, meter)
        return FetchedDataset(folder, name)
    entries = _below(found)
    names = data_files(entries, pattern)
    if not names:
        raise _no_data(place, list(entries) or _beside(found))
    check_disk(place, place.field, sum(entries[name].size for name in names))
    _fetch_entries(store, {name: entries[name] for name in names}, folder, meter)
    return FetchedDataset(folder, pattern)


def _fetch_entries(store: Store, entries: dict[str, Entry], folder: Path, meter: _Meter) -> dict[str, str]:
    """Download what is not there yet (an earlier attempt's files are kept if nothing changed); return the digests."""
    record = _read_record(folder)
    meter.total = sum(entry.size for entry in entries.values())

    def fetch(name: str) -> None:
        entry, path = entries[name], folder / name
        known = record.get(name)
        if known is not None and known[:2] == [entry.version, str(entry.size)] and _has_size(path, entry.size):
            meter.add(entry.size)
            return
        record[name] = [entry.version, str(entry.size), store.download(entry.key, path, meter.add)]

    try:
        with ThreadPoolExecutor(_WORKERS) as pool:
            for future in [pool.submit(fetch, name) for name in entries]:
                future.result()
    finally:
        if folder.is_dir():
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    return {name: record[name][2] for name in entries}


def check_disk(place: Location, field: str, size: int) -> None:
    """Raise WONT_FIT before the first byte where `size` bytes are more than the pod's disk may hold."""
    limit = place.disk
    if limit is None or size <= limit.bytes:
        return
    raise TuneryError(
        FailureReason.WONT_FIT,
        f"{field}: {size:,} bytes are to be downloaded from {place.uri}, but the disk of this pod holds "
        f"{limit.bytes:,} ({limit.field})",
        raise_disk(limit),
        recreate("Name a claim (pvc://) that holds the files: its files are not copied", field.removeprefix("spec.")),
    )


def _below(found: StorePath) -> dict[str, Entry]:
    """Return the objects below a place by their names relative to it, each checked to stay there."""
    return {check_key(found.relative(entry), found.uri): entry for entry in found.store.list(found.prefix)}


def _read_record(folder: Path) -> dict[str, list[str]]:
    try:
        found: dict[str, list[str]] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _local_path(place: Location, field: str, path: str) -> Path:
    scheme, _, _ = split_uri(place.uri)
    if scheme == "file" and place.allow_file:
        found = Path("/", path)
    elif scheme == "pvc" and place.mount is not None:
        found = place.mount / check_key(path, f"{field}: {place.uri}") if path else place.mount
    else:
        raise _unsupported(place, field)
    if not found.exists():
        missing = FailureReason.MODEL_NOT_FOUND if "model" in field else FailureReason.DATASET_NOT_FOUND
        if found.is_symlink():
            raise TuneryError(missing, f"{field}: {place.uri} {said_of_dead(found)}", _REPLACE_LINK)
        with suppress(OSError):  # what lies beside it is told where that may be looked at
            close = did_you_mean(found.name, [entry.name for entry in found.parent.iterdir()])
            raise TuneryError(missing, f"{field}: {place.uri} does not exist{close}")
        raise TuneryError(missing, f"{field}: {place.uri} does not exist")
    return found


def _weight_bytes(sizes: dict[str, int]) -> int:
    return sum(sizes[name] for name in sizes if name.endswith(".safetensors") and is_model_file(name))


def _mark(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _beside(found: StorePath) -> list[str]:
    """Return what lies in the folder of a key that is none, a misspelt one; nothing where that may not be asked."""
    folder = found.prefix.rpartition("/")[0]
    with suppress(TuneryError):
        return [entry.key.removeprefix(f"{folder}/") for entry in found.store.list(folder, _LOOKED_AT)]
    return []


def _no_data(place: Location, names: Sequence[str]) -> TuneryError:
    shown = _shown(names) or "nothing"
    message = f"{place.field}: no data file (.jsonl, .json, .csv, .parquet) at {place.uri}; there are: {shown}"
    return TuneryError(FailureReason.DATASET_NOT_FOUND, message)


def _unsupported(place: Location, field: str) -> TuneryError:
    return TuneryError(FailureReason.INVALID_SPEC, f"{field}: {place.uri} cannot be used here")
