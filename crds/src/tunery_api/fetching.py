"""Define how results are fetched without storage keys: the annotation that requests it, and the answers of the server.

The client annotates an object with the digest of a random token. The operator runs a server for it, in a pod with the
object's own output Secret. The server answers only requests that have the token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import Field

from tunery_api.fields import OpenModel

MAX_FETCH_SECONDS: Final = 24 * 3600
"""The longest time until the expiry of a request."""
RESULTS_PATH: Final = "/v1/results"
FILES_PATH: Final = "/v1/files"
"""The paths of the server: `/v1/results` lists the groups, `/v1/files/<group>/<path>` is one file, with ranges."""
_VALUE: Final = re.compile(r"([0-9a-f]{64})/([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z)")


class FetchRequest(NamedTuple):
    """The value of the annotation `tunery.dev/fetch`: `<SHA-256 of the token>/<expiry>`."""

    token_sha256: str
    expires: datetime

    def __str__(self) -> str:
        """Return the value of the annotation; the expiry is written in UTC with whole seconds."""
        return f"{self.token_sha256}/{self.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the expiry."""
        return (self.expires - now).total_seconds()


def parse_fetch_request(value: str, now: datetime) -> FetchRequest:
    """Return the request of an annotation's value. Raises ValueError with the reason if it isn't valid at `now`."""
    found = _VALUE.fullmatch(value)
    if found is None:
        raise ValueError("it isn't <SHA-256 of the token in hex>/<expiry in UTC, such as 2026-12-02T18:00:00Z>")
    try:
        request = FetchRequest(found[1], datetime.fromisoformat(found[2]))
    except ValueError:
        raise ValueError(f"{found[2]} isn't a time") from None
    left = request.seconds_left(now)
    if left <= 0:
        raise ValueError(f"it expired at {found[2]}")
    if left > MAX_FETCH_SECONDS:
        raise ValueError(f"its expiry {found[2]} is more than 24 hours away")
    return request


def token_digest(token: str) -> str:
    """Return the SHA-256 of a token in hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_token(token: str, sha256: str) -> bool:
    """Return whether a token has this SHA-256, compared in constant time."""
    return hmac.compare_digest(token_digest(token), sha256)


class ResultGroup(StrEnum):
    """The groups of files that can be fetched."""

    ADAPTER = "adapter"
    """The published files, with manifest.json itself: an adapter, a model, or the answers of a batch."""
    REPORTS = "reports"
    """The data report, the loss curve and the pictures, published or not."""


class ResultFile(OpenModel):
    """One file that can be fetched."""

    path: str
    """Relative to the group, with `/`."""
    size: int = Field(ge=0)
    """In bytes."""
    sha256: str | None = None
    """None: no manifest lists the file."""


class GroupResults(OpenModel):
    """The files of one group, or why it has none."""

    group: str
    uri: str | None = None
    """The URI of the folder. None: the object has none."""
    files: list[ResultFile] = Field(default_factory=list)
    reason: str | None = None
    """Why the group is empty. None: it isn't."""
    message: str | None = None


class FetchError(OpenModel):
    """The body of an answer whose status is 400 or above."""

    reason: str
    message: str
