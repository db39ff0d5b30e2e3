"""What the processes of a run hear of each other: who ends whom, with which words, and what is stored before."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.crew import causes as module
from tunery_trainer.crew import channel, nodes
from tunery_trainer.crew.causes import PeerLost, is_echo
from tunery_trainer.crew.channel import Listener, answer, connect, reaches
from tunery_trainer.crew.crew import FAILURE, Crew
from tunery_trainer.crew.nodes import Follow
from tunery_trainer.process.place import Place
from tunery_trainer.process.signals import StopRequested, StopSignal
from tunery_trainer.tasks import following
from tunery_trainer.tasks.following import Assisting, Following, Leading, blamed, run_following

from kit.two_nodes import Ends, begin, two_nodes, until
from tools.cluster.ports import free_port

DIVERGED = TuneryError(FailureReason.LOSS_DIVERGED, "the training loss became nan at step 3")
ECHO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
MOMENT = 0.3


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSE_SECONDS", MOMENT)
    monkeypatch.setattr(nodes, "_AGAIN_SECONDS", 0.02)


@contextlib.contextmanager
def ending(node: Follow, error: Exception) -> Iterator[None]:
    """Let a node meet node 0, and end with `error` after the body."""
    with contextlib.suppress(type(error)), node:
        yield
        raise error


def test_who_fails_like_all_others_is_not_ended_by_the_first_of_them(tmp_path: Path) -> None:
    """A loss that is no number is met by all processes at once; this one stores its checkpoint and its curve then."""
    ends = Ends()
    with pytest.raises(TuneryError) as raised, blamed(ends.causes):
        raise DIVERGED
    ends.causes.known(DIVERGED.about("process 1 of 2"))
    ends.causes.lost(DIVERGED.about("process 1 of 2"))
    assert raised.value is DIVERGED
    assert ends.errors == []


def test_a_process_that_ends_after_training_disturbs_nobody(tmp_path: Path) -> None:
    ends = Ends()
    with Leading(Crew(Place(devices=2), tmp_path, ends.causes), None).heard(None):
        pass
    ends.causes.lost(PeerLost("node 1 of 2 is gone"))
    assert ends.errors == []


def test_a_checkpoint_on_its_way_is_stored_before_a_process_that_hangs_is_ended() -> None:
    ends, told = Ends(), []
    ends.causes.store = lambda: told.append("stored")
    ends.left = lambda: told.append("ended")
    ends.causes.lost(DIVERGED)
    assert told == ["stored", "ended"]


def test_an_echo_is_told_as_what_is_known_of_who_is_gone() -> None:
    ends, lost = Ends(), PeerLost("node 1 of 2 is gone")
    ends.causes.known(DIVERGED)
    with pytest.raises(TuneryError, match="became nan"), blamed(ends.causes):
        raise ECHO
    ends = Ends()
    ends.causes.lost(TuneryError(FailureReason.INTERNAL_ERROR, "process 1: closed by peer"), echo=True)
    ends.causes.lost(lost)
    assert ends.errors[-1] is lost
    with pytest.raises(PeerLost) as raised, blamed(ends.causes):
        raise ECHO
    assert raised.value is lost
    assert raised.value.exit_code is ExitCode.PEER_LOST


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ("unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation", "has not come for 30 minutes"),
        ("pair.cc:545] Read error [10.244.0.122]:18070: Connection timed out.", "until the kernel gave up"),
    ],
)
def test_a_sum_that_does_not_come_is_told_as_that_though_another_node_has_ended_for_it(late: str, said: str) -> None:
    """It waits for no sum that it could still have, and whoever gives up first is missed by the others."""
    ends = Ends()
    ends.causes.lost(PeerLost("node 1 of 2 is gone"))
    with pytest.raises(PeerLost, match=said) as raised, blamed(ends.causes):
        raise RuntimeError(f"[gloo/transport/tcp/{late}")
    assert raised.value.exit_code is ExitCode.RETRYABLE


def test_a_node_that_is_told_to_end_while_node_0_publishes_says_what_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at once, with exit code 143 and no failure: who ended it the operator sees."""
    said, stop = tmp_path / "said", StopSignal()
    monkeypatch.setenv("TUNERY_TERMINATION_PATH", str(said))
    monkeypatch.setattr(following, "_train_along", lambda *_: None)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    node: Any = SimpleNamespace(wait=stop.leave)
    Assisting(Crew(Place(0, 2), tmp_path, Ends().causes), node, tmp_path).follow(Following(Any, None), stop)
    assert json.loads(said.read_text()) == {"doing": "training had ended, and node 0 was publishing the adapter"}
    assert ended == [ExitCode.TERMINATED]


def test_a_run_of_one_process_has_no_peers_to_blame(tmp_path: Path) -> None:
    """A mounted claim says the same words as a socket."""
    broken = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ConnectionResetError), Leading(Crew(Place(), tmp_path, Ends().causes), None).heard(None):
        raise broken
    assert not is_echo(broken)
    assert is_echo(ECHO)
    mesh = (
        "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:152] timed out connecting: SO_ERROR: Connection"
    )
    assert is_echo(RuntimeError(mesh))


def test_a_node_that_was_told_to_stop_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 0 stores the last checkpoint meanwhile, which may take longer than a cause is waited for."""
    with two_nodes() as (lead, ends, other):
        node, _ = other()
        with ending(node, StopRequested()):
            begin(lead, node)
        time.sleep(2 * MOMENT)
        assert ends.errors == []
        assert lead._channels == {}


def test_a_node_that_fails_stays_until_node_0_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user must mend ends the whole Job: node 0, which may have failed alike, would be ended as it stores."""
    with two_nodes() as (lead, ends, other):
        node, _ = other()
        ends.left = lambda: [each.close() for each in list(lead._channels.values())]
        began = time.monotonic()
        with ending(node, DIVERGED):
            begin(lead, node)
        stayed = time.monotonic() - began
    assert MOMENT <= stayed < 5
    assert [str(error) for error in ends.errors[:1]] == [f"PeerLost: node 1: LossDiverged: {DIVERGED.message}"]
    assert ends.errors[0].exit_code is ExitCode.PEER_LOST


def test_what_ended_a_node_before_all_began_is_not_the_cause_of_a_later_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_nodes() as (lead, ends, other):
        first, _ = other()
        with ending(first, TuneryError(FailureReason.STORAGE_UNAVAILABLE, "S3 did not answer")):
            until(lambda: 1 in lead._channels)
        until(lambda: 1 not in lead._channels)
        second, _ = other()
        with second:
            begin(lead, second)
            assert second._channel is not None
            second._channel.close()
            until(lambda: bool(ends.errors))
        assert ends.errors[0].message == "node 1 of 2 is gone"


def test_a_node_that_comes_as_node_0_publishes_is_not_left_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        lead, _, other = stack.enter_context(two_nodes())
        node, _ = other()
        stopped: list[BaseException] = []
        with node:
            until(lambda: 1 in lead._channels)
            waiting = threading.Thread(target=lambda: _take(stopped, lambda: node.ready({})))
            waiting.start()
            until(lambda: 1 in lead._ready)
            stack.close()
            waiting.join(5)
    assert [type(error) for error in stopped] == [StopRequested]


def test_a_node_that_is_replaced_has_its_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one may have brought a large base for longer than others are waited for."""
    monkeypatch.setenv(nodes.MEET_SECONDS_ENV, "0.5")
    with two_nodes() as (lead, _, other):
        first, _ = other()
        lost: list[BaseException] = []
        with first:
            until(lambda: 1 in lead._channels)
            waiting = threading.Thread(target=lambda: _take(lost, lambda: lead.begin({"seed": "1"}, step=None)))
            waiting.start()
            time.sleep(0.8)
        time.sleep(0.2)
        assert lost == []
        second, _ = other()
        with second:
            assert second._channel is not None
            second._channel.send(ready={"seed": "1"})
            waiting.join(5)
    assert lost == []


def _take(errors: list[BaseException], work: Callable[[], Any]) -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 (the test looks at it)
        errors.append(error)


@pytest.mark.parametrize(
    ("found", "said", "actions"),
    [
        ({"size": "2"}, "node 1 has come to something else than node 0: size: 2, not 4", ["Edit", "Recreate"]),
        (
            {"settings": {"rank": 8, "data (SHA-256)": "b"}},
            "node 1 has come to something else than node 0: settings.data (SHA-256): b, not a",
            ["Edit", "Recreate"],
        ),
        (
            {"rows": "b", "settings": {"rank": 8, "data (SHA-256)": "b"}},
            "node 1 has read other data than node 0",
            ["Retry"],
        ),
        ({"base": "b"}, "node 1 has read another model than node 0", ["Retry"]),
    ],
)
def test_only_what_differs_between_nodes_is_told_and_the_next_attempt_may_mend_it(
    found: dict[str, Any], said: str, actions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"seed": "1", "size": "4", "rows": "a", "base": "a", "settings": {"rank": 8, "data (SHA-256)": "a"}}
    with two_nodes() as (lead, _, other):
        node, _ = other()
        with node:
            assert node._channel is not None
            node._channel.send(ready=ours | found)
            with pytest.raises(PeerLost) as raised:
                lead.begin(ours, step=None)
    assert (raised.value.message, raised.value.exit_code) == (said, ExitCode.RETRYABLE)
    assert [each.action for each in raised.value.remedies] == actions


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("free port of node 0", "node 1 does not reach node 0 on TCP "),
        ("port of the collectives", "node 1 does not reach node 0 on TCP {port},"),
        ("free port of node 1", "node 0 does not reach node 1 on TCP "),
    ],
)
def test_a_port_that_is_not_let_through_is_told_before_anything_is_downloaded(
    closed: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the collectives the nodes would wait for each other, for minutes or for hours."""
    port = free_port()
    with two_nodes(port) as (lead, ends, other):
        node, _ = other()
        tried = {"free port of node 0": 0, "port of the collectives": 1}
        free = lead._tried[tried[closed]] if closed in tried else Listener(0, answer)
        free.close()
        monkeypatch.setattr(channel, "_CONNECT_SECONDS", 0.1)
        if closed not in tried:
            monkeypatch.setattr(nodes, "Listener", lambda *_: free)
        with node:
            until(lambda: bool(ends.errors))
    (error,) = ends.errors
    assert error.message.startswith(said.format(port=port))
    assert "let all TCP ports through" in error.message
    assert error.exit_code is ExitCode.RETRYABLE


def test_a_port_that_is_taken_by_what_carries_nothing_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a mesh's sidecar: torch's store would wait for its answer for ever."""
    monkeypatch.setattr(channel, "_CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not reaches("127.0.0.1", silent.getsockname()[1])
    listener = Listener(0, answer)
    try:
        assert reaches("127.0.0.1", listener.port)
    finally:
        listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_node_0_is_met_by_ipv4_and_by_ipv6(host: str) -> None:
    listener = Listener(0, lambda channel, message: None)
    try:
        found = connect(host, listener.port)
        assert found is not None
        found.close()
    finally:
        listener.close()


def test_the_trace_of_a_defect_in_another_process_is_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "assignment").write_bytes(b"no pickle")
    assert run_following(tmp_path / "assignment", tmp_path, StopSignal()) is ExitCode.BUG
    assert '"InternalError"' in (tmp_path / FAILURE).read_text()
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_process_whose_parent_is_gone_before_it_has_begun_ends(tmp_path: Path) -> None:
    """It would wait for half an hour for somebody who listens no more."""
    code = "from tunery_trainer.process.supervise import die_with_parent; die_with_parent(); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TUNERY_SUPERVISED": str(os.getppid())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (137, "")


@pytest.mark.parametrize(
    ("ends", "words"),
    [("kill -KILL $$", "the process was killed"), ("exit 143", "somebody told the process to end")],
)
def test_another_process_hears_no_terminal_and_is_named_where_it_is_ended_alone(
    ends: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Ctrl-C it hears from the leader, wherever it is: one that ended by itself would be a lost peer."""
    started: list[dict[str, Any]] = []

    def start(*_: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(options)
        ended, kept = ["bash", "-c", f"read; {ends}"], ("start_new_session", "stderr")
        return real(ended, stdin=subprocess.PIPE, **{name: options[name] for name in kept})

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    with Crew(Place(devices=2), tmp_path, Ends().causes) as crew:
        crew.start({})
        assert os.getsid(crew._members[0].process.pid) != os.getsid(0)
        assert crew.place.port
        assert os.environ["GLOO_SOCKET_IFNAME"] == started[0]["env"]["GLOO_SOCKET_IFNAME"] == "lo"
        assert f'"port": {crew.place.port}' in started[0]["env"]["TUNERY_PLACE"]
        told = crew._members[0].process.stdin
        assert told is not None
        told.close()
        with pytest.raises(TuneryError, match=f"process 1 of 2: {words}") as raised, blamed(crew.causes):
            raise ECHO
        assert raised.value.exit_code is ExitCode.RETRYABLE
