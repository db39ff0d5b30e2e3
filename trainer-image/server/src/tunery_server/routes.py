"""Which model leads to what in the engine: the one table that the loader writes and the gateway reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from tunery_api.adapterserver import Alias
from tunery_api.serving import VERSION_DIGITS
from tunery_server.aliases import pick

RETRY_SECONDS: Final = 5
"""After which a client may ask again for what is not served now."""


NO_MODEL: Final = "NoTargetServed"
"""The reason of an alias none of whose targets can answer."""


class UnknownModel(Exception):
    """There is no such model here, nor is one wanted."""


class NotServed(Exception):
    """The model is wanted, and cannot answer now."""

    def __init__(self, name: str, reason: str, message: str, retry_after: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.name = name
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Asleep(Exception):
    """The model is verified, and loaded once somebody waits for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Target:
    """What answers a request."""

    name: str
    """The public name."""
    engine_name: str
    """What the engine knows it by: name@version, for the base its served name."""
    version: str | None
    """The first digits of the manifest's digest; None for the base."""
    sha256: str | None = None
    """All of that digest."""


@dataclass(frozen=True)
class _Held:
    reason: str
    message: str
    engine_name: str | None
    """Under which it was served before."""


class Use(NamedTuple):
    """When a name was last asked for; the later one is the greater."""

    when: float
    """In seconds since 1970."""
    number: int
    """Of the request, since this process started: clocks are set back."""


NEVER: Final = Use(0.0, 0)


class Routes:
    """The models of a replica. All of it runs on one event loop; nothing in it waits but `find` and `drained`."""

    def __init__(self, base: str) -> None:
        self._base = Target(base, base, None)
        self._served: dict[str, Target] = {}
        self._cold: dict[str, Target] = {}
        self._held: dict[str, _Held] = {}
        self._aliases: dict[str, Alias] = {}
        self._allowed: dict[str, frozenset[str]] | None = {}
        self._listed: Collection[str] = ()
        self._used: dict[str, Use] = {}
        self._uses = 0
        self._in_flight: dict[str, int] = {}
        self._idle: dict[str, asyncio.Event] = {}
        self.wake: Callable[[str], Awaitable[None]] | None = None
        """Returns once a cold name is served; raises NotServed."""
        self.refused: Callable[[str], None] = lambda name: None
        """Called with the name of an adapter that somebody asks for, and that is not served now."""
        self.idle: Callable[[], None] = lambda: None
        """Called whenever a version has answered all its requests."""

    @property
    def base(self) -> str:
        """The served name of the base model."""
        return self._base.name

    async def find(self, model: str, user: str | None = None) -> Target:
        """Return what answers for `model`, once it is loaded; raises UnknownModel or NotServed.

        An alias leads to one of its targets; where that cannot be loaded, to another. The target may be used at once:
        nothing is waited for after it was resolved.
        """
        alias = self._aliases.get(model)
        if alias is None:
            return await self._awake(model)
        failed: dict[str, NotServed] = {}
        while (name := pick(alias, user, self.usable, failed)) is not None:
            try:
                return await self._awake(name)
            except NotServed as error:
                failed[name] = error
            except UnknownModel:
                failed[name] = self.no_target(alias)
        for each in alias.targets:
            self.refused(each.adapter)
        raise next(iter(failed.values()), None) or self.no_target(alias)

    async def _awake(self, model: str) -> Target:
        for _ in range(2):
            try:
                return self.resolve(model)
            except NotServed as error:
                self.refused(error.name)
                raise
            except Asleep as asleep:
                if self.wake is None:
                    break
                await self.wake(asleep.name)
        name = model.partition("@")[0]
        raise NotServed(name, "AdapterLoading", "others have taken its place in the engine again")

    def no_target(self, alias: Alias) -> NotServed:
        """Return why an alias cannot answer: what is wrong with each of its targets."""
        why = [f"{each.adapter}: {self._why_not(each.adapter)}" for each in alias.targets if each.weight]
        held = self._held.get(alias.targets[0].adapter) if len(alias.targets) == 1 else None
        reason = held.reason if held else NO_MODEL
        return NotServed(alias.name, reason, f"it leads to nothing that can answer now ({'; '.join(why)})")

    def _why_not(self, name: str) -> str:
        held = self._held.get(name)
        if held is None:
            return "it is being loaded" if self.usable(name) else "it is no adapter of this server"
        return f"{held.reason}: {held.message}"

    def resolve(self, model: str) -> Target:
        """Return what answers for `model`, a name or name@version; raises UnknownModel, NotServed or Asleep.

        A version is found only while it is the one that its name leads to. Between `resolve` and `using` nothing may
        be waited for: the target might be drained meanwhile.
        """
        target = self.look(model)
        if target.name in self._cold:
            raise Asleep(target.name)
        return target

    def look(self, model: str) -> Target:
        """Return what `model` leads to, be it loaded or cold; raises UnknownModel or NotServed."""
        if model == self._base.name:
            return self._base
        name = model.partition("@")[0]
        known = self._served.get(name) or self._cold.get(name)
        if known is not None and model in (name, known.engine_name):
            return known
        held = self._held.get(name)
        if held is not None and model in (name, held.engine_name):
            raise NotServed(name, held.reason, held.message)
        raise UnknownModel

    def usable(self, name: str) -> bool:
        """Say whether requests for `name`, the base or an adapter, are answered, be it after a moment."""
        return name == self._base.name or name in self._served or name in self._cold

    def names_for(self, client: str) -> list[str]:
        """Return those of `names` that a client may ask for."""
        return [name for name in self.names() if self.allows(client, name)]

    def names(self) -> list[str]:
        """Return the public names of what can be asked for: the base, then the adapters, then the aliases."""
        aliases = (name for name, alias in self._aliases.items() if pick(alias, None, self.usable) is not None)
        return [self._base.name, *self.adapters(), *aliases]

    def adapters(self) -> list[str]:
        """Return the names of the adapters that can be asked for, loaded or cold."""
        return sorted([*self._served, *self._cold])

    def alias(self, name: str) -> Alias | None:
        """Return the alias of this name, if it is one."""
        return self._aliases.get(name)

    def knows(self, name: str) -> bool:
        """Say whether `name` is the base, or is served or wanted."""
        return self.usable(name) or name in self._held or name in self._aliases

    def lead(self, aliases: Iterable[Alias]) -> None:
        """From now on these are the aliases, and no others."""
        self._aliases = {alias.name: alias for alias in aliases}

    def allow(self, clients: Mapping[str, Iterable[str]] | None, *, of_before: bool = False) -> None:
        """From now on these clients may ask for these models only, and all others for all; None: nobody for any.

        `of_before`: that is what an earlier spec said, and no more to be mended.
        """
        self._allowed = None if clients is None else {name: frozenset(models) for name, models in clients.items()}
        self._listed = () if of_before or clients is None else clients.keys()

    @property
    def closed(self) -> bool:
        """Tell whether nobody knows who may ask for what."""
        return self._allowed is None

    def limited(self) -> Collection[str]:
        """Return the clients that the present spec lets ask for some models only."""
        return self._listed

    def allows(self, client: str, model: str) -> bool:
        """Say whether `client` may ask for `model`, a name or name@version."""
        if self._allowed is None:
            return False
        allowed = self._allowed.get(client)
        # The base's own name may have an @ in it, and then is no version of another.
        return allowed is None or (model if model == self._base.name else model.partition("@")[0]) in allowed

    def serve(self, name: str, engine_name: str, sha256: str) -> None:
        """From now on `name` leads to this version, and to no other."""
        self._forget(name)
        self._served[name] = Target(name, engine_name, sha256[:VERSION_DIGITS], sha256)

    def chill(self, name: str, engine_name: str, sha256: str) -> None:
        """From now on this version of `name` is loaded for whoever asks."""
        self._forget(name)
        self._cold[name] = Target(name, engine_name, sha256[:VERSION_DIGITS], sha256)

    def hold(self, name: str, reason: str, message: str) -> None:
        """From now on whoever asks for `name` is told why it cannot answer."""
        before = self._served.get(name) or self._cold.get(name) or self._held.get(name)
        self._forget(name)
        self._held[name] = _Held(reason, message, before.engine_name if before else None)

    def drop(self, name: str) -> None:
        """From now on `name` is unknown; what is being answered goes on."""
        self._forget(name)
        self._used.pop(name, None)

    def _forget(self, name: str) -> None:
        self._served.pop(name, None)
        self._cold.pop(name, None)
        self._held.pop(name, None)

    @contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Count a request to `target` for as long as it lasts."""
        key = target.engine_name
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        self._note_use(target.name)
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
                if (idle := self._idle.pop(key, None)) is not None:
                    idle.set()
                self.idle()

    def _note_use(self, name: str) -> None:
        if self.usable(name):
            self._uses += 1
            self._used[name] = Use(time.time(), self._uses)

    def remember(self, name: str, when: float) -> None:
        """Take over from an earlier process when `name` was asked for last."""
        self._used.setdefault(name, Use(when, 0))

    def used(self, name: str) -> Use:
        """Return when `name` was last asked for, as far as that is known."""
        return self._used.get(name, NEVER)

    def busy(self, engine_name: str) -> bool:
        """Say whether requests are being answered by `engine_name`."""
        return engine_name in self._in_flight

    def in_flight(self) -> int:
        """Return how many requests are being answered."""
        return sum(self._in_flight.values())

    async def drained(self, engine_name: str, timeout: float) -> bool:
        """Wait until no request uses `engine_name`, at most `timeout` seconds; return whether none does."""
        if engine_name in self._in_flight:
            idle = self._idle.setdefault(engine_name, asyncio.Event())
            try:
                await asyncio.wait_for(idle.wait(), timeout)
            except TimeoutError:
                return False
        return engine_name not in self._in_flight
