"""Where models and data sets lie, and what of them is on the local disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunery_api.runspec import DiskLimit
from tunery_common.inputs.digests import FolderDigest
from tunery_common.inputs.shared_cache import SharedCache
from tunery_common.storage.credentials import Credentials


@dataclass(frozen=True)
class Location:
    """Where something lies and what opens it."""

    uri: str
    credentials: Credentials
    mount: Path | None = None
    """The folder that a pvc:// or configmap:// URI's path is relative to."""
    revision: str | None = None
    """hf:// only."""
    allow_file: bool = False
    """Whether file:// is allowed: without a cluster only."""
    field: str = "spec.dataset.uri"
    """The field that names a data set, for messages."""
    disk: DiskLimit | None = None
    """What the disk that is downloaded to may hold in all, where it is limited."""
    namespace: str = ""
    """Of the object that reads it, for commands; empty where there is no cluster."""
    cache: SharedCache | None = None
    """Where base models may lie already."""

    @property
    def endpoint(self) -> str:
        """The server that the URI is relative to; empty for the usual one."""
        names = ("HF_ENDPOINT",) if self.uri.startswith("hf://") else ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        return next((value for name in names if (value := self.credentials.get(name))), "")


@dataclass(frozen=True)
class FetchedModel:
    """A model's folder; without weights in preflight."""

    folder: Path
    revision: str | None
    """The hub's commit."""
    weight_bytes: int
    """Size of its safetensors files, fetched or not."""
    files: FolderDigest | None = field(default=None, compare=False)
    """None for a hub's commit, and without weights."""

    @property
    def digest(self) -> str | None:
        """SHA-256 over the `sha256sum` listing of its files; waits where they are still being read."""
        return self.files.wait() if self.files else None


@dataclass(frozen=True)
class FetchedDataset:
    """A data set's files: what `data.sources.find_sources` takes."""

    root: Path
    pattern: str
    """A file, a folder or a glob below the root; empty for all of it."""
    revision: str | None = None
    """The hub's commit."""


@dataclass(frozen=True)
class DataFiles:
    """The files of a job's data set."""

    train: FetchedDataset
    evaluation: FetchedDataset | None = None
    """Of an evaluation set of its own."""

    @property
    def roots(self) -> set[Path]:
        """The folders that they lie in."""
        return {each.root for each in (self.train, self.evaluation) if each is not None}
