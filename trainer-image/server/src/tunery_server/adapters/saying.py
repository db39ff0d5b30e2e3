"""What the log says of adapters: each load, unload and refusal, and its cause, once; nothing of requests."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tunery_api.reasons import FailureReason
from tunery_api.scrub import scrub
from tunery_api.serving import HeldAdapter
from tunery_common.errors import TuneryError
from tunery_server.adapters.slot import Served, Slot

_log = logging.getLogger(__name__)


def say_served(slot: Slot, served: Served, seconds: float) -> None:
    """Say that a name leads to another version; `seconds`: since it was begun to look for one, or to bring it."""
    slot.said = None
    _log.info("%s is served: rank %s, %.1f s", served.engine_name, served.fit.rank, seconds)


def say_failed(slot: Slot, error: TuneryError) -> None:
    """Say why a version is not served, unless that was said last of this name: most is tried again every minute."""
    title = slot.engine_name(slot.about) if slot.about is not None else slot.item.name
    still = f"{slot.served.engine_name} is served on, not " if slot.served is not None else ""
    _say(slot, f"{still}{title}: {error}" if still else f"{title} is not served: {error}")


def say_over(slot: Slot) -> None:
    """Say that there is no place for a name."""
    if slot.over is not None:
        _say(slot, f"{slot.item.name} is not served: {FailureReason.TOO_MANY_ADAPTERS}: {slot.over}")


def _say(slot: Slot, text: str) -> None:
    if text != slot.said:
        slot.said = text
        _log.warning("%s", scrub(text))


def say_held(before: Iterable[HeldAdapter], now: Iterable[HeldAdapter]) -> None:
    """Say of names that the operator holds back why it does, where that is new."""
    known = {each.name: each for each in before}
    for each in now:
        if known.get(each.name) != each:
            _log.info("%s is not served: %s: %s", each.name, each.reason, scrub(each.message))
