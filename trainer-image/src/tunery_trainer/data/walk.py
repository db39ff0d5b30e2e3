"""The files that a pattern names below a folder, linked folders included; no link is passed over without a word."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.storage.links import is_dead, leads_to_itself, said_of_dead
from tunery_trainer.data.faults import reading

SUFFIXES: Final = frozenset(
    {".parquet"} | {kind + packed for kind in (".jsonl", ".json", ".csv") for packed in ("", ".gz", ".zst")}
)
"""What is read; .parquet compresses within."""

_NOT_FILES: Final = frozenset({"lost+found"})
"""What a file system keeps for itself in a volume's root, and lets only root enter."""

_KINDS: Final = mimetypes.MimeTypes()
for _suffix in (".md", ".rst", ".yaml", ".yml", ".toml", ".log", ".lock"):  # not every version of Python knows them
    _KINDS.add_type("text/plain", _suffix)

_Rest: TypeAlias = tuple[str, ...]
"""What is left of a pattern; empty: all that is below."""


def suffix_of(name: str) -> str | None:
    """Return which of SUFFIXES a file's name ends in; None for other files."""
    parts = PurePosixPath(name.lower()).suffixes
    for length in (2, 1):
        if (suffix := "".join(parts[-length:])) in SUFFIXES:
            return suffix
    return None


def files_at(base: Path, pattern: str) -> Iterator[Path]:
    """Yield what `pattern` (a file, a folder or a glob; empty: all) names below `base`, but for folders, by name.

    A linked folder is read by the link's name, too. What begins with a dot is left out: a mounted ConfigMap shows each
    file twice, by its name, which is a link, and again below the hidden folder `..data`.

    Raises:
        TuneryError: DatasetInvalid for a linked folder that leads out of `base` or into itself, and for a folder with
            a data file's name and none in it; DatasetNotFound for a link to nothing that may be meant for data.
    """
    rest = PurePosixPath(pattern).parts
    while rest and rest[-1] == "**":
        rest = rest[:-1]
    yield from _Walk(base).below(base, {rest}, (base,))


@dataclass(frozen=True)
class _Walk:
    base: Path

    def below(self, folder: Path, rests: set[_Rest], above: tuple[Path, ...]) -> Iterator[Path]:
        """Yield the files that what is left of the pattern names; `above` are the folders it lies in, links resolved.

        What is left is a set, as `**` may end at several depths.
        """
        for path in self._entries(folder, rests):
            left = {after for rest in rests for after in _after(path.name, rest)}
            if not left:
                continue
            with reading(self._name(path)):
                is_folder = path.is_dir()
            if is_folder:
                found = list(self.below(path, left, (*above, self._entered(path, above))))
                if () in left and suffix_of(path.name) and not any(suffix_of(file.name) for file in found):
                    raise _empty(self._name(path))
                yield from found
            elif is_dead(path) and _may_be_meant(path.name, named=() in left):
                raise _dead(self._name(path), path)
            elif () in left:
                yield path

    def _name(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()

    def _entries(self, folder: Path, rests: set[_Rest]) -> list[Path]:
        """Return what lies in a folder and may be named; where one name is asked for, the folder is not listed."""
        first = {rest[0] if rest else "**" for rest in rests}
        if len(first) == 1 and not any(sign in next(iter(first)) for sign in "*?["):
            names = [name for name in first if os.path.lexists(folder / name)]
        else:
            with reading(self._name(folder)):
                names = sorted(os.listdir(folder))
        return [folder / name for name in names if not name.startswith(".") and name not in _NOT_FILES]

    def _entered(self, path: Path, above: tuple[Path, ...]) -> Path:
        """Return where a folder really lies; raises TuneryError for a link that must not be followed."""
        if not path.is_symlink():
            return above[-1] / path.name
        real = path.resolve()
        if not real.is_relative_to(self.base):
            raise leads_out(self._name(path), folder=True)
        if real in above:
            raise TuneryError(
                FailureReason.DATASET_INVALID,
                f"spec.dataset.uri: {self._name(path)}: is a link to a folder that it lies in itself",
                retry("Remove the link, or point it elsewhere"),
            )
        return real


def leads_out(name: str, *, folder: bool = False) -> TuneryError:
    """Return the failure for a link that leads out of the data set."""
    what = "linked folder that" if folder else "link that"
    fix = (
        "Replace the link by the folder itself, as cp -rL does, or remove the link"
        if folder
        else "Replace the link by the file itself, as cp -L does; without a cluster you can also name the link itself"
    )
    message = f"spec.dataset.uri: {name}: is a {what} leads out of the data set's folder"
    return TuneryError(FailureReason.DATASET_INVALID, message, retry(fix))


def _after(name: str, rest: _Rest) -> Iterator[_Rest]:
    """Yield what may be left of `rest` after a file or folder of that name; nothing where it does not fit."""
    if not rest:
        yield ()
    elif rest[0] == "**":
        yield rest
        yield from _after(name, rest[1:])
    elif fnmatchcase(name, rest[0]):
        yield rest[1:]


def _may_be_meant(name: str, *, named: bool) -> bool:
    """Tell whether a dead link may be meant for data: a data file that is named, or a folder, which may have any name.

    What a name says to be of another kind, such as notes.txt, would not be read either if it were there.
    """
    return named if suffix_of(name) is not None else not any(_KINDS.guess_type(name))


def _dead(name: str, link: Path) -> TuneryError:
    """Return the failure for a link to nothing: without its rows it would be another data set."""
    fix = "Create what it points to, or remove the link"
    if leads_to_itself(link):
        fix = "Replace the link by the file or the folder itself, or remove it"
    return TuneryError(FailureReason.DATASET_NOT_FOUND, f"spec.dataset.uri: {name}: {said_of_dead(link)}", retry(fix))


def _empty(name: str) -> TuneryError:
    return TuneryError(
        FailureReason.DATASET_INVALID,
        f"spec.dataset.uri: {name}: is a folder, and no data file is in it",
        retry("Replace it by the file itself, add data files to it, or remove it"),
    )
