"""The picture of a run: each step at which something was found is marked with what that was."""

from __future__ import annotations

from pathlib import Path

import matplotlib.axes
import pytest

from tunery_api.findings import FindingStatus
from tunery_trainer.reporting.curves import draw_curves


def test_a_mark_stands_where_something_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[tuple[str, float]] = []
    plain = matplotlib.axes.Axes.annotate

    def annotate(axes: matplotlib.axes.Axes, text: str, at: tuple[float, float], **more: object) -> object:
        marks.append((text, at[0]))
        return plain(axes, text, at, **more)

    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", annotate)
    found = [
        FindingStatus(type=kind, severity="Warning", step=step)
        for kind, step in (("TooFewSteps", 0), ("WorseThanBase", 5), ("LossRising", 10), ("LossSpikes", 10))
    ]
    history = [{"step": step, "loss": 1.0, "learning_rate": 1e-4} for step in range(1, 21)]
    draw_curves(history, 1.2, tmp_path / "curves.png", found)
    assert marks == [("WorseThanBase", 5), ("LossRising, LossSpikes", 10)]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
