"""Redact credentials and control characters from text before it is logged or published, and shorten it."""

from __future__ import annotations

import base64
import html
import logging
import re
from typing import Final

MAX_MESSAGE_BYTES: Final = 1024
"""The most UTF-8 bytes of a message in a condition or termination message."""

CUT: Final = "…"
"""The end of a shortened text."""

REDACTED: Final = "[redacted]"

_MIN_SECRET_LENGTH: Final = 6
"""Redacting shorter values, such as "true" or "auto", would remove ordinary words."""

_PATTERNS: Final = (
    (re.compile(r"\b(?:AKIA|ASIA|AROA)[A-Z0-9]{12,}\b"), REDACTED),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), REDACTED),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9+/_.=-]{8,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)([?&](?:x-amz-[a-z-]+|awsaccesskeyid|signature|token|sig|key)=)[^&\s\"'<>]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b((?!hf:)[a-z][a-z0-9+.-]*://)[^/\s\"']+@"), rf"\1{REDACTED}@"),
    (
        re.compile(
            r"(?i)\b((?:aws_)?(?:secret_access_key|session_token)|hf_token|wandb_api_key|mlflow_tracking_\w+|password)"
            r"(\s*[=:]\s*)[^\s,;\"']+"
        ),
        rf"\1\2{REDACTED}",
    ),
)
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_GAPS: Final = re.compile(r"([\s\x00-\x1f\x7f-\x9f]+)")
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ANY_GAP: Final = (
    r"(?:[\s\x00-\x1f\x7f-\x9f+]|\\+(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[abfnrtv0])|%(?:25)*[0-9a-fA-F]{2})+"
)
"""White space and control characters: plain, escaped or URL-encoded."""

_registered: dict[str, re.Pattern[str]] = {}
"""The registered values, each with the pattern of all its spellings."""


def register_secret(value: str) -> None:
    """Redact `value` from all text that this process shows from now on, in any escaping or encoding.

    Each of its lines is redacted too, because messages are cut at line breaks. Values under 6 characters are not.
    """
    stripped = value.strip()
    if len(stripped) < _MIN_SECRET_LENGTH:
        return
    encoded = base64.b64encode(value.encode(errors="surrogatepass")).decode().rstrip("=")
    for text in (stripped, *map(str.strip, _BREAKS.split(stripped)), encoded):
        if len(text) >= _MIN_SECRET_LENGTH and text not in _registered:
            _registered[text] = re.compile("".join(map(_spellings, filter(None, _GAPS.split(text)))))


def redact_credentials(text: str) -> str:
    """Return `text` with its credentials redacted; `redact` lists what is a credential."""
    for _, known in sorted(_registered.items(), key=lambda item: len(item[0]), reverse=True):
        text = known.sub(REDACTED, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """Return `text` without credentials and control characters, of at most `limit` UTF-8 bytes.

    Credentials are values given to `register_secret`, AWS key ids, hub tokens, JWTs, authorization headers, queries of
    presigned URLs and passwords in URLs. Line breaks stay. Shortened text ends with an ellipsis after a whole word.
    """
    return shorten(_CONTROL.sub(" ", redact_credentials(text)), limit)


def shorten(text: str, limit: int) -> str:
    """Return `text`, shortened to at most `limit` UTF-8 bytes after a whole word if possible, with an ellipsis."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text
    cut = encoded[: max(0, limit - len(CUT.encode()))].decode(errors="ignore")
    whole = re.sub(r"\S+$", "", cut) if not text[len(cut)].isspace() else cut
    # Cut inside a word that is longer than half of the text, such as a URI.
    return (whole if len(whole) > len(cut) // 2 else cut).rstrip() + CUT


class RedactingFormatter(logging.Formatter):
    """Formats log records without credentials, tracebacks included, each of at most `limit` UTF-8 bytes."""

    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text)
        self._limit = limit

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several with a traceback."""
        return redact(super().format(record), self._limit)


def _spellings(part: str) -> str:
    """Return the pattern of white space, or of a word with optionally escaped or encoded special characters."""
    return _ANY_GAP if _GAPS.fullmatch(part) else "".join(map(_character, part))


def _character(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character
    octets, code = character.encode(errors="surrogatepass"), ord(character)
    hexes = [f"{octet:02x}" for octet in octets]
    return (
        "(?:"
        + "|".join(
            (
                rf"\\*{re.escape(character)}",  # repr and JSON escape quotes, backslashes and slashes
                "".join(rf"%(?:25)*(?i:{digits})" for digits in hexes),
                "".join(rf"\\+x(?i:{digits})" for digits in hexes),
                rf"\\+(?:x(?i:{code:02x})|u(?i:{code:04x})|U(?i:{code:08x}))",
                re.escape(html.escape(character)),
            )
        )
        + ")"
    )
