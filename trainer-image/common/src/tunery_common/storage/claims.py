"""The claim of a place: which run publishes there, and which files are its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tunery_api.runspec import RunIdentity
from tunery_common.storage.base import ObjectMissing, StorePath

CLAIM_NAME: Final = ".tunery-claim.json"
"""Removed once the manifest was read back."""
CLAIM_EXPIRES_SECONDS: Final = 3600
"""A claim that was not renewed (every uploaded file renews it) for so long belongs to a run that died."""
_IDENTITY: Final = ("uid", "kind", "namespace", "name")


@dataclass(frozen=True)
class Claim:
    """Who writes to a place, as its claim says; older claims have no more than the uid."""

    uid: str
    owner: tuple[str, ...]
    """Kind, namespace and name."""
    expires: float
    """In seconds since 1970, unless it is renewed."""
    files: frozenset[str]
    """Names of the files that the run writes or replaces. Other files there belong to others."""

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires

    def yields_to(self, run: RunIdentity) -> bool:
        """Tell whether that run may take the claim: its own, an expired one, or that of an earlier object of its name.

        No pod of such an object is left: the operator waits for them. If one were, its next write would fail.
        """
        return self.expired or self.uid == run.uid or self.owner == (run.kind, run.namespace, run.name)

    def __str__(self) -> str:
        kind, namespace, name = self.owner
        return f"{kind} {namespace}/{name}, uid {self.uid}" if name else f"uid {self.uid}"


def claim_bytes(run: RunIdentity, files: Iterable[str] = ()) -> bytes:
    """Return the claim of that run on those files, renewed now."""
    identity = {name: getattr(run, name) for name in _IDENTITY}
    return json.dumps({**identity, "renewed": time.time(), "files": sorted(files)}).encode()


def read_claim(place: StorePath) -> Claim | None:
    """Return the claim of the place; None where there is none that can be read."""
    try:
        found = json.loads(place.read_bytes(CLAIM_NAME))
        uid, *owner = (str(found.get(name, "")) for name in _IDENTITY)
        expires, files = float(found["renewed"]) + CLAIM_EXPIRES_SECONDS, frozenset(map(str, found.get("files", ())))
        claim = Claim(uid, tuple(owner), expires, files)
    except (ObjectMissing, ValueError, KeyError, TypeError, AttributeError):
        return None
    return claim if claim.uid else None
