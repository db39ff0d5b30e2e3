"""Models and data sets from a hub: which commit, which files, and what its refusals mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from httpx2 import HTTPError  # what huggingface_hub raises when the network fails
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not re-exported by name
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
    tqdm,
)

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, remedies_for, retry
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.location import Location
from tunery_common.inputs.weight_files import WeightFiles
from tunery_common.storage import transfer
from tunery_common.storage.base import Entry
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.endpoints import check_endpoint
from tunery_common.storage.transfer import CHUNK_BYTES, disk_errors

Kind = Literal["model", "dataset"]

_MISSING: Final[dict[Kind, FailureReason]] = {
    "model": FailureReason.MODEL_NOT_FOUND,
    "dataset": FailureReason.DATASET_NOT_FOUND,
}
_WORKERS: Final = 8
_LARGE: Final = 16 << 20
"""From here on several ranges are worth it."""
_PARTIAL: Final = 206


@dataclass(frozen=True)
class HubRepo:
    """One repository at one commit."""

    kind: Kind
    name: str
    commit: str
    sizes: dict[str, int]
    """Bytes by file name."""
    sha256: dict[str, str] = field(default_factory=dict)
    """In hex, by the name of each file that the hub tells it of: the large ones."""


class RangesRefused(Exception):
    """The hub sends whole files whatever range is asked for."""


class _HubFiles:
    """The files of one repository at its commit, read by ranges: what `transfer.download` copies from."""

    def __init__(self, hub: Hub, repo: HubRepo) -> None:
        self._hub = hub
        self._repo = repo

    def uri(self, key: str = "") -> str:
        return f"hf://{self._repo.name}/{key}"

    def head(self, key: str) -> Entry | None:
        return Entry(key, self._repo.sizes[key], self._repo.commit)

    def stream(self, entry: Entry, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        yield from self._hub.read(self._repo, entry, start, entry.size if length is None else start + length)


class _Counted:
    """Tells the bytes of one file that the hub's own client fetches: never more than it has, and all in the end."""

    def __init__(self, size: int, done: Callable[[int], None]) -> None:
        self.size = size
        self._done = done
        self._told = 0

    def to(self, there: int) -> None:
        """Tell what is new where so many bytes are there; fewer than before where it begins again."""
        there = max(0, min(self.size, there))
        if there != self._told:
            self._done(there - self._told)
            self._told = there

    def bar(self) -> type[tqdm]:
        """Return what that client calls for its progress bar: it shows nothing."""
        counted = self

        class Counting(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._there = int(kwargs.get("initial") or 0)
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
                counted.to(self._there)

            def update(self, n: float | None = 1) -> None:
                """Take bytes that came, or that are to come again."""
                self._there += int(n or 0)
                counted.to(self._there)

            def update_transfer(self, n: float) -> None:
                """Leave out what comes over the network of a file: it is not what stands on the disk."""

            def set_transfer_postfix_str(self, text: str, **kwargs: Any) -> None:
                """Leave out the speed."""

        return Counting


class Hub:
    """A hub as one Secret (or the environment) opens it; HF_ENDPOINT is honoured."""

    def __init__(self, credentials: Credentials, kind: Kind, adapter: str | None = None) -> None:
        """`adapter` is the field of the spec that names an adapter, in a repository of kind `model`."""
        self._kind = kind
        self._field = adapter or f"spec.{kind}"
        self._missing = _MISSING[kind] if adapter is None else FailureReason.ADAPTER_MISSING
        self._token = credentials.get("HF_TOKEN")
        self._source = credentials.source
        endpoint = credentials.get("HF_ENDPOINT")
        if endpoint is not None:
            check_endpoint(endpoint, f"{self._field}: HF_ENDPOINT in {credentials.source}")
        self._endpoint = endpoint

    def resolve(self, name: str, revision: str | None) -> HubRepo:
        """Return the repository at the commit that `revision` (a commit, branch or tag; default main) stands for."""
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        with self._errors(name, revision):
            ask = api.model_info if self._kind == "model" else api.dataset_info
            info = ask(name, revision=revision, files_metadata=True)
        sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
        digests = {item.rfilename: item.lfs.sha256 for item in info.siblings or () if item.lfs is not None}
        return HubRepo(self._kind, name, info.sha or revision or "", sizes, digests)

    def download(self, repo: HubRepo, names: Iterable[str], folder: Path, done: Callable[[int], None]) -> None:
        """Fetch the named files into `folder`; a rerun fetches only what is missing. `done` gets bytes as they come.

        By the hub's Xet protocol where it has that for a file, else by ranges, several at a time over all files, else
        as a whole. Raises StorageUnavailable where a file is not what the hub says.
        """

        def fetch(name: str) -> None:
            path, size = folder / name, repo.sizes[name]
            if path.is_file() and path.stat().st_size == size:
                done(size)  # it got its name when it was whole, and a commit does not change
            elif size < _LARGE or self._has_xet(repo, name):
                self._fetch_whole(repo, name, folder, done)
            else:
                self._fetch_ranges(repo, name, folder, done)

        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with ThreadPoolExecutor(_WORKERS) as pool:
            for future in [pool.submit(fetch, name) for name in names]:
                future.result()

    def read(self, repo: HubRepo, entry: Entry, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` to before `end`; raises RangesRefused."""
        headers = build_hf_headers(token=self._token or False)
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with (
            self._errors(repo.name, repo.commit),
            http_stream_backoff("GET", self._url(repo, entry.key), headers=headers, max_retries=0) as response,
        ):
            hf_raise_for_status(response)
            if response.status_code != _PARTIAL:
                raise RangesRefused
            yield from response.iter_raw(CHUNK_BYTES)

    def _fetch_whole(self, repo: HubRepo, name: str, folder: Path, done: Callable[[int], None]) -> None:
        counted = _Counted(repo.sizes[name], done)
        with self._errors(repo.name, repo.commit), disk_errors(folder / name):
            hf_hub_download(
                repo.name,
                name,
                repo_type=self._kind,
                revision=repo.commit,
                local_dir=folder,
                endpoint=self._endpoint,
                token=self._token or False,
                tqdm_class=counted.bar(),
            )
        counted.to(counted.size)

    def _fetch_ranges(self, repo: HubRepo, name: str, folder: Path, done: Callable[[int], None]) -> None:
        try:
            digest = transfer.download(_HubFiles(self, repo), name, folder / name, done)
        except RangesRefused:
            transfer.forget(folder / name)
            self._fetch_whole(repo, name, folder, done)
            return
        if repo.sha256.get(name, digest) != digest:
            (folder / name).unlink()
            message = f"{self._field}.uri: {name} of hf://{repo.name} came with another SHA-256 than the hub says"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)

    def _has_xet(self, repo: HubRepo, name: str) -> bool:
        """Tell whether the hub has a file in its store of chunks, which its own client reads from in parallel."""
        if constants.HF_HUB_DISABLE_XET:
            return False
        with self._errors(repo.name, repo.commit):
            told = get_hf_file_metadata(
                self._url(repo, name), token=self._token or False, endpoint=self._endpoint, retry_on_errors=True
            )
        return told.xet_file_data is not None

    def _url(self, repo: HubRepo, name: str) -> str:
        return hf_hub_url(repo.name, name, repo_type=self._kind, revision=repo.commit, endpoint=self._endpoint)

    @contextmanager
    def _errors(self, name: str, revision: str | None) -> Iterator[None]:
        try:
            yield
        except (HTTPError, HFValidationError, EntryNotFoundError, ConnectionError) as error:
            raise self._translated(error, name, revision) from error

    def _translated(self, error: Exception, name: str, revision: str | None) -> TuneryError:
        missing = self._missing
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if isinstance(error, GatedRepoError):
            return self._gated(name)
        if isinstance(error, RevisionNotFoundError):
            return TuneryError(missing, f"{self._field}.revision: hf://{name} has no revision {revision or 'main'!r}")
        if isinstance(error, RepositoryNotFoundError):
            message = f"{self._field}.uri: hf://{name} does not exist on the hub"
            private = () if self._token else (self._with_token("Name {}, if it is private"),)
            return TuneryError(missing, message, *remedies_for(missing), *private)
        if isinstance(error, (HFValidationError, EntryNotFoundError)):
            return TuneryError(missing, f"{self._field}.uri: hf://{name}: {first_line(error)}")
        if status in (401, 403):
            message = f"{self._field}: the hub refused the token in {self._source} (status {status}) for hf://{name}"
            return TuneryError(FailureReason.STORAGE_ACCESS_DENIED, message)
        if 400 <= status < 500 and status not in (408, 429):
            return TuneryError(missing, f"{self._field}.uri: the hub refused hf://{name} (status {status})")
        what = f"answered {status}" if status else f"did not answer: {first_line(error)}"
        message = f"{self._field}.uri: the hub {what} when asked for hf://{name}"
        return TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)

    def _gated(self, name: str) -> TuneryError:
        model = self._kind == "model"
        reason = FailureReason.MODEL_GATED if model else FailureReason.STORAGE_ACCESS_DENIED
        what = f"{self._field}.uri: hf://{name} is gated"
        if self._token:
            accept = retry(f"Accept the terms on its page, with the account of the token in {self._source}")
            return TuneryError(reason, f"{what}, and the token in {self._source} has no access", accept)
        accept = self._with_token("Accept the terms on its page, and name {}")
        return TuneryError(reason, f"{what}, and no HF_TOKEN was given", accept)

    def _with_token(self, text: str) -> Remedy:
        """Return a remedy in which `{}` stands for the Secret to name."""
        path = f"{self._field.removeprefix('spec.')}.secretRef"
        return recreate(text.format(f"a Secret with HF_TOKEN in {path} (without a cluster: set HF_TOKEN)"), path)


def hub_files(place: Location) -> WeightFiles:
    """Return the files of a model, read where they lie; that raises what Hub raises, and RangesRefused."""
    hub = Hub(place.credentials, "model")
    repo = hub.resolve(place.uri.removeprefix("hf://").strip("/"), place.revision)

    def read(name: str, start: int, length: int) -> bytes:
        entry = Entry(name, repo.sizes[name], repo.commit)
        return b"".join(hub.read(repo, entry, start, min(start + length, entry.size)))

    return WeightFiles({name: size for name, size in repo.sizes.items() if "/" not in name}, read)
