"""What is said of names and of the replica: to those who ask for them, and to the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.serving import OLDEST_ENGINE
from tunery_server.adapters.residents import Residents
from tunery_server.adapters.saying import say_mended
from tunery_server.adapters.slot import Slot
from tunery_server.adapters.waking import LOADING
from tunery_server.routes import Routes

ANEW: Final = "the engine is being started anew"


class Teller:
    """Has the routes say what is so of names that are not served."""

    def __init__(self, routes: Routes, residents: Residents, clock: Callable[[], float]) -> None:
        self._routes = routes
        self._residents = residents
        self._clock = clock

    def tell(self, slot: Slot) -> None:
        """Say that a slot is loaded for whoever asks, or why it is not; what is said already is not said again.

        Of one that is served the log is told where nothing stands in its way any more.
        """
        say_mended(slot)
        name, cold = slot.item.name, slot.cold
        if slot.served is not None:
            slot.told = None
            return
        if not self._residents.up and self._residents.seen:
            told: tuple[str, ...] = (FailureReason.ENGINE_FAILED, ANEW)
        elif cold is not None and slot.loadable(self._clock()):
            told = (slot.engine_name(cold.sha256), cold.sha256, "cold")
        else:
            report = slot.report()
            told = (report.reason or LOADING, report.message or "it is being loaded")
        if told == slot.told:
            return
        slot.told = told
        if len(told) > 2:
            self._routes.chill(name, told[0], told[1])
        else:
            self._routes.hold(name, told[0], told[1])


def standing(residents: Residents, problem: str | None) -> tuple[str | None, str | None]:
    """Return what stands in the way of the replica as a whole; `problem` is that of its list of adapters."""
    if not residents.up and residents.seen:
        return FailureReason.ENGINE_FAILED, "the engine does not answer any more; its container is started anew"
    if residents.up and not residents.supported:
        message = f"the engine is vLLM {residents.version}; the oldest that is used is {OLDEST_ENGINE}"
        return FailureReason.ENGINE_UNSUPPORTED, message
    if residents.problem is not None:
        return FailureReason.ENGINE_FAILED, residents.problem
    if not residents.up:
        return None, "the engine is starting"
    return None, problem or (None if residents.answers else "the base model has not answered a request yet")
