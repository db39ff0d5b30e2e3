"""The claim of a place: which run publishes there, and which files are its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tunery_api.manifest import MANIFEST_NAME, FileRecord
from tunery_api.runspec import RunIdentity
from tunery_common.errors import TuneryError
from tunery_common.storage.base import ObjectMissing, StorePath, is_plain_path

CLAIM_NAME: Final = ".tunery-claim.json"
"""Removed once the manifest was read back."""
CLAIM_EXPIRES_SECONDS: Final = 3600
"""A claim that was not renewed (every uploaded file renews it) for so long belongs to a run that died."""
_IDENTITY: Final = {"uid", "kind", "namespace", "name"}

_log = logging.getLogger(__name__)


def _file_name(name: str) -> str:
    if name in (MANIFEST_NAME, CLAIM_NAME) or not is_plain_path(name):
        raise ValueError(f"{name!r} cannot be the name of a published file")
    return name


def _past(seconds: float) -> float:
    if not 0 <= seconds <= time.time() + CLAIM_EXPIRES_SECONDS:
        raise ValueError(f"{seconds} is not a time in the past")
    return seconds


class Claim(RunIdentity):
    """Which run writes to a place."""

    attempt: str = Field(min_length=1)
    """Of the publisher: one attempt of a run may hang on while the next one publishes."""
    renewed: Annotated[float, AfterValidator(_past)]
    """In seconds since 1970; 0 where the run has failed."""
    files: dict[Annotated[str, AfterValidator(_file_name)], FileRecord] = Field(max_length=100_000)
    """What the run writes or replaces. Files of other names or contents belong to others."""

    @property
    def expires(self) -> float:
        """In seconds since 1970, unless it is renewed."""
        return self.renewed + CLAIM_EXPIRES_SECONDS

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires

    def yields_to(self, run: RunIdentity) -> bool:
        """Tell whether that run may take the claim: its own, an expired one, or that of an earlier object of its name.

        No pod of such an object is left: the operator waits for them. If one were, its next write would fail.
        """
        own = (self.kind, self.namespace, self.name) == (run.kind, run.namespace, run.name)
        return self.expired or self.uid == run.uid or own

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}, uid {self.uid}"


def claim_bytes(
    run: RunIdentity, attempt: str, files: Mapping[str, FileRecord] | None = None, renewed: float | None = None
) -> bytes:
    """Return the claim of an attempt of that run on those files, renewed now or at that time."""
    at = time.time() if renewed is None else renewed
    identity = run.model_dump(include=_IDENTITY)
    claim = Claim(**identity, attempt=attempt, renewed=at, files=dict(files or {}))
    return claim.model_dump_json(include=_IDENTITY | {"attempt", "renewed", "files"}).encode()


def read_claim(place: StorePath) -> Claim | None:
    """Return the claim of the place; None where there is none, or one that Tunery has not written."""
    try:
        return Claim.model_validate_json(place.read_bytes(CLAIM_NAME))
    except (ObjectMissing, ValueError):
        return None


def remove_claim(place: StorePath, run: RunIdentity) -> None:
    """Remove the claim of that run, or an expired one; the result is published, so errors are warnings."""
    try:
        claim = read_claim(place)
        if claim is None or claim.expired or claim.uid == run.uid:
            place.store.delete(place.key(CLAIM_NAME))
    except TuneryError as error:
        _log.warning("the claim beside the result stays: %s", error.message)


def release_claim(place: StorePath, attempt: str) -> None:
    """Let others publish where that attempt has failed, and tell them what it has left; errors are warnings."""
    key = place.key(CLAIM_NAME)
    try:
        claim = read_claim(place)
        if claim is None or claim.attempt != attempt:
            return
        if claim.files:
            place.store.put_bytes(key, claim_bytes(claim, attempt, claim.files, renewed=0))
        else:
            place.store.delete(key)
    except TuneryError as error:
        _log.warning("the claim stays for an hour: %s", error.message)
