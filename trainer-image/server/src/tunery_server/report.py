"""Tells the operator how this replica stands, and takes from its answers what is to be served."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from tunery_api.names import PROGRESS_CA_ENV, PROGRESS_TOKEN_ENV, PROGRESS_URL_ENV
from tunery_api.serving import Desired, ReplicaReply, ReplicaReport, ReplicaState, ReportedAdapter
from tunery_common.progress_client import Causes, Pace, ProgressClient, Refused
from tunery_server.threads import in_thread

INTERVAL_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 15.0
"""Between two tries, however many failed: after 30 s without a report a replica counts as unknown."""
WAIT_SECONDS: Final = 5.0
"""For which a replica that could answer is held back, at most, until the operator knows of it."""
_MAX_ANSWER: Final = 4 << 20
_LONGEST_INTERVAL: Final = 300.0
MAX_REPORT: Final = 1_500_000
"""Bytes of a report."""
_SENTENCES: Final = (None, 160, 40, 0)
"""Characters that are said of each adapter's problem, where thousands have one; None: all."""

_log = logging.getLogger(__name__)


class Reported(Protocol):
    """What is reported of, and what takes the answers: the loader."""

    def state(self) -> ReplicaState:
        """Return how the replica stands."""
        ...

    def ready(self) -> bool:
        """Tell whether requests may come."""
        ...

    def offer(self, desired: Desired) -> None:
        """Take what is to be served, if it is newer."""
        ...


class Reporter:
    """Posts at the interval that the operator asks for, and soon after a change; a failure is tried again."""

    def __init__(
        self,
        post: Callable[[bytes], bytes],
        loader: Reported,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`post` blocks, and is called in a thread."""
        self._post = post
        self._loader = loader
        self._sleep = sleep
        self._clock = clock
        self._pace = Pace(interval=INTERVAL_SECONDS, longest=LONGEST_SECONDS)
        self._causes = Causes()
        """Why the operator takes no report."""
        self._away = False
        """The last report failed, and not at somebody who asks to try again soon, as the operator that stands by."""
        self._may_since: float | None = None
        """Since when requests may come."""
        self._told = False
        """Requests may come, and the operator has heard so, or is not waited for: that holds whatever it does then."""

    def told(self) -> bool:
        """Tell whether requests may come, and the operator knows it, or cannot be waited for.

        Before, it would take a replica that the kubelet calls ready by what it said while it came up: Loading.
        """
        since = self._look(self._loader.ready())
        if since is not None and (self._away or self._clock() - since >= WAIT_SECONDS):
            self._told = True
        return self._told

    def _look(self, ready: bool) -> float | None:
        """Take note of whether requests may come; return since when they may."""
        if not ready:
            self._may_since, self._told = None, False
        elif self._may_since is None:
            self._may_since = self._clock()
        return self._may_since

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            state, ready = self._loader.state(), self._loader.ready()
            self._look(ready)
            await self.report(state, ready=ready)
            await self._until_due(state, ready=ready)

    async def report(self, state: ReplicaState, *, ready: bool) -> None:
        """Post once; whatever comes of it, nothing is raised."""
        body = body_of(state)
        try:
            reply = ReplicaReply.model_validate_json(await in_thread(lambda: self._post(body)))
        except Refused as error:
            self._failed(error, str(error), error.retry_after)
        except (OSError, HTTPError) as error:
            self._failed(error, f"{type(error).__name__}: {error}", None)
        except ValidationError as error:
            self._failed(error, f"the answer cannot be read: {error.error_count()} errors", None)
        except Exception as error:  # noqa: BLE001 (the operator's faults never disturb serving)
            self._failed(error, f"{type(error).__name__}: {error}", None)
        else:
            if self._causes:
                _log.info("the operator takes reports again")
            self._causes.clear()
            self._away = False
            # What was told before requests might come does not take back that they may.
            self._told = self._told or (ready and self._may_since is not None)
            asked = reply.interval_seconds
            self._pace.succeeded(asked if self._pace.least <= asked <= _LONGEST_INTERVAL else None)
            if reply.desired is not None:
                self._loader.offer(reply.desired)

    def _failed(self, error: Exception, message: str, retry_after: float | None) -> None:
        if self._causes.is_news(error):
            _log.warning("the operator did not take the report: %s", message)
        self._away = retry_after is None or retry_after > WAIT_SECONDS
        self._pace.failed(retry_after)

    async def _until_due(self, state: ReplicaState, *, ready: bool) -> None:
        """Wait for the interval; what has changed meanwhile is told a second after the last report."""
        waited, least = 0.0, self._pace.least
        while waited < self._pace.delay(urgent=False):
            await self._sleep(least)
            waited += least
            self._look(now := self._loader.ready())
            if not self._causes and (self._loader.state(), now) != (state, ready):
                return


def body_of(state: ReplicaState) -> bytes:
    """Return the report as it is posted. One that would be too large says less of each problem, at last nothing."""
    for most in _SENTENCES:
        told = state if most is None else state.model_copy(update={"adapters": [_cut(a, most) for a in state.adapters]})
        body = ReplicaReport(replica_status=told).model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(body) <= MAX_REPORT:
            break
    return body


def _cut(adapter: ReportedAdapter, most: int) -> ReportedAdapter:
    if adapter.message is None and adapter.hint is None:
        return adapter
    message = adapter.message
    if message is not None and len(message) > most:
        message = f"{message[: most - 1]}…" if most else None
    return adapter.model_copy(update={"message": message, "hint": None})


def poster(environment: Mapping[str, str]) -> Callable[[bytes], bytes] | None:
    """Return what posts to the operator, None where the pod was told of none.

    Token and authority are read anew for each report: both are exchanged while a replica lives.
    """
    url = environment.get(PROGRESS_URL_ENV, "")
    if not url:
        return None
    client = ProgressClient(url, environment.get(PROGRESS_CA_ENV, ""), environment.get(PROGRESS_TOKEN_ENV, ""))
    return lambda body: client.exchange(body, _MAX_ANSWER)
