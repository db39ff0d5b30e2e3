"""One wanted name: what it leads to, what it is to lead to, and what stands between."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import Final

from tunery_api.failures import sentences
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.serverstatus import AdapterState
from tunery_api.serving import VERSION_DIGITS, DesiredAdapter, ReportedAdapter, engine_name
from tunery_common.errors import TuneryError
from tunery_server.adapters.cache import DiskTooSmall, LargerThanDisk
from tunery_server.adapters.fits import Fit
from tunery_server.adapters.probe import NoAnswer
from tunery_server.adapters.source import Known, Look
from tunery_server.adapters.turns import Heard

_R = FailureReason
TRANSIENT: Final = frozenset({_R.STORAGE_UNAVAILABLE, _R.DISK_FULL, _R.INTERNAL_ERROR})
"""May heal by itself any moment: tried again soon, and later each time."""
_MENDABLE: Final = frozenset(
    {_R.STORAGE_ACCESS_DENIED, _R.STORAGE_NOT_FOUND, _R.SECRET_NOT_FOUND, _R.ADAPTER_MISSING, _R.INVALID_SPEC}
)
"""Somebody must act, and nothing tells the replica when they have."""
OF_ITS_PLACE: Final = _MENDABLE | {_R.ADAPTER_CORRUPT}
"""What lies where it is published cannot be had, or is not what it should be."""
LONGEST_BACKOFF: Final = 60.0
LOOK_SECONDS: Final = 300.0
"""Between two looks at what may change without a word: what is published at a URI, and what the engine refused."""
_MESSAGE: Final = 1024


@dataclass(frozen=True)
class Served:
    """The version that a name leads to."""

    sha256: str
    engine_name: str
    fit: Fit
    size: int


@dataclass(frozen=True)
class Problem:
    """Why a version is not served."""

    error: TuneryError
    sha256: str | None
    """The version; None: it is not even known which one is to be served."""
    retry_at: float
    noted: float
    """When it was found."""
    settled: bool
    """Waiting alone will not mend it soon: a replica is ready without it."""


@dataclass(frozen=True)
class Mark:
    """What lay in a store before weights were read that were found to be damaged."""

    versions: tuple[str, ...]
    until: float
    """When they are read again though nothing has changed: a proxy may have damaged them."""


@dataclass
class Slot:
    """A name of the desired list; everything in it is changed on the event loop only."""

    item: DesiredAdapter
    served: Served | None = None
    cold: Known | None = None
    """The version that is loaded once somebody asks for it, while none is served."""
    hot: bool = False
    """It has one of the places in the engine, be it loaded already or not."""
    waiters: int = 0
    """Requests that wait for it to be loaded."""
    woken: asyncio.Future[tuple[str, str] | None] | None = None
    """What they wait for: why it is not served, None where it is."""
    used: int | None = None
    """When it was last asked for, as it is reported."""
    kept: str | None = None
    """The version that it led to before the engine went away, or before the gateway was started anew."""
    wanted: str | None = None
    """The version that it is to lead to, as far as that is known."""
    look: Look | None = None
    verified_at: Look | None = None
    """The look after which the cold version was verified last."""
    look_at: float = -math.inf
    problem: Problem | None = None
    tries: int = 0
    """Transient failures in a row."""
    mark: Mark | None = None
    about: str | None = None
    """The version that its task is at; None while it finds out which one that is."""
    not_before: float = -math.inf
    """When it is worth to look at it again."""
    over: str | None = None
    """Why there is no room for it among the names that may be loaded."""
    task: asyncio.Task[None] | None = None
    bringing: bool = False
    """Its task is at the store, and may be given up."""
    heard: Heard | None = None
    """What is heard of the store that its files are brought from, or were last."""
    brought: str | None = None
    """The version that was brought before it had a place, by what lay in its store then."""
    unseen: bool = False
    """What it led to is taken from the disk, and its place was not looked at since, or could not be."""
    ready_to_load: bool = False
    """Brought, and waiting for the engine."""
    began: float = -math.inf
    """When its task began."""
    said: str | None = field(default=None, repr=False)
    """What the log said last of why it is not served."""
    warned: list[float] = field(default_factory=list, repr=False)
    """When the log said such a thing lately."""
    aloud: bool = field(default=False, repr=False)
    """Whether it has said what it said last, and not left it out as it had said enough."""
    left_out: int = field(default=0, repr=False)
    """Lines that were left out since."""
    told: tuple[str, ...] | None = field(default=None, repr=False)
    """What the routes were told."""
    _report: tuple[object, ReportedAdapter] | None = field(default=None, repr=False)
    """The last report, and what it was made of."""

    @property
    def settled(self) -> bool:
        """Whether waiting will not change much soon."""
        if self.served is not None or self.over is not None or (self.cold is not None and not self.hot):
            return True
        return self.problem is not None and self.problem.settled

    @property
    def digests(self) -> set[str]:
        """The versions whose folders are needed."""
        served = self.served.sha256 if self.served else None
        return {sha for sha in (served, self.kept, self.wanted) if sha is not None}

    @property
    def bytes(self) -> int:
        """What it takes on the disk, as far as that is known."""
        known = self.served or self.cold
        return known.size if known is not None else 0

    def engine_name(self, sha256: str) -> str:
        """Return what the engine knows a version by."""
        return engine_name(self.item.name, sha256)

    def take(self, item: DesiredAdapter) -> bool:
        """Take a newer entry of the list; return whether it asks for another content."""
        other = (item.uri, item.manifest_sha256) != (self.item.uri, self.item.manifest_sha256)
        self.item = item
        if other:
            self.wanted, self.look, self.look_at, self.mark = item.manifest_sha256, None, -math.inf, None
            self.problem, self.tries, self.ready_to_load, self.unseen = None, 0, False, False
        return other

    def became_cold(self, known: Known) -> None:
        """It has no place in the engine any more, or not yet, and this is what it leads to."""
        self.cold, self.served, self.kept, self.hot, self.ready_to_load = known, None, None, False, False
        self.unseen = False

    def begin(self) -> None:
        """It has got a place: what it led to is served again first."""
        if self.cold is not None:
            self.kept = self.kept or self.cold.sha256
            self.unseen = self.item.manifest_sha256 is None and self.brought != self.kept
        self.not_before, self.brought = -math.inf, None

    def seek(self) -> None:
        """Its files are to be brought, after which it gets a place."""
        self.not_before, self.heard, self.brought = -math.inf, None, None
        self.unseen = self.item.manifest_sha256 is None

    def wake(self, answer: tuple[str, str] | None) -> None:
        """Tell those who wait that it is served, or why it is not."""
        woken, self.woken = self.woken, None
        if woken is not None and not woken.done():
            woken.set_result(answer)

    def succeeded(self) -> None:
        """What was wanted is served."""
        self.problem, self.tries, self.mark, self.ready_to_load = None, 0, None, False

    def reached(self) -> None:
        """What is wanted was brought, so that its storage is there."""
        if self.problem is not None and self.problem.error.reason is _R.STORAGE_UNAVAILABLE:
            self.problem, self.tries = None, 0

    def failed(self, error: TuneryError, sha256: str | None, now: float) -> None:
        """Note why, and when it is worth another try."""
        if error.reason in TRANSIENT and not isinstance(error, DiskTooSmall):
            wait, settled = min(2.0**self.tries, LONGEST_BACKOFF), False
            self.tries = min(self.tries + 1, 10)
        else:
            self.tries, settled = 0, True
            if isinstance(error, LargerThanDisk):
                wait = math.inf
            elif error.reason in _MENDABLE or isinstance(error, DiskTooSmall):
                wait = LONGEST_BACKOFF
            elif error.reason in (_R.ENGINE_REFUSED, _R.ADAPTER_CORRUPT) or isinstance(error, NoAnswer):
                wait = LOOK_SECONDS
            else:
                wait = math.inf
        self.problem = Problem(error, sha256, now + wait, now, settled)

    def look_again(self, now: float) -> None:
        """Have what failed be tried now, and what is published be looked at before; until then it is still failed."""
        self.look_at = -math.inf
        self.retry(now)

    def retry(self, now: float) -> None:
        """Have what failed be tried now."""
        if self.problem is not None:
            self.problem = replace(self.problem, retry_at=now)

    @property
    def lost(self) -> bool:
        """Whether what is wanted cannot be had where it is published."""
        problem = self.problem
        return problem is not None and problem.settled and problem.error.reason in OF_ITS_PLACE

    def due(self, now: float) -> bool:
        """Tell whether something is to be done for it now, apart from what waits for the engine."""
        if self.over is not None or now < self.not_before:
            return False
        problem = self.problem
        if self.item.manifest_sha256 is None and now >= self.look_at:
            return problem is None or problem.sha256 is not None or now >= problem.retry_at
        if not self.hot and self.verified:  # what stood in the way of loading it waits for the next who asks
            return problem is not None and not problem.settled and now >= problem.retry_at
        if problem is not None:
            return now >= problem.retry_at
        return not self.hot or self.served is None or self.served.sha256 != self.wanted

    @property
    def verified(self) -> bool:
        """Whether what is wanted would be loaded at once for whoever asks."""
        return self.cold is not None and self.cold.sha256 == self.wanted

    def rests(self, sha256: str, now: float) -> bool:
        """Tell whether this version failed, and is not to be tried again yet."""
        problem = self.problem
        return problem is not None and problem.sha256 == sha256 and now < problem.retry_at

    def engine_started(self) -> None:
        """What the engine refused may be taken by another start of it."""
        if self.problem is not None and (
            self.problem.error.reason is _R.ENGINE_REFUSED or isinstance(self.problem.error, NoAnswer)
        ):
            self.problem = None

    def report(self) -> ReportedAdapter:
        """Return how it stands, as the operator is told; the same object for as long as that is the same."""
        made_of = (
            self.item,
            self.served,
            self.cold,
            self.hot,
            self.wanted,
            self.problem,
            self.over,
            self.used,
            self.unseen,
        )
        if self._report is None or self._report[0] != made_of:
            self._report = made_of, self._made()
        return self._report[1]

    def _made(self) -> ReportedAdapter:
        fields: dict[str, object] = {"name": self.item.name, "state": AdapterState.LOADING, "last_used": self.used}
        shown = self.served or self.cold
        if self.wanted is not None and (shown is None or shown.sha256 != self.wanted):
            fields["wanted_sha256"] = self.wanted
        if shown is not None:
            fields |= {"manifest_sha256": shown.sha256, "rank": shown.fit.rank}
            fields |= {"size_bytes": shown.size, "message": shown.fit.note}
        if self.served is not None:
            fields["state"] = AdapterState.SERVED
        elif self.cold is not None and not self.hot:
            fields["state"] = AdapterState.COLD
        return ReportedAdapter.model_validate(fields | self._of_problem())

    def _of_problem(self) -> dict[str, object]:
        """Return what the report says of the problem, where there is one that counts."""
        problem = self.problem
        if self.over is not None:
            problem = Problem(TuneryError(_R.TOO_MANY_ADAPTERS, self.over), None, math.inf, 0.0, True)
        known = self.served or self.cold
        if problem is None:
            return {}
        if known is not None and problem.sha256 is None and not problem.settled and self._looked_at:
            return {}  # of a look by the clock: another follows soon
        error = problem.error
        fields: dict[str, object] = {"reason": error.reason, "hint": redact(sentences(error.remedies), _MESSAGE)}
        fields["message"] = redact(self._sentence(problem), _MESSAGE)
        if self.fails:
            fields |= {"state": AdapterState.FAILED, "manifest_sha256": None, "wanted_sha256": self.wanted}
        return fields

    @property
    def _looked_at(self) -> bool:
        """Whether its place was seen since the entry names it, and since what it led to was taken from the disk."""
        return self.look is not None and not self.unseen

    @property
    def fails(self) -> bool:
        """Whether nothing answers for it, nor will before somebody has mended it, or it is tried again."""
        if self.over is not None:
            return True
        if self.served is not None or self.problem is None or not self.problem.settled:
            return False
        return self.cold is None or self.problem.sha256 == self.cold.sha256

    def loadable(self, now: float) -> bool:
        """Tell whether to load it for who asks: it is cold, or failed so long ago that it is tried again."""
        if self.cold is None or self.over is not None:
            return False
        return not self.fails or (self.problem is not None and now >= self.problem.retry_at)

    def _sentence(self, problem: Problem) -> str:
        message, known = problem.error.message, self.served or self.cold
        if known is None:
            return message
        digits = known.sha256[:VERSION_DIGITS]
        if problem.sha256 is None and not problem.settled:
            told = f"its place could not be looked at: {message}"
            if self.served is None:
                return told
            return f"{told}; serving {digits} from the disk" if self.unseen else f"{told}; still serving {digits}"
        if problem.sha256 is None or problem.sha256 == known.sha256:
            return message
        return f"update to {problem.sha256[:VERSION_DIGITS]}: {message}; still serving {digits}"
