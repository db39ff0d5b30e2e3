"""Log lines: text for people or JSON for machines, never with a credential."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from tunery_api.scrub import scrub
from tunery_operator.settings import LogFormat, Settings

MAX_LINE = 8192


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO tunery_operator.queue: message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several with a traceback."""
        return scrub(f"{_time(record)} {record.levelname} {record.name}: {_message(self, record)}", MAX_LINE)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        message = scrub(_message(self, record), MAX_LINE)
        return json.dumps({"time": _time(record), "level": record.levelname, "logger": record.name, "message": message})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    return f"{text}\n{formatter.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(settings: Settings) -> None:
    """Send every log line to stderr in the chosen format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf tells of every object it looks at, aiohttp of every request.
    for name, level in (("kopf", logging.WARNING), ("aiohttp.access", logging.WARNING)):
        logging.getLogger(name).setLevel(max(level, logging.getLogger().level))
