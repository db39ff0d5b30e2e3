"""Where passes over a data set write down what they find: it outlives a pass that fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Protocol

from tunery_trainer.data.invalid_rows import Listing
from tunery_trainer.data.notes import DataNotes
from tunery_trainer.data.options import DataOptions, DatasetReport

LISTING: Final = "invalid.jsonl"
NOTES: Final = "notes.json"
LISTED_BYTES: Final = 8 * 2**20
"""What the listing of bad rows takes at most, unless somebody wants all of them: some 80,000 rows."""


class Pass(Protocol):
    """A pass over a data set, under way or ended in whatever way."""

    def counted(self) -> DatasetReport:
        """Return what was counted so far."""
        ...

    def notes(self) -> DataNotes:
        """Return what else was found so far."""
        ...

    @property
    def options(self) -> DataOptions:
        """What was asked of the data."""
        ...


class Notebook:
    """What the newest pass found, and the listing of its bad rows below `folder`."""

    def __init__(self, folder: Path, max_bytes: int | None = LISTED_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._pass: Pass | None = None
        self._listing: Listing | None = None
        self._notes: DataNotes | None = None
        self.options: DataOptions | None = None
        """What was asked of the data; None: nothing yet."""
        self.report: DatasetReport | None = None
        """What was counted; later what is known of it, too."""

    @property
    def listing(self) -> Path | None:
        """The file of bad rows, a JSON object a line; None where there is none."""
        path = self.folder / LISTING
        return path if path.is_file() else None

    def begin(self, running: Pass) -> Listing:
        """Forget what was found before, and return the listing for what a new pass finds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / LISTING).unlink(missing_ok=True)
        self._pass, self._notes, self.report, self.options = running, None, None, running.options
        self._listing = Listing(self.folder / LISTING, self._max_bytes)
        return self._listing

    def read(self) -> DataNotes | None:
        """Return what the newest pass found, and set `report`; None where nothing was read."""
        if self._listing is not None:
            self._listing.close()
        if self._notes is None and self._pass is not None:
            self._notes = self._pass.notes()
            self.report = self.report or self._pass.counted()
            self._pass = None  # and with it the files that it has counted in
        return self._notes

    def keep(self, entry: Path) -> None:
        """Put all of it into a folder beside the prepared rows."""
        notes = self.read()
        if notes is not None:
            (entry / NOTES).write_text(notes.model_dump_json(exclude_none=True), "utf-8")
        if self.listing is not None and self.listing.parent != entry:
            shutil.copyfile(self.listing, entry / LISTING)

    def take(self, entry: Path, report: DatasetReport, options: DataOptions) -> None:
        """Read what was found as these rows were prepared; what is missing stays unknown."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pass, self._listing, self._notes, self.report, self.options = None, None, None, report, options
        (self.folder / LISTING).unlink(missing_ok=True)
        if (entry / NOTES).is_file():
            self._notes = DataNotes.model_validate_json((entry / NOTES).read_bytes())
        if (entry / LISTING).is_file():
            shutil.copyfile(entry / LISTING, self.folder / LISTING)
