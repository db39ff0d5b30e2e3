"""Follow one object: yield each of its states, over broken connections and restarts of the API server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from tunery.cluster import WATCH_SECONDS, Cluster, Json, WatchExpired, resource_of
from tunery.errors import TimedOut, TuneryError, Unavailable
from tunery.objects import View, view

GIVE_UP_SECONDS: Final = 300.0
"""How long the API server may be unavailable."""
LONGEST_PAUSE: Final = 30.0
"""The most seconds between two attempts to reach the API server."""


def follow(cluster: Cluster, followed: View, seconds: float | None = None) -> Iterator[View]:
    """Yield the given state of an object and each later one, until it has finished.

    Raises TuneryError `Deleted` if the object is deleted or replaced by another one of its name, TimedOut after
    `seconds`, and Unavailable if the API server does not answer for GIVE_UP_SECONDS.
    """
    cluster, current, deadline = cluster.within(followed.metadata["namespace"]), followed, _Deadline(followed, seconds)
    yield current
    if current.finished:
        return
    for current in _changes(cluster, followed, deadline):
        yield current
        if current.finished:
            return


class _Deadline:
    """When to stop following an object."""

    def __init__(self, followed: View, seconds: float | None) -> None:
        self._name, self._seconds = followed.reference, seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self, most: float) -> float:
        """Return the remaining seconds, or `most` if these are fewer. Raises TimedOut."""
        if self._end is None:
            return most
        left = self._end - time.monotonic()
        if left <= 0:
            message = f"{self._name} has not finished after {self._seconds:.0f} s; it continues"
            raise TimedOut("Timeout", message, f"Follow it again: tunery watch {self._name}")
        return min(most, left)


class Outage:
    """How long the API server has not answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._pause = 0.5

    def end(self) -> None:
        """Record that the API server has answered."""
        self._since, self._pause = None, 0.5

    def pause(self, error: Unavailable) -> float:
        """Return the seconds to wait before the next attempt, each time more. Raises `error` if it lasts too long."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since > GIVE_UP_SECONDS:
            raise error
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause


def _changes(cluster: Cluster, followed: View, deadline: _Deadline) -> Iterator[View]:
    """Yield each state of an object after the given one."""
    resource, field = resource_of(followed.kind), f"metadata.name={followed.name}"
    shown, version, outage = followed.metadata["resourceVersion"], "", Outage()
    while True:
        seconds = deadline.remaining(WATCH_SECONDS)
        try:
            if not version:
                items, version = cluster.items(resource, field=field)
                outage.end()
                current = _same(items[0] if items else None, followed)
                if current.metadata["resourceVersion"] != shown:
                    shown = current.metadata["resourceVersion"]
                    yield current
            for event, body in cluster.watch(resource, version, field=field, seconds=seconds):
                outage.end()
                version = body["metadata"]["resourceVersion"]
                if event == "BOOKMARK":
                    continue
                current = _same(body, followed)
                if event == "DELETED" and not current.finished:
                    raise _deleted(followed)
                shown = version
                yield current
        except WatchExpired:
            version = ""
        except Unavailable as error:
            time.sleep(deadline.remaining(outage.pause(error)))


def _same(body: Json | None, followed: View) -> View:
    """Return the view of the followed object. Raises TuneryError if it is gone or another one has its name."""
    if body is None:
        raise _deleted(followed)
    if body["metadata"]["uid"] != followed.metadata["uid"]:
        raise _deleted(followed, ", and another object of that name was created")
    return view(body, followed.kind)


def _deleted(followed: View, more: str = "") -> TuneryError:
    remedy = f"Follow the other one: tunery watch {followed.reference}" if more else "List what there is: tunery list"
    return TuneryError("Deleted", f"{followed.reference} was deleted{more}", remedy)
