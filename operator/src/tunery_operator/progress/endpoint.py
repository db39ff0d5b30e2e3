"""POST of a progress report: whose pod it is decides which object it is for; nothing in the body can."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from tunery_api.runspec import ProgressUpdate, TrainerStatus
from tunery_operator.errors import ApiFailure
from tunery_operator.kube.cache import Cache
from tunery_operator.kube.tokens import PodIdentity, TokenReviewer
from tunery_operator.plan.model import Key
from tunery_operator.queue import WorkQueue

logger = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024
MIN_SECONDS: Final = 1.0
"""A pod's reports that come faster than this are answered with 429."""


class Endpoint:
    """Takes reports and puts the object they are for on the queue."""

    def __init__(self, reviewer: TokenReviewer, cache: Cache, queue: WorkQueue) -> None:
        self._reviewer = reviewer
        self._cache = cache
        self._queue = queue
        self._clock: Callable[[], float] = time.monotonic
        self._last: dict[str, float] = {}

    def app(self) -> web.Application:
        """Return the application; the path of the URL does not matter."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _post(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _answer(401, "a bearer token is needed")
        try:
            pod = await asyncio.to_thread(self._reviewer.review, token.strip())
        except ApiFailure as error:
            logger.warning("a progress token could not be checked: %s", error)
            return _answer(503, "the token could not be checked")
        if pod is None:
            return _answer(401, "the token is not valid here")
        return await self._take(request, pod)

    async def _take(self, request: web.Request, pod: PodIdentity) -> web.Response:
        target = self._cache.owner_of_pod(pod.namespace, pod.name, pod.uid)
        if target is None:
            return _answer(403, "this pod trains nothing that has not ended")
        if self._too_fast(pod.uid):
            return _answer(429, "one report a second is enough")
        try:
            body = await request.read()
            update = ProgressUpdate.model_validate_json(body)
        except ValidationError as error:
            return _answer(400, f"not a progress report: {error.error_count()} errors")
        self._accept(*target, update.trainer_status)
        return _answer(200, "ok")

    def _too_fast(self, pod_uid: str) -> bool:
        now = self._clock()
        last = self._last.get(pod_uid)
        if last is not None and now - last < MIN_SECONDS:
            return True
        if len(self._last) > 10_000:
            self._last.clear()
        self._last[pod_uid] = now
        return False

    def _accept(self, key: Key, uid: str, report: TrainerStatus) -> None:
        before = self._cache.progress.get(key)
        if before is not None and before[0] == uid:
            report = _with_known(before[1], report)
        self._cache.progress[key] = (uid, report)
        self._queue.add([key])


def _with_known(before: TrainerStatus, report: TrainerStatus) -> TrainerStatus:
    """Return the report, with the checkpoint that an earlier one named if it names none."""
    if report.checkpoint is None and before.checkpoint is not None:
        return report.model_copy(update={"checkpoint": before.checkpoint})
    return report


def _answer(status: int, text: str) -> web.Response:
    return web.json_response({"message": text}, status=status)
