"""The nodes of a run: they meet before anything is loaded, begin together, and hear how each of them ends."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit, recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.crew.causes import Causes, PeerLost
from tunery_trainer.crew.channel import Channel, Heard, Listener, Message, answer, connect, reaches
from tunery_trainer.process.failures import explain
from tunery_trainer.process.place import Place
from tunery_trainer.process.signals import StopRequested
from tunery_trainer.reporting.progress import say

MEET_SECONDS_ENV: Final = "TUNERY_MEET_SECONDS"
_MEET_SECONDS: Final = 900.0
"""How long a node waits for the others: it may hold GPUs meanwhile."""
_INPUTS: Final = {"base": "another model", "rows": "other data"}
_CHANGED: Final = retry("Don't change the inputs while the pods read them")
_OTHER_DEVICES: Final = (
    edit("Use scheduling to run all pods on the same GPUs", "scheduling"),
    recreate(
        "Set training.batchSize and training.gradientAccumulation",
        "training.batchSize",
        "training.gradientAccumulation",
    ),
)
_TAKEN: Final = retry(
    "Free the port: a sidecar of the pod listens on it, or, if the pod uses hostNetwork, another process of that node"
)
_AGAIN_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 10.0
"""After so long without node 0 it is told where it is looked for: its pod may have to wait for a node."""
_ANSWER_SECONDS: Final = 60.0
"""How long an answer of node 0 is waited for on one connection: it tries a port for half a minute before."""
_LAST_SECONDS: Final = 660.0
"""How long a node that fails stays for node 0 to end: all may fail alike, and node 0 stores its checkpoint then."""


def meet_seconds() -> float:
    """Return how long a node waits for the others."""
    return float(os.environ.get(MEET_SECONDS_ENV) or _MEET_SECONDS)


def _absent(nodes: list[int], place: Place, seen: str = "") -> TuneryError:
    """Return the failure that nodes do not come; `seen` is what was found in their place."""
    who = ", ".join(map(str, nodes))
    text = f"node {who} of {place.nodes} has not come within {meet_seconds() / 60:g} minutes{seen}"
    return PeerLost(text, counts=True)


def _listen(port: int, heard: Heard) -> Listener:
    """Return what listens on a port of node 0; raises PeerLost where that is taken: nobody could reach this one."""
    try:
        return Listener(port, heard)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PeerLost(f"node 0 cannot listen on TCP {port}: another process does", _TAKEN, counts=True) from error


def _cut_off(what: str) -> TuneryError:
    text = f"{what}, which listens there: what stands between the pods has to let all TCP ports through"
    return PeerLost(text, counts=True)


def _unlike(node: int, found: Any, decided: dict[str, Any]) -> TuneryError:
    """Return the failure that a node would train something else, with what differs and nothing beside it."""
    apart = dict(_apart(found, decided))
    changed = [words for name, words in _INPUTS.items() if name in apart]
    if changed:  # whatever else differs follows from that
        return PeerLost(f"node {node} has read {' and '.join(changed)} than node 0", _CHANGED, counts=True)
    told = "; ".join(f"{name}: {theirs}, not {ours}" for name, (theirs, ours) in sorted(apart.items()))
    return PeerLost(f"node {node} has come to something else than node 0: {told}", *_OTHER_DEVICES, counts=True)


def _apart(found: Any, decided: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the names of what differs, with what was found and what has to be; of parts in parts the innermost."""
    known = found if isinstance(found, dict) else {}
    for name in {*decided, *known}:
        theirs, ours = known.get(name), decided.get(name)
        if isinstance(ours, dict):
            yield from ((f"{name}.{inner}", both) for inner, both in _apart(theirs, ours))
        elif theirs != ours:
            yield name, (theirs, ours)


class Lead:
    """Node 0's side. A context: at its end the others are told."""

    def __init__(self, place: Place, run: str, causes: Causes) -> None:
        """`run` is the uid of the run: nobody else is let in."""
        self._place = place
        self._run = run
        self._causes = causes
        self._condition = threading.Condition()
        self._channels: dict[int, Channel] = {}
        self._reached: set[int] = set()
        self._ready: dict[int, Any] = {}
        self._waiting: set[Channel] = set()
        """Of nodes that came once all had begun: they are of the next attempt, or nobody's."""
        self._begun = False
        self._last: Message | None = None
        """What the others are told at the end."""
        self.progressed: Callable[[], bool] = lambda: False
        """Tells whether this attempt has stored a checkpoint: one that comes further may be tried again for ever."""

    def __enter__(self) -> Self:
        # The port of the collectives is nobody's until all begin: it is tried as the free one is.
        self._tried = [_listen(port, answer) for port in (0, self._place.port)]
        self._listener = _listen(self._place.control_port, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._causes.settle()
        with self._condition:
            self._last = {"done": True} if error is None else _told(error)
            others, waiting = list(self._channels.values()), list(self._waiting)
        for channel in others:
            channel.send(**self._last)
        for channel in waiting:
            self._send_away(channel)
        for listener in (self._listener, *self._tried):
            listener.close()

    def begin(self, decided: Any, **go: Any) -> None:
        """Let all nodes begin, once each of them is ready.

        `decided` is what all of them have to have come to alike. Raises PeerLost where one does not come in time, and
        TuneryError(InternalError) where one has come to something else.
        """
        others = range(1, self._place.nodes)
        say(f"Nodes      waiting for {'the other one' if len(others) == 1 else f'the {len(others)} others'}")
        with self._condition:
            seen = dict.fromkeys(others, time.monotonic())
            while self._reached & set(self._ready) != set(others):
                now = time.monotonic()
                seen.update(dict.fromkeys(self._channels, now))  # one that is replaced has its time again
                absent = [node for node in others if now - seen[node] > meet_seconds()]
                if absent:
                    raise _absent(absent, self._place)
                self._condition.wait(_AGAIN_SECONDS)
            for node, found in self._ready.items():
                if found != decided:
                    raise _unlike(node, found, decided)
            self._begun = True
            for listener in self._tried:  # the collectives listen there now
                listener.close()
            for channel in self._channels.values():
                channel.send(go=go)
        say(f"Nodes      all {self._place.nodes} begin")

    def _heard(self, channel: Channel, message: Message | None) -> None:
        """Take what a node says; from a thread."""
        if message is not None and self._greets(message):
            self._greeted(channel, int(message["hello"]), *message["free"])
            return
        with self._condition:
            node = next((number for number, each in self._channels.items() if each is channel), None)
            if message is None:
                self._waiting.discard(channel)
                if node is not None:
                    self._forget(node)
            elif node is not None and "reached" in message:
                self._reached.add(node)
            elif node is not None and "ready" in message:
                self._ready[node] = message["ready"]
            elif node is not None and "stopped" in message:
                del self._channels[node]  # as this one, which stores the checkpoint still
            elif node is not None and "ended" in message and self._begun:
                self._take_end(node, message["ended"])
            self._condition.notify_all()
            lost = node is not None and self._begun and (message is None or "ended" in message)
        if lost:
            text = f"node {node} of {self._place.nodes} is gone"
            # The checkpoint that is on its way is stored before this one ends, and is asked for after that.
            self._causes.lost(PeerLost(text, counts=lambda: not self.progressed()))
        if node is not None and message is not None and "unreached" in message:
            self._causes.lost(_cut_off(f"node {node} does not reach node 0 on TCP {message['unreached']}"))

    def _greets(self, message: Message) -> bool:
        """Tell whether a node of this very run says who it is."""
        return "hello" in message and message.get("run") == self._run

    def _greeted(self, channel: Channel, node: int, host: str, free: int) -> None:
        """Let a node in that is there before all begin; a later one waits for what becomes of this attempt.

        That attempt is not its own: where it ends badly the node is of the next one, and must not end with this one,
        which may store a checkpoint for minutes still and listens nowhere else any more.
        """
        with self._condition:
            if admitted := not self._begun and self._last is None:
                self._forget(node)  # what another one has said in its place
                self._channels[node] = channel
            elif self._last is None:
                self._waiting.add(channel)
            ended = self._last is not None
            self._condition.notify_all()
        if admitted:
            self._try_ports(channel, node, host, free)
        elif ended:
            self._send_away(channel)
        else:
            channel.send(later=True)

    def _send_away(self, channel: Channel) -> None:
        """Tell a node that was not let in that it is not needed, or let it look for the next node 0."""
        if self._last == {"done": True}:
            channel.send(done=True)
        else:
            channel.close()

    def _forget(self, node: int) -> None:
        self._channels.pop(node, None)
        self._ready.pop(node, None)
        self._reached.discard(node)

    def _try_ports(self, channel: Channel, node: int, host: str, free: int) -> None:
        """Try a port of the node's that the system has chosen, as collectives do, and let it try this one's.

        What lets through the ports that have a name and no others is told as the nodes begin: in a collective it
        would be a silence. A node that is gone meanwhile has been cut off by nobody.
        """
        if not reaches(host, free) and not channel.closes(_AGAIN_SECONDS):
            self._causes.lost(_cut_off(f"node 0 does not reach node {node} on TCP {free}"))
        channel.send(ports=[listener.port for listener in self._tried])

    def _take_end(self, node: int, ended: dict[str, Any]) -> None:
        failure = Failure.model_validate(ended)
        if failure.reason != FailureReason.PEER_LOST:
            self._causes.known(PeerLost(f"node {node}: {failure.reason}: {failure.message}"))


class Follow:
    """The side of another node. A context: at its end node 0 is told."""

    def __init__(self, place: Place, run: str, causes: Causes) -> None:
        self._place = place
        self._run = run
        self._causes = causes
        self._condition = threading.Condition()
        self._channel: Channel | None = None
        self._admitted = self._later = False
        """What node 0 has answered on this channel."""
        self._go: dict[str, Any] | None = None
        self._done = False

    def __enter__(self) -> Self:
        self._free = Listener(0, answer)
        self._meet()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._causes.settle()
        if error is not None and self._channel is not None:
            self._channel.send(**_told(error))
            if self._go is not None and not isinstance(error, StopRequested | PeerLost):
                with self._condition:
                    self._condition.wait_for(lambda: self._channel is None or self._done, _LAST_SECONDS)
        if self._channel is not None:
            self._channel.close()
        self._free.close()

    def ready(self, decided: Any) -> dict[str, Any]:
        """Say that this node could begin, and what it has come to; return what node 0 says as all begin.

        Where node 0 is replaced meanwhile, the new one is told. Raises PeerLost where none comes in time, and
        StopRequested where it has published meanwhile: this node came in place of one that was needed no more.
        """
        while True:
            with self._condition:
                channel = self._channel
                if channel is not None:
                    channel.send(ready=decided)
                    self._condition.wait_for(lambda: self._go is not None or self._done or self._channel is None)
                if self._go is not None:
                    return self._go
                if self._done:
                    raise StopRequested(elsewhere=True)
            self._meet()

    def wait(self) -> None:
        """Wait until node 0 has published: it may need this node again until then."""
        with self._condition:
            self._condition.wait_for(lambda: self._done)

    def _meet(self) -> None:
        """Look for a node 0 that lets this one in; its name is resolved anew each time, as it may be another pod's.

        One that is past its beginning is waited for as long as it is there, as it may publish, and then the next one as
        usual. What takes the connection and does not answer as node 0 does is nobody. Raises as `ready` does.
        """
        now = time.monotonic()
        until, tell, seen = now + meet_seconds(), now + _TOLD_SECONDS, ""
        while (left := until - time.monotonic()) > 0:
            if time.monotonic() > tell:
                where = f"{self._place.master}, TCP {self._place.control_port}"
                say(f"Nodes      looking for node 0 at {where}, {left:.0f} s more")
                tell = math.inf
            channel = connect(self._place.master, self._place.control_port)
            seen = "" if channel is None else f": what listens on its TCP {self._place.control_port} does not answer"
            if channel is not None:
                self._greet(channel, left)
                if self._done:
                    raise StopRequested(elsewhere=True)
                if self._admitted:
                    return
                if self._later:
                    until = time.monotonic() + meet_seconds()
            time.sleep(_AGAIN_SECONDS)
        raise _absent([0], self._place, seen)

    def _greet(self, channel: Channel, left: float) -> None:
        """Say who this is, and wait until it is known what that comes to; `left` are the seconds for an answer."""
        with self._condition:
            self._channel, self._admitted, self._later = channel, False, False
        channel.listen(self._heard)
        channel.send(hello=self._place.node, run=self._run, free=[channel.address, self._free.port])
        with self._condition:
            self._condition.wait_for(
                lambda: self._admitted or self._later or self._done or self._channel is None,
                min(_ANSWER_SECONDS, left),
            )
            if self._later:
                say("Nodes      the first one has begun without this one: waiting for what becomes of it")
                self._condition.wait_for(lambda: self._done or self._channel is None)
            if self._admitted or self._done:
                return
            self._channel = None
        channel.close()

    def _heard(self, channel: Channel, message: Message | None) -> None:
        """Take what node 0 says; from a thread."""
        lost: TuneryError | None = None
        if message is not None and "ports" in message:
            with self._condition:  # trying them takes a minute where nothing answers
                self._admitted = self._admitted or channel is self._channel
                self._condition.notify_all()
            closed = [port for port in message["ports"] if not reaches(self._place.master, int(port))]
            channel.send(**({"unreached": closed[0]} if closed else {"reached": True}))
        with self._condition:
            if channel is not self._channel:  # it was given up
                return
            if message is None:
                self._channel = None
                if self._go is not None and not self._done:
                    lost = PeerLost("node 0 is gone")
            elif "later" in message:
                self._later = True
            elif "go" in message:
                self._go = message["go"]
            elif "done" in message:
                self._done = self._causes.over = True
            elif "ended" in message:
                failure = Failure.model_validate(message["ended"])
                lost = PeerLost(f"node 0 has ended: {failure.reason}: {failure.message}")
                self._causes.known(lost)
            self._condition.notify_all()
        if lost is not None:
            self._causes.lost(lost)


def _told(error: BaseException) -> dict[str, Any]:
    """Return the message that a node ends; a stop all have heard of."""
    if isinstance(error, StopRequested):
        return {"stopped": True}
    return {"ended": explain(error).failure.model_dump(mode="json", exclude_none=True)}
