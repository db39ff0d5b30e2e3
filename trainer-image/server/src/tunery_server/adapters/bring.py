"""Have a version on the disk, from there, else from its store; or know of it without its weights."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from tunery_api.reasons import FailureReason
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage.uris import split_uri
from tunery_server.adapters.cache import AdapterCache, Content
from tunery_server.adapters.fits import ServedBase, check_fit
from tunery_server.adapters.slot import Mark, Slot
from tunery_server.adapters.source import Into, Known, Look, Opener, fetch, look, marks, verify
from tunery_server.adapters.turns import Heard, Turns, over, silent
from tunery_server.threads import in_thread

DOWNLOADS: Final = 4
QUESTIONS: Final = 8
ANEW_SECONDS: Final = 900.0
"""For so long damaged weights are not read again while nothing changes in their store."""
_POLL_SECONDS: Final = 0.1

Result = TypeVar("Result")


class StillHeld(Exception):
    """A folder that must be brought anew is one that the engine holds, or another brings; that has to end first."""


@dataclass(frozen=True, eq=False)
class _Turn:
    """The name that brings a version now, which others may lead to as well."""

    slot: Slot
    ended: asyncio.Future[TuneryError | None]
    """What it failed with, where that holds for the others as well."""


class Bringer:
    """Asks stores in threads; one that hangs holds nobody but those who wait for it."""

    def __init__(
        self, open_place: Opener, cache: AdapterCache, moved: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        """`moved` is called on the event loop whenever bytes have arrived."""
        self._open = open_place
        self._clock = clock
        self._cache = cache
        self._moved = moved
        self._downloads = Turns(DOWNLOADS)
        self._looks = Turns(QUESTIONS)
        self._turns: dict[tuple[str, str], _Turn] = {}
        """Who brings what, by its place and its digest."""

    async def look(self, item: DesiredAdapter, before: Look | None, seconds: float | None = None) -> Look:
        """Return what is published there now, within `seconds` if so many are given; raises what source.look raises."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(item, lambda: look(self._open(item), before))
        except TimeoutError as error:
            raise silent(seconds or 0) from error

    async def know(self, slot: Slot, sha256: str, base: ServedBase) -> Known:
        """Return what is known of a version without its weights; raises what source.verify raises."""
        known = await in_thread(lambda: self._on_disk(sha256, base))
        if known is None:
            await self._check_changed(slot)
            item = slot.item
            known = await self._ask(item, lambda: verify(self._open(item), sha256, base))
        self._moved()
        return known

    def _on_disk(self, sha256: str, base: ServedBase) -> Known | None:
        content = self._cache.glance(sha256)
        if content is None:
            return None
        try:
            return Known(sha256, check_fit(content.folder, content.manifest.lineage, base), content.size)
        except TuneryError:
            return None  # of what its store has, it may not be so

    @asynccontextmanager
    async def turn(self, slot: Slot, sha256: str) -> AsyncIterator[None]:
        """Have one name at a time bring a version from its place: two would have others leave for each of them.

        Raises what another has failed with meanwhile; but for a full disk, where each asks for room of its own.
        """
        key = (slot.item.uri, sha256)
        while (other := self._turns.get(key)) is not None:
            slot.heard = other.slot.heard
            await asyncio.wait({other.ended}, timeout=_POLL_SECONDS)
            if other.ended.done() and (error := other.ended.result()) is not None:
                slot.mark = other.slot.mark
                raise error
        mine = self._turns[key] = _Turn(slot, asyncio.get_running_loop().create_future())
        error = None
        try:
            yield
        except TuneryError as failed:
            error = failed if failed.reason is not FailureReason.DISK_FULL else None
            raise
        finally:
            del self._turns[key]
            mine.ended.set_result(error)

    async def bring(self, slot: Slot, sha256: str) -> Content:
        """Return the version, with every digest compared; raises what source.fetch raises, and StillHeld."""
        content = await in_thread(functools.partial(self._cache.find, sha256))
        if content is not None:
            return content
        if self._cache.folder(sha256).exists():
            raise StillHeld(sha256)
        await self._check_changed(slot)
        if not await over(lambda: self._cache.on_its_way(sha256)):
            raise StillHeld(sha256)  # twice the room for it would have others leave
        return await self._fetch(slot, sha256)

    async def _check_changed(self, slot: Slot) -> None:
        """Raise the same failure again where nothing has changed since the weights were found to be damaged.

        For a while only: what was damaged on its way changes nothing in its store.
        """
        item, problem, mark = slot.item, slot.problem, slot.mark
        if problem is None or problem.error.reason is not FailureReason.ADAPTER_CORRUPT or mark is None:
            return
        if self._clock() < mark.until and await self._ask(item, lambda: marks(self._open(item))) == mark.versions:
            raise problem.error

    async def _fetch(self, slot: Slot, sha256: str) -> Content:
        item, loop, heard, lay = slot.item, asyncio.get_running_loop(), Heard(), list[tuple[str, ...]]()
        slot.heard = heard

        def moved(count: int) -> None:
            heard.moved(count)
            loop.call_soon_threadsafe(self._moved)

        def brought() -> Content:
            known = self._cache.known(sha256)  # another name may have brought it meanwhile
            return known or fetch(self._open(item), sha256, Into(self._cache, heard, moved, lay.append))

        try:
            return await self._downloads.ask(brought, heard, _store(item))
        except TuneryError as error:
            if error.reason is FailureReason.ADAPTER_CORRUPT:
                weights = bool(lay) and heard.bytes  # a manifest is as soon read as a mark
                slot.mark = Mark(lay[-1], self._clock() + ANEW_SECONDS) if weights else None
            raise

    async def _ask(self, item: DesiredAdapter, question: Callable[[], Result]) -> Result:
        """Return what a short question to an adapter's store is answered with."""
        return await self._looks.ask(question, Heard(), _store(item))


def _store(item: DesiredAdapter) -> str:
    """Return what hangs together if it does: a bucket, a claim, or all folders; a server knows one endpoint only."""
    scheme, authority, _ = split_uri(item.uri)
    return f"{scheme}://{authority}"
