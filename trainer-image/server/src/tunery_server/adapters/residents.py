"""What the engine holds: followed by /v1/models, changed by one load or unload at a time."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.serving import OLDEST_ENGINE
from tunery_common.errors import TuneryError
from tunery_server.adapters.cache import Content
from tunery_server.adapters.poison import Breaker
from tunery_server.adapters.probe import NoNumbers, Probe
from tunery_server.engine import Engine, EngineGone, EngineRefusal

SYNC_SECONDS: Final = 10.0
"""Between two looks at what the engine says that it holds."""
_MISSED: Final = 3
"""Health checks in a row that an engine may let pass, busy as it is, before it counts as gone."""
_ANSWERED: Final = 200
_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")

_log = logging.getLogger(__name__)


class Residents:
    """The engine as the loader sees it; all of it runs on one event loop."""

    def __init__(
        self, engine: Engine, served_name: str, breaker: Breaker, probe: Probe, clock: Callable[[], float]
    ) -> None:
        self.engine = engine
        self._served_name = served_name
        self._breaker = breaker
        self._probe = probe
        self._clock = clock
        self.lock = asyncio.Lock()
        """Held by whoever has the engine load or unload."""
        self.up = False
        self.seen = False
        """It was up once."""
        self.version = ""
        self.restarts = 0
        self.registered: frozenset[str] = frozenset()
        """The names that it held when it was asked last."""
        self.answered: set[str] = set()
        """Those that have answered a probe since it started."""
        self._contents: dict[str, str] = {}
        """Of those the digest: a name has only its first digits, and somebody may make two contents that share them."""
        self.trying: str | None = None
        self.birth: str | None = None
        """The mark of the start that it was seen up in last."""
        self.problem: str | None = None
        """Why it is not used although it is up."""
        self._spoke = False
        """The base answered without log-probabilities, so that no adapter can be probed."""
        self._missed = 0
        self._sync_at = 0.0

    @property
    def supported(self) -> bool:
        """Whether it is a version that was tried, or says none."""
        return is_supported(self.version)

    @property
    def answers(self) -> bool:
        """Whether the base model has answered a request since it started: an engine may be healthy and die of one."""
        return self.up and (self._probe.prepared or self._spoke) and not self.engine.spoiled

    async def ask_base(self) -> None:
        """Have the base model answer a request."""
        async with self.lock:
            if self.engine.spoiled:
                return
            try:
                await self._probe.prepare()
            except EngineRefusal as error:
                self._spoke = error.status == _ANSWERED
                if not self._spoke:
                    self.problem = f"the engine refuses a request for the base model: {error.words}"
            except EngineGone as error:
                self.problem = f"the engine did not answer a request for the base model: {error}"
                self.up = self.up and error.hangs
            else:
                self.problem = None

    async def check(self) -> None:
        """Find out whether it is up, and what it holds if it was not or if that was long ago."""
        birth = self.engine.birth()
        try:
            healthy = birth is not None and await self.engine.asked_for_health()
            self._missed = 0
        except EngineGone as error:
            self._missed += 1
            healthy = error.hangs and self.up and birth == self.birth and self._missed < _MISSED
            if healthy:
                return
        if not healthy:
            self.up = False
        elif not self.up or birth != self.birth:
            await self._came(birth)
        elif self._clock() >= self._sync_at:
            await self._refresh()

    async def _came(self, birth: str | None) -> None:
        """It is up, and was not: take what it says of itself."""
        try:
            version, models = await self.engine.version(), await self.engine.models()
        except (EngineGone, EngineRefusal) as error:
            _log.warning("the engine is not used yet: %s", error)
            self.up = False
            return
        if birth != self.birth:
            self.restarts += self.seen
            self._probe.forget()
            self.answered = set()
            self.problem, self._spoke = None, False
        self._breaker.engine_started(birth)
        self.version, self.birth, self.up, self.seen = version, birth, True, True
        self._took(models)

    async def _refresh(self) -> None:
        try:
            self._took(await self.engine.models())
        except EngineRefusal as error:
            _log.warning("the engine does not say what it holds: %s", error.words)
        except EngineGone:
            self.up = False

    def _took(self, models: set[str]) -> None:
        self.registered = frozenset(models - {self._served_name})
        self.answered &= self.registered
        self._sync_at = self._clock() + SYNC_SECONDS

    async def ensure(self, engine_name: str, content: Content) -> None:
        """Have a version loaded and probed; call it with the lock.

        Raises TuneryError (EngineRefused, ProbeFailed, EngineFailed, DiskFull), and EngineGone.
        """
        if not self.up:
            raise EngineGone("the engine is not up")
        if self.engine.spoiled:
            raise EngineGone("the engine must start anew")
        self._check_content(engine_name, content.sha256)
        if engine_name in self.registered and engine_name in self.answered:
            return
        self._breaker.check(content.sha256)
        self.trying = engine_name
        try:
            await self._prepare()
            self._breaker.begin(content.sha256, self.birth)
            await self._load(engine_name, content)
            await self._ask(engine_name, content.sha256)
        except EngineGone as error:
            self.up = self.up and error.hangs  # whoever is next must not be taken for what it went away at
            raise
        finally:
            self.trying = None

    async def _prepare(self) -> None:
        try:
            await self._probe.prepare()
        except EngineRefusal as error:
            message = f"the engine refuses the request that versions are probed with: {error.words}"
            raise TuneryError(FailureReason.ENGINE_REFUSED, message) from error

    async def _load(self, engine_name: str, content: Content) -> None:
        refused: EngineRefusal | None = None
        if engine_name not in self.registered:
            try:
                await self.engine.load(engine_name, str(content.folder))
            except EngineRefusal as error:
                refused = error
            except EngineGone as error:
                if not error.hangs:
                    raise
                raise TuneryError(FailureReason.ENGINE_REFUSED, f"{error}; it is tried again later") from error
        models = await self.engine.models()
        self._took(models)
        if engine_name in models:
            return  # whatever it answered
        self._breaker.end(content.sha256)
        words = refused.words if refused else "it said yes, and does not list it"
        raise TuneryError(FailureReason.ENGINE_REFUSED, f"the engine refuses it: {words}")

    async def _ask(self, engine_name: str, sha256: str) -> None:
        try:
            await self._probe.check(engine_name)
        except TuneryError as error:
            await self.unload(engine_name)
            if isinstance(error, NoNumbers) and not await self._probe.base_is_sound():
                self._spoiled(engine_name, sha256)
            self._breaker.end(sha256)
            raise
        self._breaker.end(sha256, answered=True)
        self.remember(engine_name, sha256)

    def remember(self, engine_name: str, sha256: str) -> None:
        """Take note that a version which the engine holds has answered."""
        self.answered.add(engine_name)
        self._contents[engine_name] = sha256

    def _check_content(self, engine_name: str, sha256: str) -> None:
        """Raise ADAPTER_UNSUPPORTED where the engine holds other content under this name."""
        if engine_name in self.registered and self._contents.get(engine_name, sha256) != sha256:
            message = f"its digest begins as that of {engine_name}, which is served, and is another"
            publish = retry("Publish it again, which gives its manifest another digest")
            raise TuneryError(FailureReason.ADAPTER_UNSUPPORTED, message, publish)

    def _spoiled(self, engine_name: str, sha256: str) -> None:
        """The engine answers others with what a version has left in it: it must start anew, without that version."""
        self._breaker.leave_out(sha256)
        self.engine.spoil()
        self.problem = f"the engine answers the base model with NaN since {engine_name} was asked; it must start anew"
        _log.error(self.problem)

    async def unload(self, engine_name: str) -> bool:
        """Have a version forgotten; return whether it is, by the engine's list. Call it with the lock."""
        try:
            await self.engine.unload(engine_name)
        except EngineRefusal as error:
            _log.info("the engine refuses to unload %s: %s", engine_name, error.words)
        except EngineGone as error:
            _log.info("%s is not unloaded: %s", engine_name, error)
        await self._refresh()
        if engine_name in self.registered:
            return False
        _log.info("%s is unloaded", engine_name)
        return True


def is_supported(version: str) -> bool:
    """Tell whether an engine of this version is used; one that is built from sources, or says nothing, is."""
    found = _NUMBERS.match(version)
    if found is None or "dev" in version:
        return True
    oldest = tuple(map(int, OLDEST_ENGINE.split(".")))
    return tuple(int(part or 0) for part in found.groups()) >= oldest
