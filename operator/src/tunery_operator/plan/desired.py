"""What a server is to serve: its references and its selector, and what each object offers, become one list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.serving import Desired
from tunery_operator.views.offer import Offer


class Waiting(NamedTuple):
    """An adapter that is wanted and does not exist yet."""

    name: str
    source: str
    message: str


class Refused(NamedTuple):
    """An adapter that is wanted and cannot be served as it is."""

    name: str
    source: str
    reason: FailureReason
    message: str
    hint: str


class Skipped(NamedTuple):
    """An object that the selector found and that is not for this server."""

    source: str
    reason: str


class Kept(NamedTuple):
    """An adapter that is served although its object is gone."""

    name: str
    source: str
    message: str


class Resolution(NamedTuple):
    """What became of every reference and of the selector."""

    desired: Desired
    """Its revision is that of `before` where nothing changed, else one more."""
    waiting: tuple[Waiting, ...] = ()
    refused: tuple[Refused, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[Kept, ...] = ()


def resolve(spec: AdapterServerSpec, offers: Mapping[tuple[Kind, str], Offer], before: Desired) -> Resolution:
    """Return what is to be served.

    `offers` are the LoRAJobs and AdapterMerges of the namespace by kind and name, those at least that the spec names or
    selects; `before` is what the server's own ConfigMap says, an empty Desired where there is none.
    """
    raise NotImplementedError
