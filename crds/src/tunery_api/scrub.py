"""Take credentials and control characters out of text before anyone else can read it."""

from __future__ import annotations

import re
from typing import Final

MAX_MESSAGE_BYTES: Final = 1024
"""The cap of one message, in UTF-8 bytes: a condition or a termination message stays small."""

REDACTED: Final = "[redacted]"

_MIN_SECRET_LENGTH: Final = 6
"""Shorter values ("true", "auto") would blank out ordinary words."""

_PATTERNS: Final = (
    (re.compile(r"\b(?:AKIA|ASIA|AROA)[A-Z0-9]{12,}\b"), REDACTED),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), REDACTED),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9+/_.=-]{8,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)([?&](?:x-amz-[a-z-]+|awsaccesskeyid|signature|token|sig|key)=)[^&\s\"'<>]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s:@\"']*:[^/\s@\"']+@"), rf"\1{REDACTED}@"),
    (
        re.compile(
            r"(?i)\b((?:aws_)?(?:secret_access_key|session_token)|hf_token|wandb_api_key|mlflow_tracking_\w+|password)"
            r"(\s*[=:]\s*)[^\s,;\"']+"
        ),
        rf"\1\2{REDACTED}",
    ),
)
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_registered: set[str] = set()


def register_secret(value: str) -> None:
    """From now on `scrub` hides `value` wherever this process would show it."""
    if len(value.strip()) >= _MIN_SECRET_LENGTH:
        _registered.add(value.strip())


def scrub(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """Return `text` without credentials and control characters, of at most `limit` UTF-8 bytes.

    Hidden are values given to `register_secret`, AWS key ids, hub tokens, JWTs, authorization headers, queries of
    presigned URLs and passwords in URLs. Line breaks stay.
    """
    for secret in sorted(_registered, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    text = _CONTROL.sub(" ", text)
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: max(0, limit - len("…".encode()))].decode(errors="ignore") + "…"
