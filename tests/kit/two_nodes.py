"""Node 0 of two and its others in this process: what they say to each other, without any training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from tunery_common.errors import TuneryError
from tunery_trainer.crew.causes import Causes
from tunery_trainer.crew.nodes import Follow, Lead
from tunery_trainer.process.place import Place

from tools.cluster.ports import free_port


class Ends:
    """Takes down what would end the process."""

    def __init__(self) -> None:
        self.errors: list[TuneryError] = []
        self.left: Callable[[], object] = lambda: None
        self.causes = Causes(self._leave)  # type: ignore[arg-type]  # in a test it returns

    def _leave(self, error: TuneryError) -> None:
        self.errors.append(error)
        self.left()


@contextlib.contextmanager
def two_nodes(collectives: int = 0) -> Iterator[tuple[Lead, Ends, Callable[[], tuple[Follow, Ends]]]]:
    """Node 0 of two, and what makes node 1."""
    port = free_port()
    ends = Ends()
    lead = Lead(Place(0, 2, port=collectives, control_port=port), "u-1", ends.causes)

    def other() -> tuple[Follow, Ends]:
        own = Ends()
        return Follow(Place(1, 2, control_port=port), "u-1", own.causes), own

    with lead:
        yield lead, ends, other


def begin(lead: Lead, node: Follow) -> None:
    """Let both begin."""
    assert node._channel is not None
    node._channel.send(ready={"seed": "1"})
    lead.begin({"seed": "1"}, step=None)
    until(lambda: node._go is not None)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
