"""A credential that is known is hidden however it is spelt; what is cut says so."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from tunery_api.redact import REDACTED, redact, register_secret, shorten

SECRETS = (
    "IQoJb3Jp/+Z2luX2VjEBA==\nSECONDLINEOFTHETOKEN",
    "tab\tand \x07 bell and\r\nline",
    "quo'te\"back\\slash&<percent%>",
    "pässwörd→猫",
    "pass phrase with  spaces",
)

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "repr-of-bytes": lambda value: repr(value.encode()),
    "repr-of-repr": lambda value: repr(f"'{value!r}\""),
    "json": json.dumps,
    "json-utf-8": lambda value: json.dumps(value, ensure_ascii=False),
    "quote": lambda value: quote(value, safe=""),
    "quote-with-slashes": quote,
    "quote-lower-case": lambda value: quote(value, safe="").replace("%2F", "%2f").replace("%0A", "%0a"),
    "quote-plus": quote_plus,
    "quote-twice": lambda value: quote(quote(value)),
    "html": html.escape,
    "unicode-escape": lambda value: value.encode("unicode_escape").decode(),
    "one-line": lambda value: " ".join(value.split()),
    "base64": lambda value: base64.b64encode(value.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_a_known_value_is_hidden_in_every_spelling(secret: str, spell: Callable[[str], str]) -> None:
    register_secret(secret)
    text = redact(f"Invalid header value (Bearer {spell(secret)!s}) in a request")
    for word in ("IQoJ", "SECONDLINE", "bell", "slash", "percent", "sswö", "ssw", "phrase"):
        assert word not in text
    assert REDACTED in text
    assert text.endswith("in a request")


def test_each_line_of_a_known_value_is_hidden_by_itself() -> None:
    register_secret("first-half-of-it\nsecond-half-of-it")
    assert redact("it began with first-half-of-it") == f"it began with {REDACTED}"


def test_short_values_and_ordinary_words_stay() -> None:
    register_secret("true")
    register_secret("")
    register_secret("correct horse battery")
    assert redact("it is true, and the battery of the horse is correct") == (
        "it is true, and the battery of the horse is correct"
    )


@pytest.mark.parametrize(
    ("text", "limit", "short"),
    [
        ("all of it", 9, "all of it"),
        ("columns: Question, Text: text", 24, "columns: Question,…"),
        ("one two three", 11, "one two…"),
        ("s3://bucket/a-very-long-path", 14, "s3://bucket…"),
        ("ünïcödé wörds hêre", 20, "ünïcödé…"),
    ],
)
def test_what_is_too_long_ends_with_an_ellipsis_after_a_word(text: str, limit: int, short: str) -> None:
    assert shorten(text, limit) == short
    assert len(shorten(text, limit).encode()) <= limit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:9000/b", "http://[redacted]@host:9000/b"),
        ("http://user:hunter2@secret@host/b", "http://[redacted]@host/b"),
        ("http://token123@127.0.0.1:9/b?x", "http://[redacted]@127.0.0.1:9/b?x"),
        ("hf://gpt2@main and hf://org/model@v1", "hf://gpt2@main and hf://org/model@v1"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
    ids=["password", "password-with-at", "user-only", "revision-of-a-model", "key"],
)
def test_credentials_of_a_url_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
