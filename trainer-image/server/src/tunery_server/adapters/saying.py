"""What the log says of adapters: each load, unload and refusal, and its cause, once; nothing of requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.serving import HeldAdapter
from tunery_common.errors import TuneryError
from tunery_server.adapters.slot import Served, Slot

_log = logging.getLogger(__name__)

_SECONDS: Final = 600.0
_LINES: Final = 5
"""Of one name in that time, of what stands in its way: what comes and goes all the time is not told each time."""


def say_served(slot: Slot, served: Served, seconds: float) -> None:
    """Say that a name leads to another version; `seconds`: since it was begun to look for one, or to bring it."""
    slot.said = None
    _log.info("%s is served: rank %s, %.1f s", served.engine_name, served.fit.rank, seconds)


def say_failed(slot: Slot, error: TuneryError) -> None:
    """Say why a version is not served, unless that was said last of this name: most is tried again every minute."""
    title = slot.engine_name(slot.about) if slot.about is not None else slot.item.name
    still = f"{slot.served.engine_name} is served on, not " if slot.served is not None else ""
    _say(slot, f"{still}{title}: {error}" if still else f"{title} is not served: {error}")


def say_mended(slot: Slot) -> None:
    """Say that what was said last to stand in the way of what is served is over, where that is so."""
    served = slot.served
    if slot.said is None or served is None or slot.problem is not None or slot.wanted != served.sha256:
        return
    if slot.aloud:
        _log.info("%s is served as before: nothing stands in its way any more", served.engine_name)
    slot.said = None


def say_stranger(engine_name: str) -> None:
    """Say that a version which is not wanted any more came into the engine: that it is unloaded is said, too."""
    _log.info("%s was loaded and is not served: it is not wanted any more", engine_name)


def say_over(slot: Slot) -> None:
    """Say that there is no place for a name."""
    if slot.over is not None:
        _say(slot, f"{slot.item.name} is not served: {FailureReason.TOO_MANY_ADAPTERS}: {slot.over}")


def _say(slot: Slot, text: str) -> None:
    if text == slot.said:
        return
    slot.said, now = text, time.monotonic()
    slot.warned = [each for each in slot.warned if now - each < _SECONDS]
    slot.aloud = len(slot.warned) < _LINES
    if not slot.aloud:
        slot.left_out += 1
        return
    more = f" ({slot.left_out} such lines were left out before it)" if slot.left_out else ""
    last = f" ({_LINES} such lines in 10 minutes: no other of it in these)" if len(slot.warned) == _LINES - 1 else ""
    slot.warned.append(now)
    slot.left_out = 0
    _log.warning("%s", f"{redact(text)}{more}{last}")


def say_held(before: Iterable[HeldAdapter], now: Iterable[HeldAdapter]) -> None:
    """Say of names that the operator holds back why it does, where that is new."""
    known = {each.name: each for each in before}
    for each in now:
        if known.get(each.name) != each:
            _log.info("%s is not served: %s: %s", each.name, each.reason, redact(each.message))
