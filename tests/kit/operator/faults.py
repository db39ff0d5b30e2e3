"""What may go wrong between the operator and its API server: each fault, and the calls that it strikes."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, urlsplit

_VERBS: Final = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_TRUE: Final = frozenset({"1", "true"})
REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True)
class Call:
    """One request, named as RBAC names it; `watch` is a verb of its own."""

    verb: str
    resource: str
    """The plural, with the subresource: `lorajobs/status`."""
    namespace: str = ""
    name: str = ""

    @property
    def writes(self) -> bool:
        """Tell whether it changes something."""
        return self.verb in _VERBS.values()

    @property
    def kind(self) -> tuple[str, str]:
        """What all calls of this kind share."""
        return self.verb, self.resource


def parse_call(method: str, target: str, body: bytes = b"") -> Call:
    """Return the call that an HTTP request is."""
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    resource, name = parts[0] if parts else "", parts[1] if len(parts) > 1 else ""
    if len(parts) > 2:
        resource = f"{resource}/{parts[2]}"
    verb = _VERBS.get(method) or ("get" if name else "list")
    if verb == "list" and _TRUE & set(parse_qs(url.query).get("watch", [])):
        verb = "watch"
    if verb == "create" and not name:
        name = (json.loads(body).get("metadata") or {}).get("name", "")
    return Call(verb, resource, namespace, name)


# Faults of a request


@dataclass(frozen=True)
class Answer:
    """An error instead of an answer; the request is not carried out."""

    status: int
    retry_after: int | None = None
    message: str = "the tests refuse it"

    def body(self) -> bytes:
        """Return the Status object that says so."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status}
        return json.dumps(status | {"reason": REASONS[self.status], "message": self.message}).encode()


@dataclass(frozen=True)
class Hang:
    """No answer at all, or (`headers`) one whose body never comes; the request is not carried out.

    The connection is closed after `seconds`; None: when the fault is lifted.
    """

    headers: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Cut:
    """The connection is closed: before the request is carried out, after it, or in the middle of the answer."""

    when: str
    """`before`, `after` (the answer is lost), `middle`."""


@dataclass(frozen=True)
class Slow:
    """The answer takes so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Kill:
    """The operator is killed: before the API server gets the request, or after it carried it out."""

    before: bool


# Faults of a watch's body


@dataclass(frozen=True)
class Break:
    """The next event is cut off in its middle, and the connection with it."""


@dataclass(frozen=True)
class End:
    """The watch ends as watches do, instead of the next event; a watch from there shows it."""


@dataclass(frozen=True)
class Duplicate:
    """Each event comes twice."""


@dataclass(frozen=True)
class Swap:
    """Two events that follow each other change places: of the same object, or of two different ones."""

    same_object: bool


@dataclass(frozen=True)
class Swallow:
    """Events and bookmarks do not arrive, and nothing says so."""


@dataclass(frozen=True)
class Hold:
    """Events arrive only when the fault is lifted, in their order."""


@dataclass(frozen=True)
class Garbage:
    """A line that is no JSON comes before the next event."""


@dataclass(frozen=True)
class ErrorEvent:
    """An event of type ERROR instead of the next one, and the watch ends."""

    status: int

    def line(self) -> bytes:
        """Return the event."""
        return b'{"type":"ERROR","object":' + Answer(self.status).body() + b"}\n"


Fault = Answer | Hang | Cut | Slow | Kill | Break | End | Duplicate | Swap | Swallow | Hold | Garbage | ErrorEvent
STREAM_FAULTS: Final = (Break, End, Duplicate, Swap, Swallow, Hold, Garbage, ErrorEvent)

ERRORS: Final[Sequence[Answer]] = tuple(
    Answer(status, retry_after=1 if status in (429, 503) else None) for status in REASONS
)
REQUEST_FAULTS: Final[Sequence[Fault]] = (
    *ERRORS,
    Hang(seconds=4.0),
    Hang(headers=True, seconds=4.0),
    Cut("before"),
    Cut("middle"),
    Cut("after"),
    Slow(3.0),
)
"""Every fault that any request can have."""


@dataclass
class Rule:
    """A fault, and which calls it strikes: those that match, from the nth on, so many times (None: until lifted)."""

    fault: Fault
    verb: str
    resource: str
    namespace: str | None = None
    nth: int = 1
    times: int | None = 1
    seen: int = 0
    struck: int = 0
    lifted: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Tell whether it may still strike."""
        return not self.lifted.is_set() and (self.times is None or self.struck < self.times)

    @property
    def of_streams(self) -> bool:
        """Tell whether it strikes what a watch says, not its request."""
        return isinstance(self.fault, STREAM_FAULTS)

    def strikes(self, call: Call) -> bool:
        """Tell whether this call is struck, and count it."""
        if not self.active or call.kind != (self.verb, self.resource):
            return False
        if self.namespace is not None and call.namespace != self.namespace:
            return False
        return self.count()

    def count(self) -> bool:
        """Count what matches; tell whether it is struck."""
        self.seen += 1
        self.struck += self.seen >= self.nth
        return self.seen >= self.nth

    def lift(self) -> None:
        """Strike no more, and let go of what hangs."""
        self.lifted.set()
