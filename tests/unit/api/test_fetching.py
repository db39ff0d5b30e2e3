"""The annotation that requests results: what is valid, until when, and with which token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tunery_api.fetching import FetchRequest, is_token, parse_fetch_request, token_digest

NOW = datetime(2026, 12, 2, 12, tzinfo=UTC)
DIGEST = token_digest("a token")


def test_a_request_is_read_as_it_was_written() -> None:
    request = FetchRequest(DIGEST, NOW + timedelta(hours=1))
    assert str(request) == f"{DIGEST}/2026-12-02T13:00:00Z"
    assert parse_fetch_request(str(request), NOW) == request
    assert request.seconds_left(NOW) == 3600


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("", "isn't <SHA-256", id="empty"),
        pytest.param(f"{DIGEST[:-1]}/2026-12-02T13:00:00Z", "isn't <SHA-256", id="short-digest"),
        pytest.param(f"{DIGEST.upper()}/2026-12-02T13:00:00Z", "isn't <SHA-256", id="upper-case"),
        pytest.param(f"{DIGEST}/2026-12-02T13:00:00Z\n", "isn't <SHA-256", id="line-break"),
        pytest.param(f"{DIGEST}/2026-12-02T13:00:00+01:00", "isn't <SHA-256", id="another-zone"),
        pytest.param(f"{DIGEST}/2026-12-02 13:00:00Z", "isn't <SHA-256", id="no-rfc-3339"),
        pytest.param(f"{DIGEST}/2026-13-02T13:00:00Z", "isn't a time", id="no-month"),
        pytest.param(f"{DIGEST}/2026-12-02T12:00:00Z", "expired", id="now"),
        pytest.param(f"{DIGEST}/2026-12-03T12:00:01Z", "more than 24 hours", id="too-far"),
    ],
)
def test_any_other_value_is_rejected_with_the_reason(value: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_fetch_request(value, NOW)


def test_the_last_moment_counts() -> None:
    assert parse_fetch_request(f"{DIGEST}/2026-12-03T12:00:00Z", NOW).seconds_left(NOW) == 24 * 3600


@pytest.mark.parametrize("token", ["", "a toke", "a token ", DIGEST, "\udcff"])
def test_only_the_token_itself_has_its_digest(token: str) -> None:
    assert is_token("a token", DIGEST)
    assert not is_token(token, DIGEST)
