"""Whose pod a progress token belongs to: reading what it claims is free, and only then the API server is asked."""

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
from tunery_operator.client.rbac import REVIEW_TOKEN
from tunery_operator.errors import OperatorError

REMEMBERED_SECONDS: Final = 60.0
MAX_REMEMBERED: Final = 10_000
MAX_REVIEWS: Final = 4
"""TokenReviews in flight."""
REVIEW_SECONDS: Final = 3.0
"""A report waits no longer than this for its review; its pod is asked to come again."""
MAX_TOKEN: Final = 8192
_EXTRA: Final = "authentication.kubernetes.io/"


class PodIdentity(NamedTuple):
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class Claim(NamedTuple):
    """What a token says of itself; nobody has verified it."""

    pod: PodIdentity
    expires: float
    """Seconds since 1970."""


class ReviewsBusy(OperatorError):
    """So many tokens wait for their review that this one must come again."""

    retry_after = 2.0


def read_claim(token: str) -> Claim | None:
    """Return what a token claims; None where it cannot be one of ours: no pod, another audience, over, or no JWT.

    Nothing here proves anything. It sorts out, without any call, what no review could turn into a report.
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


class _Memory:
    """Answers by digest of their token, for a while; those that were not asked for longest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def holds(self, digest: bytes) -> bool:
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
    """Asks the API server, once a minute for each token; all methods belong to the event loop's thread.

    Refused tokens are remembered apart from the good ones: no number of them makes a good one forgotten.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(MAX_REVIEWS, thread_name_prefix="review")
        self._slots = asyncio.Semaphore(MAX_REVIEWS)
        self._good, self._bad = _Memory(), _Memory()
        self._flights: dict[bytes, asyncio.Task[bool]] = {}

    async def proves(self, token: str, claim: Claim) -> bool:
        """Tell whether a token is valid and proves its claim.

        Raises ReviewsBusy where no answer came in time, ApiFailure where the API server could not be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        if self._good.holds(digest):
            return True
        if self._bad.holds(digest):
            return False
        flight = self._flights.get(digest)
        if flight is None:
            flight = self._flights[digest] = asyncio.create_task(self._review(digest, token, claim))
            flight.add_done_callback(lambda done: self._land(digest, done))
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return await asyncio.shield(flight)
        except TimeoutError as error:
            raise ReviewsBusy("too many tokens wait for their review") from error

    def _land(self, digest: bytes, flight: asyncio.Task[bool]) -> None:
        del self._flights[digest]
        if not flight.cancelled():
            # Looked at here, since those who waited for it may all have left.
            flight.exception()

    async def _review(self, digest: bytes, token: str, claim: Claim) -> bool:
        try:
            await asyncio.wait_for(self._slots.acquire(), REVIEW_SECONDS)
        except TimeoutError as error:
            raise ReviewsBusy("too many tokens wait for their review") from error
        try:
            identity = await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, token)
        finally:
            self._slots.release()
        proven = identity == claim.pod
        memory = self._good if proven else self._bad
        memory.add(digest, min(REMEMBERED_SECONDS, claim.expires - time.time()))
        return proven

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
