"""Where a model's config.json lies on this machine, for a look at it without any network."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import try_to_load_from_cache

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.storage.uris import split_uri

CONFIG = "config.json"


def local_model(uri: str, revision: str | None, given: Path | None) -> Path:
    """Return the folder of the model: `given`, else that of a file:// URI, else of a snapshot in the hub's cache.

    Raises TuneryError(ModelNotFound) with what to do.
    """
    if given is not None:
        return _checked(given, f"--model {given}")
    scheme, authority, path = split_uri(uri)
    if scheme == "file":
        return _checked(Path(unquote(uri.removeprefix("file://"))), f"spec.model.uri: {uri}")
    if scheme == "hf":
        return _snapshot(f"{authority}/{path}", revision)
    raise TuneryError(
        FailureReason.MODEL_NOT_FOUND,
        f"spec.model.uri: {uri} is not read here, where nothing but this machine's files is",
        retry(f"Name a folder with the model's {CONFIG} (weights are not needed): --model FOLDER"),
    )


def _checked(folder: Path, named: str) -> Path:
    if (folder / CONFIG).is_file():
        return folder
    what = f"has no {CONFIG}" if folder.is_dir() else "is not a folder"
    raise TuneryError(
        FailureReason.MODEL_NOT_FOUND, f"{named} {what}", retry(f"Name the folder that holds the model's {CONFIG}")
    )


def _snapshot(name: str, revision: str | None) -> Path:
    found = try_to_load_from_cache(name, CONFIG, revision=revision)
    if isinstance(found, str):
        return Path(found).parent
    raise TuneryError(
        FailureReason.MODEL_NOT_FOUND,
        f"spec.model.uri: the hub's cache on this machine has no {CONFIG} of {name}",
        retry(f"Download it without the weights: hf download {name} --include '*.json'"),
        retry("Name a folder that holds it: --model FOLDER"),
    )
