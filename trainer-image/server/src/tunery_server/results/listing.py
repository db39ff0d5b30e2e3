"""List the files that an object has published, and its reports; all of it blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tunery_api.fetching import GroupResults, ResultFile, ResultGroup
from tunery_api.manifest import MANIFEST_NAME
from tunery_api.names import DATA_REPORT_JSON, DATA_REPORT_TEXT
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.runspec import FetchRun, Purpose, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs.mounts import Mounts
from tunery_common.storage import Entry, ObjectMissing, StorePath
from tunery_common.storage.base import is_plain_path
from tunery_common.storage.published_folder import PublishedManifest, read_manifest
from tunery_server.batch.check import PROBLEMS_FILE

MAX_REPORTS: Final = 200
_REPORTS: Final = (DATA_REPORT_JSON, DATA_REPORT_TEXT, "curve.jsonl", PROBLEMS_FILE)
_SUFFIXES: Final = (".html", ".png")
_FIELD: Final = "spec.output.uri"


@dataclass
class Listing:
    """The files of each group and their places; a file that isn't listed isn't served."""

    groups: list[GroupResults] = field(default_factory=list)
    _failures: dict[str, TuneryError] = field(default_factory=dict)
    _places: dict[tuple[str, str], StorePath] = field(default_factory=dict)
    _entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def add(self, group: GroupResults, places: dict[str, StorePath]) -> None:
        """Add a group, with the place of each of its files."""
        self.groups.append(group)
        self._places |= {(group.group, path): place for path, place in places.items()}

    def fail(self, group: str, error: TuneryError) -> None:
        """Add a group that has no files, with the reason."""
        failed = GroupResults(group=group, files=[], reason=error.reason.value, message=redact(error.message))
        self.groups.append(failed)
        self._failures[group] = error

    def failure(self, group: str) -> TuneryError | None:
        """Return why a group has no files; None: it has some, or there is no such group."""
        return self._failures.get(group)

    def open(self, group: str, path: str) -> tuple[StorePath, Entry]:
        """Return the place of a file and its stored object as it was first opened.

        Raises TuneryError: why its group is empty, STORAGE_NOT_FOUND if it isn't listed or no longer stored, and the
        errors of the storage.
        """
        place = self._places.get((group, path))
        if place is None:
            if failure := self.failure(group):
                raise failure
            raise TuneryError(FailureReason.STORAGE_NOT_FOUND, f"the group {group} has no file {path}")
        entry = self._entries.get((group, path)) or place.store.head(place.prefix)
        if entry is None:
            raise ObjectMissing(place.uri)
        self._entries[group, path] = entry
        return place, entry


def read_listing(run: RunSpec) -> Listing:
    """Return what can be fetched; a group that can't be read has the reason instead of files. Raises no TuneryError."""
    reader, listing = _Reader(Mounts(run)), Listing()
    for group, read in ((ResultGroup.ADAPTER, reader.published), (ResultGroup.REPORTS, reader.reports)):
        found: list[tuple[ResultFile, StorePath]] = []
        try:
            uri = read(found)
            listing.add(
                GroupResults(group=group.value, uri=uri, files=[file for file, _ in found]),
                {file.path: place for file, place in found},
            )
        except TuneryError as error:
            listing.fail(group.value, error)
    return listing


_Found = list[tuple[ResultFile, StorePath]]


class _Reader:
    """Reads the groups of one object."""

    def __init__(self, work: Mounts) -> None:
        self._work = work

    def published(self, found: _Found) -> str:
        """Add the files of the manifest, the manifest first; return the URI of the folder. Raises TuneryError."""
        place, published = self._manifest()
        entry = place.store.head(place.key(MANIFEST_NAME))
        if entry is None:
            raise ObjectMissing(place.below(MANIFEST_NAME).uri)
        manifest = ResultFile(path=MANIFEST_NAME, size=entry.size, sha256=published.sha256)
        found.append((manifest, place.below(MANIFEST_NAME)))
        found.extend(_files_of(place, published))
        return place.uri

    def reports(self, found: _Found) -> str | None:
        """Add the reports: the published ones, then those of a run that hasn't published. Raises TuneryError."""
        uri = self._work.run.report_uri
        try:
            place, published = self._manifest()
            uri = place.uri
            found.extend((file, at) for file, at in _files_of(place, published) if _is_report(file.path))
        except TuneryError as error:
            if error.reason is not FailureReason.ADAPTER_MISSING:
                raise
        names = {file.path for file, _ in found}
        found.extend((file, at) for file, at in self._stored_reports() if file.path not in names)
        if not found:
            raise TuneryError(FailureReason.STORAGE_NOT_FOUND, f"no report of {self._subject} is stored")
        return uri

    def _manifest(self) -> tuple[StorePath, PublishedManifest]:
        """Return the published folder and its manifest, which must be of this object."""
        run, fetch = self._work.run, self._work.run.fetch or FetchRun(token_sha256="")
        place = self._work.open(Purpose.OUTPUT, fetch.result_uri or run.output_uri, _FIELD)
        try:
            published = read_manifest(place, fetch.manifest_sha256)
        except TuneryError as error:
            if error.reason is FailureReason.ADAPTER_MISSING and fetch.result_uri is None:
                message = f"{self._subject} has published nothing at {place.uri}"
                raise TuneryError(error.reason, message) from error
            raise
        if fetch.manifest_sha256 is None and published.manifest.run.uid != run.identity.uid:
            message = f"{self._subject} has published nothing: {place.uri} has the result of another object"
            raise TuneryError(FailureReason.ADAPTER_MISSING, message)
        return place, published

    def _stored_reports(self) -> Iterator[tuple[ResultFile, StorePath]]:
        """Yield the reports outside of the published folder."""
        run = self._work.run
        for uri in (run.report_uri, run.checkpoint_uri):
            if uri is None:
                continue
            place = self._work.open(Purpose.OUTPUT, uri, _FIELD)
            for entry in place.store.list(place.prefix, MAX_REPORTS, nested=False):
                name = place.relative(entry)
                if is_plain_path(name) and _is_report(name):
                    yield ResultFile(path=name, size=entry.size), place.below(name)

    @property
    def _subject(self) -> str:
        identity = self._work.run.identity
        return f"{identity.kind} {identity.namespace}/{identity.name}"


def _files_of(place: StorePath, published: PublishedManifest) -> Iterator[tuple[ResultFile, StorePath]]:
    for name, record in published.manifest.files.items():
        yield ResultFile(path=name, size=record.size, sha256=record.sha256), place.below(name)


def _is_report(name: str) -> bool:
    return "/" not in name and (name in _REPORTS or name.endswith(_SUFFIXES))
