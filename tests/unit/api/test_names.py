"""Names of children: deterministic, within the limit, and never two owners to one child."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.fields import parse_quantity
from tunery_api.names import child_name, label_value
from tunery_api.reasons import RETRYABLE, ExitCode, FailureReason, exit_code_for
from tunery_api.remedies import REMEDIES, Action

OWNERS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True)


def test_a_short_name_is_kept() -> None:
    assert child_name("support-bot", "train") == "support-bot-train"


@given(OWNERS, OWNERS)
def test_children_are_valid_and_distinct(one: str, other: str) -> None:
    names = [child_name(owner, "preflight") for owner in (one, other)]
    assert all(re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name) and len(name) <= 63 for name in names)
    assert (names[0] == names[1]) == (one == other)


@given(OWNERS)
def test_label_values_fit(owner: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", label_value(owner))
    assert len(label_value(owner)) <= 63


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_remedies_and_an_exit_code(reason: FailureReason) -> None:
    assert 1 <= len(REMEDIES[reason]) <= 3
    for remedy in REMEDIES[reason]:
        assert remedy.text[0].isupper()
        assert not remedy.text.endswith(".")
        assert remedy.action in set(Action)
        assert not re.search(r"\bspec\.|\bretry\b|\bnew job\b", remedy.text), "the consequence is rendered at the edge"
    expected = {True: {ExitCode.RETRYABLE, ExitCode.BUG}, False: {ExitCode.USER_ERROR}}[reason in RETRYABLE]
    assert exit_code_for(reason) in expected


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), ("500m", 0.5), ("24Gi", 24 * 2**30), ("1.5G", 1.5e9), ("2k", 2000), ("2Ki", 2048)]
)
def test_quantities(text: str, value: float) -> None:
    assert float(parse_quantity(text)) == value


@pytest.mark.parametrize("text", ["", "Gi", "1X", "1mi", "1GiB"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        parse_quantity(text)
