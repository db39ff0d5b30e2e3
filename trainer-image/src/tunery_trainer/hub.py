"""Models and data sets from a hub: which commit, which files, and what its refusals mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from httpx2 import HTTPError  # what huggingface_hub raises when the network fails
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunery_api.reasons import FailureReason
from tunery_trainer.credentials import Credentials
from tunery_trainer.errors import TrainerError, first_line
from tunery_trainer.storage.endpoints import check_endpoint
from tunery_trainer.storage.transfer import disk_errors

Kind = Literal["model", "dataset"]

_WORKERS: Final = 4


@dataclass(frozen=True)
class HubRepo:
    """One repository at one commit."""

    kind: Kind
    name: str
    commit: str
    sizes: dict[str, int]
    """Bytes by file name."""


class Hub:
    """A hub as one Secret (or the environment) opens it; HF_ENDPOINT is honoured."""

    def __init__(self, credentials: Credentials, kind: Kind) -> None:
        self._kind = kind
        self._field = f"spec.{kind}"
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
        return HubRepo(self._kind, name, info.sha or revision or "", sizes)

    def download(self, repo: HubRepo, names: Iterable[str], folder: Path, done: Callable[[int], None]) -> None:
        """Fetch the named files into `folder`; a rerun fetches only what is missing. `done` gets each file's size."""

        def fetch(name: str) -> None:
            with self._errors(repo.name, repo.commit), disk_errors(folder / name):
                hf_hub_download(
                    repo.name,
                    name,
                    repo_type=self._kind,
                    revision=repo.commit,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    token=self._token or False,
                )
            done(repo.sizes.get(name, 0))

        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with ThreadPoolExecutor(_WORKERS) as pool:
            for future in [pool.submit(fetch, name) for name in names]:
                future.result()

    @contextmanager
    def _errors(self, name: str, revision: str | None) -> Iterator[None]:
        try:
            yield
        except (HTTPError, HFValidationError, EntryNotFoundError, ConnectionError) as error:
            raise self._translated(error, name, revision) from error

    def _translated(self, error: Exception, name: str, revision: str | None) -> TrainerError:
        model = self._kind == "model"
        missing = FailureReason.MODEL_NOT_FOUND if model else FailureReason.DATASET_NOT_FOUND
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if isinstance(error, GatedRepoError):
            reason = FailureReason.MODEL_GATED if model else FailureReason.STORAGE_ACCESS_DENIED
            who = f"the token in {self._source} has no access" if self._token else "no HF_TOKEN was given"
            return TrainerError(reason, f"{self._field}.uri: hf://{name} is gated, and {who}")
        if isinstance(error, RevisionNotFoundError):
            return TrainerError(missing, f"{self._field}.revision: hf://{name} has no revision {revision or 'main'!r}")
        if isinstance(error, RepositoryNotFoundError):
            private = "" if self._token else "; if it is private, name a Secret with HF_TOKEN in secretRef"
            return TrainerError(missing, f"{self._field}.uri: hf://{name} does not exist on the hub{private}")
        if isinstance(error, (HFValidationError, EntryNotFoundError)):
            return TrainerError(missing, f"{self._field}.uri: hf://{name}: {first_line(error)}")
        if status in (401, 403):
            message = f"{self._field}: the hub refused the token in {self._source} (status {status}) for hf://{name}"
            return TrainerError(FailureReason.STORAGE_ACCESS_DENIED, message)
        if 400 <= status < 500 and status not in (408, 429):
            return TrainerError(missing, f"{self._field}.uri: the hub refused hf://{name} (status {status})")
        what = f"answered {status}" if status else f"did not answer: {first_line(error)}"
        message = f"{self._field}.uri: the hub {what} when asked for hf://{name}"
        return TrainerError(FailureReason.STORAGE_UNAVAILABLE, message)
