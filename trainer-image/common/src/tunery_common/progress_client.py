"""Posts progress in the protocol of transformers' KubeflowCallback, over one connection that is kept alive.

A server may answer a post with the JSON `{"intervalSeconds": 30}`, to be told less often, and may refuse one with
`Retry-After`; a server that knows neither is served as well.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import math
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from tunery_api.redact import redact, register_secret, shorten

INTERVAL_SECONDS: Final = 3.0
"""Between two reports, until a server asks for another interval."""
LEAST_SECONDS: Final = 1.0
"""Between the end of a report and the next one, however much there is to tell."""
_INTERVALS: Final = (1, 300)
"""What a server may ask for; anything else is not heeded."""
_LONGEST_BACKOFF_SECONDS: Final = 60.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 300.0
_ANSWER_SECONDS: Final = 1.0


class WholeTimeout(urllib3.Timeout):
    """For a whole exchange, of which the answer has a second at least, however long it took to connect.

    None at all would fail with "read timeout=0", which tells nobody what took so long.
    """

    @property
    def read_timeout(self) -> float:
        """Seconds that are left for the answer."""
        return max(_ANSWER_SECONDS, float(super().read_timeout or 0))

    def clone(self) -> WholeTimeout:
        """Return one whose clock has not begun."""
        return WholeTimeout(total=self.total)


_TIMEOUT: Final = WholeTimeout(total=4.0)
"""Whatever answers, and however slowly, nobody waits for it for more than a second longer."""
_SHORTEST: Final = 0.001
"""Seconds; 0 would have a socket wait for nothing at all."""
_MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are looked at."""
_ASKS_FOR_PATIENCE: Final = frozenset({429, 503})
_NOT_LET_IN: Final = frozenset({401, 403})
_LONGEST_WORDS: Final = 300
"""Bytes of why a report could not be posted."""
_MOST_CAUSES: Final = 8
"""That are told of one outage: a log is no place for whatever stands between to say something new each time."""
_OF_THIS_TRY: Final = re.compile(r"0x[0-9a-fA-F]+|\b\d+(\.\d+)?\b")
"""What differs from one try to the next, though the cause is the same: an object's address, a port of ours, seconds."""


class Refused(Exception):
    """The server answered, but not with success; `retry_after` is how long it asked to be left alone, in seconds."""

    def __init__(self, status: int, retry_after: float | None) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status
        self.retry_after = retry_after


@dataclass
class Pace:
    """When the next report is due, in seconds after the last one."""

    interval: float = INTERVAL_SECONDS
    least: float = LEAST_SECONDS
    longest: float = _LONGEST_BACKOFF_SECONDS
    """After any number of failures."""
    _failures: int = 0
    _asked: float | None = None

    def succeeded(self, interval: float | None) -> None:
        """Take over the interval that the server asked for, if it did."""
        self._failures, self._asked = 0, None
        self.interval = interval or self.interval

    def failed(self, retry_after: float | None) -> None:
        """Wait as long as the server asked for, else longer with each failure in a row."""
        self._asked = retry_after
        self._failures += retry_after is None

    def delay(self, *, urgent: bool) -> float:
        """Return how long to wait after the last report; a phase or a checkpoint is urgent."""
        if urgent:
            return self.least
        if self._asked is not None:
            return max(self.least, self._asked)
        return max(self.interval, min(self.interval * 2.0 ** min(self._failures, 10), self.longest))


class Causes:
    """Why something fails that is tried again and again: each cause is news once, until it works."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int | None, str]] = set()

    def __bool__(self) -> bool:
        """Tell whether it fails."""
        return bool(self._known)

    def is_news(self, error: Exception) -> bool:
        """Take note of a failure, and tell whether none before had its cause."""
        status = error.status if isinstance(error, Refused) else None
        cause = (type(error).__name__, status, _OF_THIS_TRY.sub("", str(error)))
        news = cause not in self._known and len(self._known) < _MOST_CAUSES
        if news:
            self._known.add(cause)
        return news

    def clear(self) -> None:
        """Take note that it works."""
        self._known.clear()


class Outage:
    """Tells in the log that reports cannot be posted to `url`: each cause once, and once when they can again.

    However many fail. What was wrong at first, as an operator that restarts, need not be what lasts. Without a URL
    there is nothing to tell.
    """

    def __init__(self, url: str, log: logging.Logger) -> None:
        self._url = url
        self._log = log
        self._causes = Causes()

    def failed(self, error: Exception) -> None:
        """Take note that a report was not taken; a server that asks to be left alone for a while is no outage."""
        patience = isinstance(error, Refused) and error.retry_after is not None
        if patience or not self._url or not self._causes.is_news(error):
            self._log.debug("progress was not posted: %s", redact(str(error)))
            return
        why = shorten(" ".join(redact(str(error)).split()) or type(error).__name__, _LONGEST_WORDS)
        self._log.warning(
            "progress cannot be posted to %s: %s. The run goes on, and this log tells how far it is; the status will "
            "not, until %s",
            self._url,
            why,
            self._mended_by(error),
        )

    def over(self) -> None:
        """Take note that a report was taken."""
        if self._causes:
            self._causes.clear()
            self._log.info("progress is posted to %s again", self._url)

    def _mended_by(self, error: Exception) -> str:
        place = urlsplit(self._url)
        if isinstance(error, Refused) and error.status in _NOT_LET_IN:
            return "the operator takes the token of this pod: is it the operator of this cluster that answers there?"
        if isinstance(error, Refused):
            return f"{place.hostname} takes it: its own log says more"
        if isinstance(error, OSError):
            return "the file can be read that the kubelet projects"
        if isinstance(error, urllib3.exceptions.SSLError):
            return (
                f"{place.hostname} shows a certificate that this pod trusts: a pod that starts now is given the "
                "operator's newest authority, and no mesh or proxy may come between"
            )
        port = place.port or (443 if place.scheme == "https" else 80)
        return (
            f"TCP {port} from this pod to {place.hostname} is allowed (NetworkPolicies of both namespaces, a mesh) and "
            "the operator runs"
        )


class _InTime(io.RawIOBase):
    """What comes over a socket until `deadline`, however it comes: a socket's own timeout begins anew with each byte.

    Raises TimeoutError from then on.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there, or wait for it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer was not whole in time")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket, which its connection may have closed before."""
        self._raw.close()
        super().close()


class _Whole(HTTPConnection):
    """A connection whose timeout for reading holds for the whole answer, and that for connecting for each sending."""

    _RECORD: Final = 1 << 14
    """Bytes that TLS sends in one piece."""

    def send(self, data: Any) -> None:
        """Send all of it in time."""
        if self.sock is None:
            self.connect()
        if not isinstance(data, bytes) or self.sock is None or self.timeout is None:
            super().send(data)
            return
        deadline = time.monotonic() + self.timeout
        for start in range(0, len(data), self._RECORD):
            self.sock.settimeout(max(_SHORTEST, deadline - time.monotonic()))
            super().send(data[start : start + self._RECORD])

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself has it
        """Read the head of the answer, whose body is read in what is left of the time."""
        deadline = time.monotonic() + self.timeout if self.timeout is not None else math.inf

        class Answer(http.client.HTTPResponse):
            def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
                super().__init__(sock, *args, **kwargs)
                self.fp.close()
                self.fp = io.BufferedReader(_InTime(sock, deadline))

        self.response_class = Answer
        return super().getresponse()


class _WholeTls(_Whole, HTTPSConnection):
    """The same within TLS, whose handshake has the time for connecting."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Whole


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WholeTls


class ProgressClient:
    """Sends reports to one URL; used from one thread.

    The token is read for each report, since the kubelet rotates it, and so is the certificate authority: when it has
    changed, the connection is made anew.
    """

    def __init__(self, url: str, ca_path: str, token_path: str) -> None:
        self._url = url
        self._ca_path = ca_path
        # A token is never sent in the clear.
        self._token_path = token_path if urlsplit(url).scheme == "https" else ""
        self._authority: str | None = None
        self._pool: urllib3.PoolManager | None = None

    def post(self, body: bytes) -> float | None:
        """Send one report; return the interval that the server asks for, in seconds, if it does.

        Raises what `exchange` raises.
        """
        return interval_seconds(self.exchange(body))

    def exchange(self, body: bytes, longest: int = _MAX_ANSWER) -> bytes:
        """Send one report; return the answer, of which no more than `longest` bytes are read.

        Raises Refused, OSError where a file cannot be read, and urllib3's HTTPError.
        """
        headers = {"Content-Type": "application/json"}
        if self._token_path:
            token = Path(self._token_path).read_text(encoding="utf-8").strip()
            register_secret(token)
            headers["Authorization"] = f"Bearer {token}"
        answer = self._connection().request(
            "POST",
            self._url,
            body=body,
            headers=headers,
            timeout=_TIMEOUT,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            content = answer.read(longest)
            if answer.read(1):
                answer.close()  # nobody waits for the rest
        finally:
            answer.release_conn()
        if not 200 <= answer.status < 300:
            self.close()  # behind the same name may stand another replica, which takes reports
            asked = answer.headers.get("Retry-After") if answer.status in _ASKS_FOR_PATIENCE else None
            raise Refused(answer.status, retry_after(asked))
        return content

    def close(self) -> None:
        """Give the connection back."""
        if self._pool is not None:
            self._pool.clear()

    def _connection(self) -> urllib3.PoolManager:
        authority = Path(self._ca_path).read_text(encoding="ascii") if self._ca_path else ""
        if self._pool is None or authority != self._authority:
            self.close()
            # No proxy that the pod is told to use comes between: the operator is in the cluster.
            context = ssl.create_default_context(cadata=authority or None)
            self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, ssl_context=context)
            self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
            self._authority = authority
        return self._pool


def interval_seconds(content: bytes) -> float | None:
    """Return the interval that an answer asks for, or None where it asks for none that is heeded."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    asked = document.get("intervalSeconds") if isinstance(document, dict) else None
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return None
    return float(asked) if _INTERVALS[0] <= asked <= _INTERVALS[1] else None


def retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header, of which dates are not heeded, at most five minutes."""
    if header is None or not (header.isascii() and header.strip().isdigit()):
        return None
    return min(float(header), _LONGEST_RETRY_AFTER_SECONDS)
