"""What became of every reference of a server and of its selector."""

from __future__ import annotations

from typing import NamedTuple

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy
from tunery_api.serving import Desired
from tunery_operator.planning.clients import NoModel


class Waiting(NamedTuple):
    """An adapter that is wanted and does not exist yet."""

    name: str
    source: str
    message: str
    absent: bool = False
    """Nor does the object that the spec names: its name may be misspelt."""


class Refused(NamedTuple):
    """An adapter that is wanted and cannot be served as it is; what was served under its name before may go on."""

    name: str
    source: str
    reason: FailureReason
    message: str
    remedy: Remedy
    uri: str | None = None
    manifest_sha256: str | None = None
    rank: int | None = None


class Skipped(NamedTuple):
    """An object that the selector found and that is not for this server."""

    source: str
    reason: str


class Kept(NamedTuple):
    """An adapter that is served although its object offers it no more."""

    name: str
    source: str
    message: str


class Astray(NamedTuple):
    """A target of an alias that is no adapter of this server."""

    alias: str
    adapter: str


class Note(NamedTuple):
    """What to know of an adapter that is served well enough."""

    name: str
    message: str


class Resolution(NamedTuple):
    """What became of every reference and of the selector."""

    desired: Desired
    """Its revision is that of `before` where nothing changed, else one more."""
    waiting: tuple[Waiting, ...] = ()
    refused: tuple[Refused, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[Kept, ...] = ()
    notes: tuple[Note, ...] = ()
    astray: tuple[Astray, ...] = ()
    no_models: tuple[NoModel, ...] = ()
