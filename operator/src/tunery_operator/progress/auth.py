"""Provide the authentication of progress reports: read the claim of a token, then verify it by a TokenReview."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from tunery_api.names import PROGRESS_AUDIENCE
from tunery_operator.client.client import KubeClient
from tunery_operator.client.permissions import REVIEW_TOKEN
from tunery_operator.errors import OperatorError

REMEMBERED_SECONDS: Final = 60.0
MAX_REMEMBERED: Final = 10_000
MAX_REVIEWS: Final = 4
"""TokenReviews in flight."""
REVIEW_SECONDS: Final = 3.0
"""Seconds that a report waits for its TokenReview; then the pod must retry."""
MAX_TOKEN: Final = 8192
_EXTRA: Final = "authentication.kubernetes.io/"


class PodIdentity(NamedTuple):
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


class Claim(NamedTuple):
    """The content of a token, not verified."""

    pod: PodIdentity
    expires: float
    """Seconds since 1970."""


class ReviewsBusy(OperatorError):
    """Too many tokens wait for their review: the pod must retry."""

    retry_after = 2.0


def read_claim(token: str) -> Claim | None:
    """Return the claim of a token; None if it is no JWT, has expired, or has no pod or another audience.

    This proves nothing: it rejects, without a call, what no review would accept.
    """
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN:
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        audiences = payload["aud"]
        bound = payload["kubernetes.io"]
        pod = PodIdentity(str(bound["namespace"]), str(bound["pod"]["name"]), str(bound["pod"]["uid"]))
        expires = float(payload["exp"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    ours = audiences == PROGRESS_AUDIENCE or (isinstance(audiences, list) and PROGRESS_AUDIENCE in audiences)
    return Claim(pod, expires) if ours and expires > time.time() else None


class _RecentTokens:
    """The digests of recent tokens, for a limited time; the least recently used are dropped first."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def has(self, digest: bytes) -> bool:
        until = self._known.get(digest)
        if until is None or until <= time.monotonic():
            return False
        self._known.move_to_end(digest)
        return True

    def add(self, digest: bytes, seconds: float) -> None:
        self._known[digest] = time.monotonic() + seconds
        self._known.move_to_end(digest)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


class TokenReviewer:
    """Reviews each token once a minute; all methods belong to the event loop's thread.

    Valid and invalid tokens are stored separately: no number of invalid ones displaces a valid one.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(MAX_REVIEWS, thread_name_prefix="review")
        self._slots = asyncio.Semaphore(MAX_REVIEWS)
        self._valid, self._invalid = _RecentTokens(), _RecentTokens()
        self._reviews: dict[bytes, asyncio.Task[bool]] = {}

    async def proves(self, token: str, claim: Claim) -> bool:
        """Return whether a token is valid and proves its claim.

        Raises ReviewsBusy if no answer came in time, ApiFailure if the API server could not review it.
        """
        digest = hashlib.sha256(token.encode()).digest()
        if self._valid.has(digest):
            return True
        if self._invalid.has(digest):
            return False
        review = self._reviews.get(digest)
        if review is None:
            review = self._reviews[digest] = asyncio.create_task(self._review(digest, token, claim))
            review.add_done_callback(lambda done: self._end(digest, done))
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return await asyncio.shield(review)
        except TimeoutError as error:
            raise ReviewsBusy("too many tokens wait for their review") from error

    def _end(self, digest: bytes, review: asyncio.Task[bool]) -> None:
        del self._reviews[digest]
        if not review.cancelled():
            review.exception()  # all that waited may have left, and asyncio would log it

    async def _review(self, digest: bytes, token: str, claim: Claim) -> bool:
        try:
            await asyncio.wait_for(self._slots.acquire(), REVIEW_SECONDS)
        except TimeoutError as error:
            raise ReviewsBusy("too many tokens wait for their review") from error
        try:
            identity = await asyncio.get_running_loop().run_in_executor(self._pool, self._call, token)
        finally:
            self._slots.release()
        proven = identity == claim.pod
        recent = self._valid if proven else self._invalid
        recent.add(digest, min(REMEMBERED_SECONDS, claim.expires - time.time()))
        return proven

    def _call(self, token: str) -> PodIdentity | None:
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
