"""Provide the log format, text or JSON, without credentials.

During a reconcile, each JSON line also has `kind`, `namespace` and `name` of the object, and `request`, the id of the
reconcile.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from tunery_api.redact import RedactingFormatter
from tunery_operator.config import LogFormat, Logging

MAX_LINE = 8192

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - it is never changed
_process: Final = secrets.token_hex(4)
_numbers: Final = itertools.count(1)


def new_request() -> str:
    """Return the id of a reconcile, unique over all replicas."""
    return f"{_process}-{next(_numbers)}"


@contextmanager
def about(kind: str, namespace: str, name: str, request: str) -> Iterator[None]:
    """Add this object to every line that is logged inside, in this thread or task."""
    token = _about.set({"kind": kind, "namespace": namespace, "name": name, "request": request})
    try:
        yield
    finally:
        _about.reset(token)


class TextFormatter(RedactingFormatter):
    """`2026-01-31T12:00:00Z INFO tunery_operator.logs: message`; the messages themselves name their object."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", MAX_LINE)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """Return when it was logged, in UTC."""
        return _time(record)


class JsonFormatter(RedactingFormatter):
    """One JSON object a line."""

    def __init__(self) -> None:
        super().__init__("%(message)s", MAX_LINE)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        head = {"time": _time(record), "level": record.levelname, "logger": record.name}
        return json.dumps({**head, **_about.get(), "message": super().format(record)})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def configure_logging(settings: Logging) -> None:
    """Send every log line to stderr in the chosen format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=settings.level, handlers=[handler], force=True)
    # Kopf logs every object that it handles, aiohttp every request.
    for name, level in (("kopf", logging.WARNING), ("aiohttp.access", logging.WARNING)):
        logging.getLogger(name).setLevel(max(level, logging.getLogger().level))
