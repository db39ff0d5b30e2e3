"""Who comes late to a run of several nodes, or meets somebody else there: it waits, and ends nobody."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tunery_api.reasons import ExitCode
from tunery_trainer.crew import causes as module
from tunery_trainer.crew import channel, nodes
from tunery_trainer.crew.causes import PeerLost
from tunery_trainer.crew.nodes import Follow, Lead
from tunery_trainer.process.place import Place
from tunery_trainer.process.signals import StopRequested

from kit.two_nodes import Ends, begin, two_nodes, until
from tools.cluster.ports import free_port

MOMENT = 0.3
AGAIN = 0.05


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSE_SECONDS", MOMENT)
    monkeypatch.setattr(nodes, "_AGAIN_SECONDS", AGAIN)
    monkeypatch.setattr(channel, "_CONNECT_SECONDS", MOMENT)


class Newcomer:
    """A node that looks for node 0, in a thread."""

    def __init__(self, follow: Follow) -> None:
        self.follow = follow
        self.met = False
        self.raised: BaseException | None = None
        self.thread = threading.Thread(target=self._come, daemon=True)
        self.thread.start()

    def _come(self) -> None:
        try:
            self.follow.__enter__()
            self.met = True
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            self.raised = error

    def end(self) -> None:
        self.thread.join(5)
        if self.met:
            self.follow.__exit__(None, None, None)


def told_to_stop(lead: Lead, other: Callable[[], tuple[Follow, Ends]]) -> None:
    """Let both begin, and node 1 end as somebody told it to: node 0 stores the checkpoint now."""
    first, _ = other()
    with contextlib.suppress(StopRequested), first:
        begin(lead, first)
        raise StopRequested
    until(lambda: not lead._channels)


@pytest.mark.parametrize("end", [StopRequested(elsewhere=True), PeerLost("node 1 of 2 is gone"), None])
def test_a_node_that_comes_while_node_0_ends_neither_ends_it_nor_ends_with_it(end: BaseException | None) -> None:
    """Of a drained pod the successor is there while node 0 stores its checkpoint, and its ports are closed."""
    with contextlib.ExitStack() as stack:
        lead, ends, other = stack.enter_context(two_nodes())
        told_to_stop(lead, other)
        follow, own = other()
        late = Newcomer(follow)
        time.sleep(3 * MOMENT)
        assert not late.met
        assert lead._channels == {}
        assert ends.errors == []
        with contextlib.suppress(StopRequested, PeerLost), stack:
            if end is not None:
                raise end
        until(lambda: follow._channel is None or late.raised is not None)
    if end is None:
        late.end()
        assert isinstance(late.raised, StopRequested)  # it was not needed
        return
    with Lead(Place(0, 2, control_port=follow._place.control_port), "u-1", Ends().causes) as successor:
        until(lambda: late.met and 1 in successor._reached)
        begin(successor, follow)
    late.end()
    assert late.raised is None
    assert [error.message for error in ends.errors + own.errors if "TCP" in error.message] == []
    assert own.errors == []


def test_a_node_that_comes_as_another_one_is_gone_leaves_that_ones_end_as_the_cause() -> None:
    with two_nodes() as (lead, ends, other):
        first, _ = other()
        with first:
            begin(lead, first)
            ends.left = lambda: time.sleep(3 * MOMENT)  # it stores
            assert first._channel is not None
            first._channel.close()
            late = Newcomer(other()[0])
            until(lambda: bool(ends.errors))
            time.sleep(3 * MOMENT)
            assert [error.message for error in ends.errors] == ["node 1 of 2 is gone"]
            assert not late.met
            assert late.raised is None


def test_what_a_node_has_said_that_is_replaced_is_not_its_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one lost its power: its connection is open still, as the other one comes."""
    monkeypatch.setenv(nodes.MEET_SECONDS_ENV, "0.5")
    with two_nodes() as (lead, _, other):
        first, second = other()[0], other()[0]
        with first:
            assert first._channel is not None
            first._channel.send(ready={"seed": "1"})
            until(lambda: 1 in lead._ready and 1 in lead._reached)
            with second:
                until(lambda: 1 in lead._reached)
                assert lead._ready == {}


def test_a_node_that_is_gone_as_its_port_is_tried_was_not_cut_off() -> None:
    with two_nodes() as (lead, ends, _):
        dead = free_port()
        with socket.create_connection(("127.0.0.1", lead._listener.port)) as gone:
            gone.sendall(b'{"hello": 1, "run": "u-1", "free": ["127.0.0.1", %d]}\n' % dead)
        until(lambda: lead._channels == {})
        time.sleep(3 * MOMENT)
        assert ends.errors == []


@contextlib.contextmanager
def stranger(says: bytes) -> Iterator[tuple[int, list[float]]]:
    """Take connections, say something and close them at once; yields the port, and when each came."""
    came: list[float] = []

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                came.append(time.monotonic())
                with connection, contextlib.suppress(OSError):
                    connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)


def meet(port: int) -> None:
    """Be node 1 before all begin, with what listens there as node 0."""
    with Follow(Place(1, 2, control_port=port), "u-1", Ends().causes) as node:
        node.ready({})


@pytest.mark.slow
def test_where_node_0_is_looked_for_is_told_once_and_not_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that swallows what is sent: the log of this pod would stay empty for a quarter of an hour."""
    monkeypatch.setenv(nodes.MEET_SECONDS_ENV, "3")
    monkeypatch.setattr(nodes, "_TOLD_SECONDS", 0.2)
    port = free_port()
    with pytest.raises(PeerLost, match="has not come"):
        meet(port)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"Nodes      looking for node 0 at {Place(1, 2).master}, TCP {port}, ")


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"here": true}\n'])
def test_what_is_not_node_0_is_asked_now_and_then_and_no_longer_than_nobody(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mesh's sidecar: it takes every connection, and closes those that lead nowhere."""
    monkeypatch.setenv(nodes.MEET_SECONDS_ENV, "0.6")
    began = time.monotonic()
    with stranger(says) as (port, came), pytest.raises(PeerLost) as raised:
        meet(port)
    assert 0.5 < time.monotonic() - began < 2
    assert len(came) <= 0.6 / AGAIN + 1
    assert raised.value.exit_code is ExitCode.RETRYABLE
    said = f"node 0 of 2 has not come within 0.01 minutes: what listens on its TCP {port} does not answer"
    assert raised.value.message == said


def test_what_takes_a_connection_and_is_silent_is_waited_for_no_longer_than_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(nodes.MEET_SECONDS_ENV, "0.6")
    began = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(PeerLost, match="does not answer"),
    ):
        meet(silent.getsockname()[1])
    assert 0.5 < time.monotonic() - began < 2


@pytest.mark.parametrize("stores", [True, False])
def test_whether_a_lost_node_counts_is_asked_once_the_checkpoint_is_stored(stores: bool) -> None:
    """The first one may be on its way as the connection breaks: what is stored is no step for nothing."""
    with two_nodes() as (lead, ends, other):
        node, _ = other()
        stored: list[bool] = []
        lead.progressed = lambda: any(stored)
        ends.causes.store = lambda: stored.append(stores)
        with node:
            begin(lead, node)
            assert node._channel is not None
            node._channel.close()
            until(lambda: bool(ends.errors))
    assert [error.message for error in ends.errors] == ["node 1 of 2 is gone"]
    assert ends.errors[0].exit_code is (ExitCode.PEER_LOST if stores else ExitCode.RETRYABLE)
