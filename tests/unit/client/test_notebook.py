"""What a cell of a notebook shows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunery.notebook import HEIGHT, WIDTH, html, svg
from tunery.objects import view
from tunery_api.kinds import Kind

POINTS = [
    {"step": 1, "loss": "2"},
    {"step": 5, "loss": "1.5", "evalLoss": "1.8"},
    {"step": 9, "loss": "1", "evalLoss": "1.4"},
]


def test_the_curves_fill_the_drawing_and_stay_inside() -> None:
    drawn = svg(POINTS)
    lines = re.findall(r'points="([^"]*)"', drawn)
    assert [len(line.split()) for line in lines] == [3, 2]
    pairs = [tuple(map(float, point.split(","))) for line in lines for point in line.split()]
    assert (pairs[0], pairs[2]) == ((6.0, 6.0), (WIDTH - 6.0, HEIGHT - 6.0))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in pairs)
    assert "loss 1 to 2, steps 1 to 9" in drawn


@pytest.mark.parametrize("points", [[], POINTS[:1], [{"step": 1, "loss": "nan"}, {"step": 2, "loss": "inf"}]])
def test_too_few_points_draw_nothing(points: list[dict[str, Any]]) -> None:
    assert svg(points) == ""


def test_a_constant_loss_is_a_line_in_the_middle() -> None:
    assert f"{HEIGHT / 2:.1f}" in svg([{"step": 1, "loss": "1"}, {"step": 2, "loss": "1"}])


def test_text_of_the_cluster_is_escaped() -> None:
    body = {"metadata": {"name": "a"}, "status": {"progress": {"percent": 41}}}
    text = html(view(body, Kind.LORAJOB), "<script>alert(1)</script>")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert 'value="41"' in text
