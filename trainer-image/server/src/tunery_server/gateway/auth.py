"""API keys: a folder with one file for each client, as the kubelet mounts a Secret, read again when it is renewed."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from tunery_api.failures import sentences
from tunery_api.reasons import FailureReason
from tunery_api.redact import register_secret
from tunery_api.remedies import retry
from tunery_api.runspec import MountedSecret
from tunery_server.gateway.errors import Refusal, unavailable

LOOK_SECONDS: Final = 1.0
"""How often the folder is looked at, when somebody asks."""
READ_SECONDS: Final = 10.0
"""How often it is read where no link tells that it has changed."""
MAX_KEY: Final = 16 << 10
RETRY_SECONDS: Final = 30
_LINK: Final = "..data"
"""The kubelet's link to the present content; each renewal gives it another target."""
CREATE_SECRET: Final = retry("Create it with one key for each client: its name is the client's, its value the API key")
HINT: Final = sentences([CREATE_SECRET])
ANYBODY: Final = ""
"""The client where no key is asked for, or was given."""

logger = logging.getLogger(__name__)


class ApiKeys:
    """Who may ask. Only digests under a key of this process are kept: the time of a look-up tells nothing of a key."""

    def __init__(self, secret: MountedSecret | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret = secret
        self._clock = clock
        self._salt = secrets.token_bytes(32)
        self._clients: dict[bytes, str] = {}
        self._held: frozenset[str] = frozenset()
        self._looked = self._read = -float("inf")
        self._link: str | None = None
        self._said: list[str] = []

    def client(self, authorization: str | None) -> str:
        """Return the name of the client with this header; raises Refusal: 401, or 503 while there are no keys."""
        if self._secret is None:
            return ANYBODY
        if problem := self.problem():
            raise unavailable(FailureReason.SECRET_NOT_FOUND, f"{problem}. {HINT}", RETRY_SECONDS)
        scheme, _, key = (authorization or "").strip().partition(" ")
        digest = self._digest(key.strip().encode(errors="surrogateescape"))
        name = self._clients.get(digest)
        if scheme.lower() != "bearer" or name is None:
            refusal = Refusal(401, "Give a valid API key: Authorization: Bearer KEY.", "invalid_api_key")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            raise refusal
        return name

    def problem(self) -> str | None:
        """Return why nobody gets in, or None where somebody may; what to do is HINT."""
        if self._secret is None:
            return None
        self._refresh(self._secret)
        if self._clients:
            return None
        where = f"{self._secret.field}: the Secret {self._secret.name}"
        return f"{where} is missing or holds no usable API key, so nobody may ask"

    def names(self) -> set[str]:
        """Return the clients that have been let in."""
        return {ANYBODY, *self._clients.values()}

    @property
    def secret(self) -> str | None:
        """The name of the Secret whose keys let in; None: no key is asked for."""
        return self._secret.name if self._secret is not None else None

    def held(self) -> frozenset[str]:
        """Return all keys of the Secret by name, be their values usable or not."""
        if self._secret is not None:
            self._refresh(self._secret)
        return self._held

    def _refresh(self, secret: MountedSecret) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        folder = Path(secret.path)
        if _target(folder) == self._link and (self._link is not None or now - self._read < READ_SECONDS):
            return
        self._read = now
        for _ in range(2):  # the kubelet may have put a new content into its place meanwhile
            self._link = _target(folder)
            self._take(folder / self._link if self._link is not None else folder)
            if _target(folder) == self._link:
                return

    def _take(self, folder: Path) -> None:
        found: dict[bytes, list[str]] = {}
        problems: list[str] = []
        paths = _files(folder)
        self._held = frozenset(path.name for path in paths)
        for name, value in _values(paths, problems):
            register_secret(value.decode(errors="surrogateescape"))
            found.setdefault(self._digest(value), []).append(name)
        for names in found.values():
            if len(names) > 1:
                problems.append(f"the clients {' and '.join(names)} have the same API key: none of them gets in")
        self._clients = {digest: names[0] for digest, names in found.items() if len(names) == 1}
        if problems != self._said:
            self._said = problems
            for problem in problems:
                logger.warning("API keys: %s", problem)

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._salt, key, hashlib.sha256)


def _target(folder: Path) -> str | None:
    try:
        return str((folder / _LINK).readlink())
    except OSError:
        return None


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("..") and path.is_file())
    except OSError:
        return []


def _values(paths: Iterable[Path], problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield client and key of each file; says in `problems` which cannot be used."""
    for path in paths:
        try:
            with path.open("rb") as file:
                value = file.read(MAX_KEY + 1).strip()
        except OSError as error:
            problems.append(f"that of {path.name} cannot be read: {error.strerror}")
            continue
        if not value or len(value) > MAX_KEY or any(octet <= 0x20 or octet == 0x7F for octet in value):
            problems.append(f"that of {path.name} is empty, too long, or has spaces or control characters in it")
        else:
            yield path.name, value
