"""One line of the input as a request, or why it is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from tunery_server.batch.lines import MAX_LINE
from tunery_server.gateway.proxy import CHAT, COMPLETIONS, RESPONSES

URLS: Final = (CHAT, COMPLETIONS, RESPONSES)
LONGEST_ID: Final = 512
LONGEST_MODEL: Final = 256
_SHOWN: Final = 60


class BadLine(Exception):
    """The line is no request; the text says why."""


@dataclass(frozen=True)
class Request:
    """What is asked."""

    custom_id: str
    url: str
    model: str
    body: bytes
    """JSON, with the model in it."""


def parse(raw: bytes, default_model: str | None) -> Request:
    """Return the request of a line; raises BadLine."""
    if len(raw) > MAX_LINE:
        raise BadLine(f"has more than {MAX_LINE >> 20} MiB")
    document = _object(raw)
    custom_id = document.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadLine("custom_id must be a text that is not empty")
    if len(custom_id) > LONGEST_ID:
        raise BadLine(f"custom_id has {len(custom_id)} characters, {LONGEST_ID} are the most")
    if document.get("method") != "POST":
        raise BadLine(f"method must be POST, not {_shown(document.get('method'))}")
    url = document.get("url")
    if url not in URLS:
        raise BadLine(f"url must be one of {', '.join(URLS)}, not {_shown(url)}")
    body = document.get("body")
    if not isinstance(body, dict):
        raise BadLine("body must be an object")
    model = _model(body, default_model)
    if body.get("stream") not in (None, False):
        raise BadLine("body.stream must be false: an answer is one line")
    return Request(custom_id, url, model, to_json({**body, "model": model}))


def to_json(value: object) -> bytes:
    """Return `value` in one line of UTF-8; what UTF-8 cannot hold, half a surrogate pair, is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise BadLine("is not UTF-8") from error
    except json.JSONDecodeError as error:
        # Of a line its own line number would be a second one.
        raise BadLine(f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(f"is not JSON: {error}" if isinstance(error, ValueError) else "is nested too deeply") from error
    if not isinstance(document, dict):
        raise BadLine("is not a JSON object")
    return document


def _model(body: dict[str, Any], default_model: str | None) -> str:
    model = body.get("model")
    if model is None and default_model is not None:
        return default_model
    if model is None:
        raise BadLine("body.model is missing, and spec.defaultModel is not set, which takes a new object")
    if not isinstance(model, str) or not model or len(model) > LONGEST_MODEL:
        raise BadLine(f"body.model must be a text of 1 to {LONGEST_MODEL} characters")
    if any("\ud800" <= each <= "\udfff" for each in model):
        raise BadLine("body.model is no text: it has half a surrogate pair")
    return model


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
