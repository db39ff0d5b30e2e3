"""POST of a report: whose pod it is decides which object it is for, and what it may say; nothing in the body can."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from tunery_api.kinds import JOB_KINDS
from tunery_api.runspec import ProgressUpdate
from tunery_operator.errors import ApiFailure
from tunery_operator.kube.cache import Cache
from tunery_operator.kube.owners import Report
from tunery_operator.metrics import PROGRESS_POSTS
from tunery_operator.progress.auth import ReviewsBusy, TokenReviewer, read_claim
from tunery_operator.progress.pace import Pace
from tunery_operator.progress.plausible import sane
from tunery_operator.progress.replicas import MAX_REPORT, Replicas
from tunery_operator.runtime.priority_queue import Priority
from tunery_operator.runtime.workqueue import WorkQueue
from tunery_operator.views.owner import Key

logger = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024
"""Bytes of the report of a pod that trains."""
BODY_SECONDS: Final = 5.0


class Endpoint:
    """Takes reports and puts the object they are for on the queue; `acts` tells whether this replica is the leader."""

    def __init__(
        self, reviewer: TokenReviewer, cache: Cache, queue: WorkQueue, acts: Callable[[], bool] = lambda: True
    ) -> None:
        self._reviewer = reviewer
        self._cache = cache
        self._queue = queue
        self._acts = acts
        self._pace = Pace()
        self._replicas = Replicas(cache, queue)

    def app(self) -> web.Application:
        """Return the application; the path of the URL does not matter."""
        app = web.Application()
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _post(self, request: web.Request) -> web.Response:
        try:
            response = await self._answer(request)
        except web.HTTPException as error:
            PROGRESS_POSTS.labels(str(error.status)).inc()
            raise
        PROGRESS_POSTS.labels(str(response.status)).inc()
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        """Return the answer; the cheapest questions come first, and the body is read last."""
        if not self._acts():
            response = _refuse(503, "another replica acts; try again", retry_after=1)
            response.force_close()
            return response
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claim = read_claim(token.strip()) if scheme.lower() == "bearer" else None
        if claim is None:
            return _refuse(401, "a pod's token for this endpoint is needed")
        target = self._cache.owner_of_pod(*claim.pod)
        if target is None and self._cache.servers.is_unproven(*claim.pod):
            return _refuse(503, "it is not known yet whose pod this is", retry_after=1)
        if target is None:
            return _refuse(403, "this pod works for no object that has not ended, or another pod reports for it")
        try:
            if not await self._reviewer.proves(token.strip(), claim):
                return _refuse(401, "the token is not valid here")
        except (ApiFailure, ReviewsBusy) as error:
            logger.debug("a progress token could not be checked: %s", error)
            return _refuse(503, "the token could not be checked", math.ceil(error.retry_after or 2))
        if not self._pace.admits(claim.pod.uid):
            return _refuse(429, "one report a second is enough", retry_after=1)
        return await self._take(request, *target, claim.pod.uid)

    async def _take(self, request: web.Request, key: Key, uid: str, pod_uid: str) -> web.Response:
        trains = key.kind in JOB_KINDS
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.clone(client_max_size=MAX_BODY if trains else MAX_REPORT).read()
        except (TimeoutError, ConnectionError, web.RequestPayloadError):
            response = _refuse(408, "the report did not arrive whole, or not in time")
            response.force_close()
            return response
        try:
            if not trains:
                return self._replicas.take(key, uid, pod_uid, body)
            update = ProgressUpdate.model_validate_json(body)
        except ValidationError as error:
            return _refuse(400, f"not a report of such a pod: {error.error_count()} errors")
        now = datetime.now(UTC)
        self._accept(key, uid, Report(sane(update.trainer_status, now), pod_uid, now))
        return web.json_response({"message": "ok", "intervalSeconds": self._pace.interval()})

    def _accept(self, key: Key, uid: str, report: Report) -> None:
        before = self._cache.progress(key, uid)
        self._cache.set_progress(key, uid, report if before is None else _with_known(before, report))
        self._queue.add([key], Priority.LOW)


def _with_known(before: Report, report: Report) -> Report:
    """Return the report, with the checkpoint that an earlier one named if it names none."""
    if report.status.checkpoint is None and before.status.checkpoint is not None:
        return report._replace(status=report.status.model_copy(update={"checkpoint": before.status.checkpoint}))
    return report


def _refuse(status: int, text: str, retry_after: int | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"message": text}, status=status, headers=headers)
