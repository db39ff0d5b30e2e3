"""Whose pod a progress token belongs to: a TokenReview, remembered for a minute."""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final, NamedTuple

from tunery_api.names import PROGRESS_AUDIENCE
from tunery_operator.kube.client import KubeClient
from tunery_operator.kube.rbac import REVIEW_TOKEN

REMEMBERED_SECONDS: Final = 60.0
MAX_REMEMBERED: Final = 10_000
_EXTRA: Final = "authentication.kubernetes.io/"


class PodIdentity(NamedTuple):
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class TokenReviewer:
    """Asks the API server, once a minute for each token; invalid tokens are remembered, too."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._known: dict[bytes, tuple[float, PodIdentity | None]] = {}

    def review(self, token: str) -> PodIdentity | None:
        """Return the pod that a token is for, or None where it is not valid for our audience."""
        digest, now = hashlib.sha256(token.encode()).digest(), time.monotonic()
        known = self._known.get(digest)
        if known is not None and known[0] > now:
            return known[1]
        identity = self._ask(token)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[digest] = (now + REMEMBERED_SECONDS, identity)
        return identity

    def _ask(self, token: str) -> PodIdentity | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [PROGRESS_AUDIENCE]},
        }
        status = self._client.request(REVIEW_TOKEN, None, body=body).get("status") or {}
        if not status.get("authenticated") or PROGRESS_AUDIENCE not in (status.get("audiences") or ()):
            return None
        return _identity(status.get("user") or {})


def _identity(user: dict[str, Any]) -> PodIdentity | None:
    extra = user.get("extra") or {}
    names, uids = extra.get(f"{_EXTRA}pod-name"), extra.get(f"{_EXTRA}pod-uid")
    parts = str(user.get("username", "")).split(":")
    if not names or not uids or parts[:2] != ["system", "serviceaccount"] or len(parts) != 4:
        return None
    return PodIdentity(parts[2], names[0], uids[0])
