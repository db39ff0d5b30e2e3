"""How long the client waits for an API server that does not answer."""

from __future__ import annotations

import pytest

from tunery.errors import Unavailable
from tunery.follow import Outage

ERROR = Unavailable("ClusterUnavailable", "no answer")


def test_pauses_grow_to_half_a_minute_and_start_anew_after_an_answer() -> None:
    outage = Outage()
    assert [outage.pause(ERROR) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    outage.end()
    assert outage.pause(ERROR) == 0.5


def test_it_gives_up_after_five_minutes_without_any_answer() -> None:
    times = iter([0.0, 299.0, 300.0, 600.0, 601.0])
    outage = Outage(lambda: next(times))
    outage.pause(ERROR)
    outage.pause(ERROR)
    outage.end()
    outage.pause(ERROR)
    outage.pause(ERROR)
    with pytest.raises(Unavailable, match="no answer"):
        outage.pause(ERROR)
