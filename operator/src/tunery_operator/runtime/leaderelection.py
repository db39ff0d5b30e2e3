"""Provide leader election by client-go's rules: the replica that holds the Lease acts.

Replicas do not compare clocks. A replica notes by its own clock when it last saw the record change, and takes the Lease
once the record has not changed for its duration. A holder that cannot renew for `Timing.renew` seconds, which is
shorter, stops acting, so at most one replica acts. If two act for a moment (a process that was stopped and continued),
uid and resourceVersion in every write, and deterministic names of children, prevent damage.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tunery_operator.client.client import HttpError, Json, KubeClient
from tunery_operator.client.permissions import CREATE_LEASE, GET_LEASE, UPDATE_LEASE
from tunery_operator.errors import ApiFailure
from tunery_operator.metrics import LEADER
from tunery_operator.observed.metadata import parse_time

logger = logging.getLogger(__name__)

LONGEST_LEASES: Final = 4
"""A record is trusted for at most so many of this replica's durations."""
JITTER: Final = 1.2
"""client-go's JitterFactor: a waiting replica reads the Lease after RETRY to (1 + JITTER) × RETRY seconds."""
RELEASED_SECONDS: Final = 1
MOST_TRANSITIONS: Final = 2**31 - 1
"""The largest int32: with a larger number, written manually, the API server would reject every record."""


@dataclass(frozen=True, slots=True)
class Timing:
    """client-go's defaults, in seconds; lease > renew > retry × 1.2."""

    lease: float = 15.0
    """A record that has not changed for so long has expired."""
    renew: float = 10.0
    """A holder that could not renew for so long stops leading."""
    retry: float = 2.0
    """The pause between two tries."""


@dataclass(slots=True)
class _Seen:
    """The record as it was last seen to change, and when, by our own clock."""

    spec: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    at: float = 0.0


class LeaderElection:
    """One replica's part in the election of one Lease; all methods belong to the event loop's thread.

    `on_started` and `on_lost` are called each time the lead is won and lost; acting must have stopped when `on_lost`
    returns, and it gets no longer than the Lease still holds.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
    ) -> None:
        self.identity = f"{identity}_{secrets.token_hex(4)}"
        self.on_started: Callable[[], Awaitable[None]] = _nothing
        self.on_lost: Callable[[], Awaitable[None]] = _nothing
        self._client = client
        self._namespace, self._name = namespace, name
        self._timing = timing or Timing()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="leader")
        self._seen = _Seen()
        self.led_before: datetime | None = None
        """Until when another replica is known to have led before this one stood for election."""
        self._leads = False
        self._renewed = 0.0
        LEADER.set(0)

    @property
    def is_leader(self) -> bool:
        """Return whether this replica may act: it holds the Lease, and renewed it lately enough."""
        return self._leads and time.monotonic() - self._renewed < self._timing.renew

    async def run(self) -> None:
        """Take part until cancelled; the Lease is then released, so that another replica takes over at once."""
        try:
            while True:
                await self._wait_for_lead()
                await self._hold_lead()
        finally:
            if self._leads:
                await self._step_down("the operator stops")
                await self._release()
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_lead(self) -> None:
        while not await self._try():
            await asyncio.sleep(self._timing.retry * (1 + JITTER * random.random()))  # noqa: S311 - spreads load
        self._leads = True
        LEADER.set(1)
        logger.info("Became leader: identity=%s", self.identity)
        await self.on_started()

    async def _hold_lead(self) -> None:
        """Renew until that fails for too long, or the record names another holder."""
        while True:
            left = self._renewed + self._timing.renew - time.monotonic()
            if left <= 0:
                await self._step_down(f"the Lease could not be renewed for {self._timing.renew:.0f} s")
                return
            await asyncio.sleep(min(self._timing.retry, left))
            try:
                async with asyncio.timeout(max(0.0, self._renewed + self._timing.renew - time.monotonic())):
                    await self._try()
            except TimeoutError:
                continue
            holder = self._seen.spec.get("holderIdentity")
            if holder != self.identity:
                await self._step_down(f"{holder or 'no replica'} holds the Lease")
                return

    async def _step_down(self, why: str) -> None:
        self._leads = False
        LEADER.set(0)
        logger.info('Lost leadership: lease=%s reason="%s"', self._name, why)
        await self.on_lost()

    async def _try(self) -> bool:
        """Acquire or renew once; return whether that worked."""
        began = time.monotonic()
        try:
            held = await asyncio.get_running_loop().run_in_executor(self._pool, self._acquire_or_renew)
        except ApiFailure as error:
            logger.warning('Lease request failed: lease=%s/%s error="%s"', self._namespace, self._name, error)
            return False
        if held:
            # Counted from before the call: the record was written no earlier.
            self._renewed = began
        return held

    def _acquire_or_renew(self) -> bool:
        """In the thread of the calls. Raises ApiFailure."""
        lease = self._client.get(GET_LEASE, self._namespace, self._name)
        if lease is None:
            return self._write(self._record({}), create=True)
        if not self._seen.version:
            self.led_before = parse_time((lease.get("spec") or {}).get("renewTime"))
        self._note(lease)
        spec = self._seen.spec
        if spec.get("holderIdentity") not in (self.identity, "", None) and not self._is_over():
            return False
        return self._write({"metadata": lease["metadata"], "spec": self._record(spec)["spec"]}, create=False)

    def _is_over(self) -> bool:
        seconds = float(self._seen.spec.get("leaseDurationSeconds") or self._timing.lease)
        # A replica of another release may have a longer duration; one written manually must not block all replicas.
        seconds = min(seconds, LONGEST_LEASES * self._timing.lease)
        return time.monotonic() - self._seen.at >= seconds

    def _note(self, lease: Json) -> None:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen.version:
            self._seen = _Seen(lease.get("spec") or {}, version, time.monotonic())

    def _write(self, body: Json, *, create: bool) -> bool:
        """Write the record over the version that it was made from; False where another replica was faster."""
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **body}
        call, name = (CREATE_LEASE, None) if create else (UPDATE_LEASE, self._name)
        try:
            written = self._client.request(call, self._namespace, name, body)
        except HttpError as error:
            if error.status == 409:
                return False
            raise
        self._note(written)
        return True

    def _record(self, old: dict[str, Any]) -> Json:
        """Return the Lease with this replica as its holder."""
        now, ours = _micro_time(), old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self._timing.lease),
            "acquireTime": old.get("acquireTime") if ours else now,
            "renewTime": now,
            "leaseTransitions": min(MOST_TRANSITIONS, int(old.get("leaseTransitions") or 0) + (not ours and bool(old))),
        }
        return {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}

    async def _release(self) -> None:
        """Release the Lease, so that the next replica need not wait until it expires."""
        try:
            async with asyncio.timeout(self._timing.retry):
                await asyncio.get_running_loop().run_in_executor(self._pool, self._give_up)
            logger.info("Released the Lease: lease=%s", self._name)
        except (ApiFailure, TimeoutError) as error:
            logger.warning('The Lease was not released and will expire: lease=%s error="%s"', self._name, error)

    def _give_up(self) -> None:
        lease = self._client.get(GET_LEASE, self._namespace, self._name)
        if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self.identity:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": RELEASED_SECONDS}
        self._write({"metadata": lease["metadata"], "spec": {**spec, "renewTime": _micro_time()}}, create=False)


async def _nothing() -> None:
    """Do nothing: the default of `on_started` and `on_lost`."""


def _micro_time() -> str:
    """Return now as metav1.MicroTime is written."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
