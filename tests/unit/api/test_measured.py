"""How numbers are written for people: one form, everywhere."""

from __future__ import annotations

import math

import pytest

from tunery_api.measured import change_text, share_text


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (-0.305, 0.012, "−30.5 % (± 1.2 %)"),
        (0.05, None, "+5.0 %"),
        (-0.0016, 0.0001, "−0.16 % (± 0.01 %)"),
        (-0.0003, 0.00002, "−0.030 % (± 0.002 %)"),
        (-0.0016, None, "−0.2 %"),
        (-0.0002, None, "−0.02 %"),
        (-1e-9, None, "0.0000 %"),
        (0.0, 0.0, "0.0 % (± 0.0 %)"),
        (-0.148, 0.0, "−14.8 % (± 0.0 %)"),
        (12.5, math.nan, "+1250.0 % (± nan %)"),
    ],
)
def test_a_change(change: float, error: float | None, text: str) -> None:
    assert change_text(change, error) == text
    assert change_text(change, error, signed=False) == text.removeprefix("−").removeprefix("+")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.41, "41 %"), (0.041, "4.1 %"), (0.0041, "0.41 %"), (0.0999, "10 %"), (1, "100 %"), (0, "0 %")],
)
def test_a_share(share: float, text: str) -> None:
    assert share_text(share) == text
