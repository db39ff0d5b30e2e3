"""The different rows of one side by their digests, and where each stood first."""

from __future__ import annotations

from array import array
from collections.abc import Collection

from tunery_trainer.data.rows import RowPlace


class SeenRows:
    """Memory: an entry of a dict and 8 bytes for each different row; never its text."""

    def __init__(self) -> None:
        self._digests: dict[bytes, None] = {}
        """In the order of the rows, as dicts are."""
        self._numbers = array("Q")
        """Of each different row its line."""
        self._files: list[tuple[int, RowPlace]] = []
        """From which different row on the rows are of which file."""

    def add(self, digest: bytes, place: RowPlace) -> bool:
        """Note a row; False where an equal one was there before."""
        if digest in self._digests:
            return False
        if not self._files or self._files[-1][1].file != place.file:
            self._files.append((len(self._digests), place))
        self._digests[digest] = None
        self._numbers.append(place.number)
        return True

    def __contains__(self, digest: bytes) -> bool:
        """Tell whether an equal row was there."""
        return digest in self._digests

    def places(self, digests: Collection[bytes]) -> dict[bytes, RowPlace]:
        """Return where the first row with each of these digests stood; reads over all rows once."""
        wanted = set(digests)
        found: dict[bytes, RowPlace] = {}
        for ordinal, digest in enumerate(self._digests if wanted else ()):
            if digest in wanted:
                file = next(place for start, place in reversed(self._files) if start <= ordinal)
                found[digest] = RowPlace(file.file, self._numbers[ordinal], file.unit)
        return found
