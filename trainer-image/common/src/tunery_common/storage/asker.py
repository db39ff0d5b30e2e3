"""Who asks a store, as far as stores care: whether somebody still waits for the answer, and in which threads it comes.

It lies in the context of the thread that asks, since every request of every method is to end once it is given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

from tunery_common.storage.streams import Streams


class GivenUp(Exception):
    """Nobody waits for these bytes any more."""


@dataclass(frozen=True)
class Asker:
    """Whoever may give up what it asks."""

    over: threading.Event
    """Set once nobody waits for it: no request is begun any more, and one that is under way ends at its next byte."""
    streams: Streams
    """What its downloads run in, apart from those of all others."""
    busy: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered by what is done here meanwhile, such as writing to the disk: for that time no store is silent."""


_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """Have all that this thread asks meanwhile be asked by `asker`."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


def check_waited_for() -> None:
    """Raise GivenUp where nobody waits for what this thread asks."""
    asker = _asker.get()
    if asker is not None and asker.over.is_set():
        raise GivenUp


def busy_here() -> AbstractContextManager[None]:
    """Return what to do the work of this machine in, while a store has nothing to say."""
    asker = _asker.get()
    return nullcontext() if asker is None else asker.busy()


def own_streams() -> Streams | None:
    """Return what whoever asks has its downloads run in; None: in what the process has."""
    asker = _asker.get()
    return None if asker is None else asker.streams
