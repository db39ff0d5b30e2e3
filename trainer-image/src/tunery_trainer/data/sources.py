"""Which files make up a split, and the digest of their content."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.storage.transfer import hash_file, listing_digest
from tunery_trainer.data.faults import reading
from tunery_trainer.data.walk import files_at, leads_out, suffix_of

_NOT_DATA = frozenset({"dataset_infos.json", "dataset_dict.json", "state.json"})
_OTHER_SPLITS = ("validation", "valid", "val", "dev", "eval", "evaluation", "test")
_LISTED = 10


@dataclass(frozen=True)
class DataFile:
    """One file of a data set."""

    path: Path
    name: str
    """Relative to the root, for messages."""
    suffix: str
    """One of walk.SUFFIXES."""


def find_sources(root: Path, pattern: str, split: str | None) -> list[DataFile]:
    """The files of `split` (None: of any) among those that `pattern` names below `root`.

    `pattern` is a file, a folder or a glob; empty for all that is there.
    In a folder, `<split>.jsonl`, `<split>-*.parquet`, `data/<split>*` and whatever lies in a folder of that name
    are the split; if nothing is named so, all files that bear no other split's name are the split `train`.

    Raises:
        TuneryError: DatasetNotFound, with what exists, DatasetInvalid for what must not be read and would else be
            missed, such as a link that leads out of the root, or InvalidSpec for such a path.
    """
    files, named = _matching(root, pattern)
    if not files:
        raise _not_found(f"no data file at '{pattern or root.name}' ({_SUPPORTED})", root)
    if split is None:
        return files
    chosen = [file for file in files if _bears(file.name, split)]
    if not chosen and split == "train":
        chosen = [file for file in files if named or not any(_bears(file.name, other) for other in _OTHER_SPLITS)]
    if not chosen:
        listed = _listing([file.name for file in files])
        raise TuneryError(
            FailureReason.DATASET_NOT_FOUND, f"spec.dataset.split: no file of split '{split}'; there are: {listed}"
        )
    return chosen


def content_digest(sources: Sequence[DataFile]) -> str:
    """SHA-256 of the one file's bytes, or of the `sha256sum` listing (digest, two spaces, name) of several; hex.

    Raises:
        TuneryError: what `faults.reading` makes of a file that cannot be read.
    """
    digests = []
    for source in sources:
        with reading(source.name):
            digests.append((source.name, hash_file(source.path)))
    return digests[0][1] if len(digests) == 1 else listing_digest(digests)


_SUPPORTED = "read are .jsonl, .json, .csv, each also as .gz or .zst, and .parquet"


def _matching(root: Path, pattern: str) -> tuple[list[DataFile], bool]:
    """The files, sorted by name, and whether the user named them one by one or by a glob (not by a folder)."""
    if root.exists() and not root.is_dir():
        return [_named(root)], True
    base = root.resolve()
    if ".." in PurePosixPath(pattern).parts or PurePosixPath(pattern).is_absolute():
        raise TuneryError(
            FailureReason.INVALID_SPEC, f"spec.dataset.uri: '{pattern}' must be a path below its root, without '..'"
        )
    if not base.is_dir():
        return [], False
    is_glob = any(sign in pattern for sign in "*?[")
    return _sources(files_at(base, pattern), base), is_glob or (base / pattern).is_file()


def _named(file: Path) -> DataFile:
    """Return the one file that was named, by its own name: a link may lead anywhere, as those of the hub's cache do."""
    suffix = suffix_of(file.name)
    if not _is_file(file, file.name):
        raise _no_file(file.name)
    if suffix is None:
        message = f"spec.dataset.uri: {file.name}: has not the name of a data file ({_SUPPORTED})"
        fix = "If it is data, rename it by its format, such as data.jsonl, or name a link that has such a name"
        raise TuneryError(FailureReason.DATASET_NOT_FOUND, message, retry(fix))
    return DataFile(file, _readable(file.name), suffix)


def _is_file(file: Path, name: str) -> bool:
    with reading(name):
        return stat.S_ISREG(file.stat().st_mode)


def _sources(files: Iterable[Path], base: Path) -> list[DataFile]:
    found = []
    for file in files:
        name, suffix = file.relative_to(base).as_posix(), suffix_of(file.name)
        if file.name in _NOT_DATA or suffix is None:
            continue
        if not _is_file(file, name):
            raise _no_file(name)
        if not file.resolve().is_relative_to(base):
            raise leads_out(name)
        found.append(DataFile(file, _readable(name), suffix))
    return found


def _no_file(name: str) -> TuneryError:
    return TuneryError(
        FailureReason.DATASET_INVALID,
        f"spec.dataset.uri: {name}: is a pipe, a socket or a device, and no file",
        retry("Write its output to a file such as data.jsonl, and use that instead, or remove it"),
    )


def _readable(name: str) -> str:
    """Return a file's name; raises TuneryError where it cannot be written down, as bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        message = f"spec.dataset.uri: {shown}: has a name that is not valid UTF-8"
        raise TuneryError(FailureReason.DATASET_INVALID, message, retry("Rename it")) from error
    return name


def _bears(name: str, split: str) -> bool:
    path = PurePosixPath(name)
    stem = path.name.split(".")[0]
    in_data_folder = len(path.parts) > 1 and path.parts[-2] == "data" and stem.startswith(split)
    return stem == split or stem.startswith((f"{split}-", f"{split}_")) or split in path.parts[:-1] or in_data_folder


def _not_found(what: str, root: Path) -> TuneryError:
    entries = sorted(file.name for file in root.iterdir()) if root.is_dir() else []
    existing = [name for name in entries if not name.startswith(".")]
    listed = _listing(existing) if existing else "nothing"
    return TuneryError(FailureReason.DATASET_NOT_FOUND, f"spec.dataset.uri: {what}; there are: {listed}")


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
