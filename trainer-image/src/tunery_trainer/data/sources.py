"""Which files make up a split, and the digest of their content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tunery_api.reasons import FailureReason
from tunery_trainer.errors import TrainerError
from tunery_trainer.storage.transfer import hash_file, listing_digest

SUFFIXES = frozenset(
    {".parquet"} | {kind + packed for kind in (".jsonl", ".json", ".csv") for packed in ("", ".gz", ".zst")}
)
"""What is read; .parquet compresses within."""

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
    """One of SUFFIXES."""


def find_sources(root: Path, pattern: str, split: str | None) -> list[DataFile]:
    """The files of `split` (None: of any) among those that `pattern` names below `root`.

    `pattern` is a file, a folder or a glob; empty for all that is there.
    In a folder, `<split>.jsonl`, `<split>-*.parquet`, `data/<split>*` and whatever lies in a folder of that name
    are the split; if nothing is named so, all files that bear no other split's name are the split `train`.

    Raises:
        TrainerError: DatasetNotFound, with what exists, or InvalidSpec for a path that leads out of the root.
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
        raise TrainerError(
            FailureReason.DATASET_NOT_FOUND, f"spec.dataset.split: no file of split '{split}'; there are: {listed}"
        )
    return chosen


def content_digest(sources: Sequence[DataFile]) -> str:
    """SHA-256 of the one file's bytes, or of the `sha256sum` listing (digest, two spaces, name) of several; hex."""
    digests = [(source.name, hash_file(source.path)) for source in sources]
    return digests[0][1] if len(digests) == 1 else listing_digest(digests)


_SUPPORTED = "read are .jsonl, .json, .csv, each also as .gz or .zst, and .parquet"


def _matching(root: Path, pattern: str) -> tuple[list[DataFile], bool]:
    """The files, sorted by name, and whether the user named them one by one or by a glob (not by a folder)."""
    base = root.resolve()
    if base.is_file():
        return _sources([base], base.parent), True
    parts = PurePosixPath(pattern).parts
    if ".." in parts or PurePosixPath(pattern).is_absolute():
        raise TrainerError(
            FailureReason.INVALID_SPEC, f"spec.dataset.uri: '{pattern}' must be a path below its root, without '..'"
        )
    is_glob = any(sign in pattern for sign in "*?[")
    hits = sorted(base.glob(pattern)) if is_glob else [base / pattern]
    files = [file for hit in hits for file in ([hit] if hit.is_file() or _is_dead(hit) else sorted(hit.rglob("*")))]
    return _sources(files, base), is_glob or hits[0].is_file()


def _sources(files: Sequence[Path], base: Path) -> list[DataFile]:
    found = []
    for file in dict.fromkeys(files):
        relative = file.relative_to(base)
        # A mounted ConfigMap shows each file twice: by its name, and again below the hidden folder `..data`.
        if any(part.startswith(".") for part in relative.parts) or file.name in _NOT_DATA:
            continue
        suffix = _suffix(file.name)
        if suffix is not None and _is_dead(file):
            raise _dead(relative.as_posix(), file)
        if suffix is None or not file.is_file():
            continue
        if not file.resolve().is_relative_to(base):
            raise _leads_out(relative.as_posix())
        found.append(DataFile(file, relative.as_posix(), suffix))
    return found


def _is_dead(path: Path) -> bool:
    """Tell whether it is a link to nothing, or to itself."""
    return path.is_symlink() and not path.exists()


def _dead(name: str, link: Path) -> TrainerError:
    """Return the failure for a link to nothing: without its rows it would be another data set."""
    return TrainerError(
        FailureReason.DATASET_NOT_FOUND,
        f"spec.dataset.uri: {name}: is a link to {os.readlink(link)}, where nothing is",
        "Put the file there, or remove the link.",
    )


def _leads_out(name: str) -> TrainerError:
    return TrainerError(
        FailureReason.DATASET_INVALID,
        f"spec.dataset.uri: {name}: is a link that leads out of the data set's folder",
        "Put the file itself in the place of the link, as cp -L does; or name the file that it points to.",
    )


def _suffix(name: str) -> str | None:
    parts = PurePosixPath(name.lower()).suffixes
    for length in (2, 1):
        if (suffix := "".join(parts[-length:])) in SUFFIXES:
            return suffix
    return None


def _bears(name: str, split: str) -> bool:
    path = PurePosixPath(name)
    stem = path.name.split(".")[0]
    in_data_folder = len(path.parts) > 1 and path.parts[-2] == "data" and stem.startswith(split)
    return stem == split or stem.startswith((f"{split}-", f"{split}_")) or split in path.parts[:-1] or in_data_folder


def _not_found(what: str, root: Path) -> TrainerError:
    entries = sorted(file.name for file in root.iterdir()) if root.is_dir() else []
    existing = [name for name in entries if not name.startswith(".")]
    listed = _listing(existing) if existing else "nothing"
    return TrainerError(FailureReason.DATASET_NOT_FOUND, f"spec.dataset.uri: {what}; there are: {listed}")


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
