"""What a batch reads: the file of requests, and the API key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.inputs import SecretKeyReference
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_dataset
from tunery_common.inputs.mounts import Mounts
from tunery_common.storage.credentials import from_secret

_FIELD: Final = "spec.input.uri"
_UPLOAD: Final = (retry("Upload the file to that location"), recreate("Set another input.uri", "input.uri"))


def fetch_input(work: Mounts, spec: BatchInferenceSpec) -> Path:
    """Return the file of requests on the local disk; a claim's or a ConfigMap's is read where it lies.

    Raises DatasetNotFound where there is no such file, and the storage reasons.
    """
    uri = spec.input.uri
    place = replace(work.location(Purpose.INPUT, uri), field=_FIELD)
    try:
        found = fetch_dataset(place, work.folder("input"))
    except TuneryError as error:
        if error.reason is FailureReason.DATASET_NOT_FOUND:
            raise error.with_(remedies=_UPLOAD) from error
        raise
    path = found.root / found.pattern
    if not path.is_file():
        message = f"{_FIELD}: {uri} is not one file; a batch is read from one"
        raise TuneryError(FailureReason.DATASET_NOT_FOUND, message, *_UPLOAD)
    return path


def api_key(work: Mounts, spec: BatchInferenceSpec) -> str | None:
    """Read the API key anew; None where the spec names none.

    Raises SecretNotFound where the Secret or its key is missing, or its value can be no key.
    """
    asked = spec.api_key_secret_ref
    secret = work.run.secrets.get(Purpose.API_KEY)
    if asked is None or secret is None:
        return None
    folder = Path(secret.path)
    if not (folder / asked.key).is_file():
        raise _no_key(work, asked, secret.field)
    write = retry(f"Write an API key of the server into the Secret {asked.name} as {asked.key}")
    try:
        value = from_secret(folder, secret.name, (), secret.field).get(asked.key)
    except TuneryError as error:
        raise error.with_(remedies=[write]) from error
    if value is None:
        message = f"{secret.field}: the key {asked.key} of the Secret {asked.name} is empty"
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, message, write)
    if not value.isascii() or not value.isprintable() or " " in value:
        message = f"{secret.field}: the key {asked.key} of the Secret {asked.name} has a character that no API key has"
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, message, write)
    return value


def _no_key(work: Mounts, asked: SecretKeyReference, field: str) -> TuneryError:
    """Return that the key is not there. Nothing else of the Secret is mounted: it may be missing itself."""
    name, key = asked.name, asked.key
    message = f"{field}: the Secret {name} has no key {key}, or there is no such Secret"
    listed = f"`kubectl describe secret {name} -n {work.run.identity.namespace}` lists its keys"
    return TuneryError(
        FailureReason.SECRET_NOT_FOUND,
        message,
        retry(f"Add the key {key} with an API key of the server to the Secret ({listed})"),
        recreate("Correct apiKeySecretRef, if a name in it is misspelt", "apiKeySecretRef"),
    )
