"""Provide the loss curve of a run: a file with one JSON object for each logged step, and a summary for the status."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunery_api.measured import MAX_CURVE_POINTS, CurvePoint, number_text
from tunery_api.names import METRICS

CURVE_FILE: Final = "curve.jsonl"
TOKENS_PER_SECOND: Final = "tokens_per_second"
TIME: Final = "time"
"""What a run adds to the Trainer's log entries for it."""
_MAX_EVALUATED: Final = 24
"""The most points with a held-out loss in a status."""
_NUMBERS: Final = {"epoch": "epoch", **METRICS, TOKENS_PER_SECOND: "tokensPerSecond"}
"""By the name in a log entry, the name in the file: that of status.metrics."""


def curve_lines(history: Sequence[Mapping[str, Any]], base_loss: float | None) -> Iterator[str]:
    """Yield the lines, ordered by `step`; what was logged of one step by several entries is one line.

    `history` is the Trainer's log. `base_loss`, on the held-out rows before training, is the `evalLoss` of step 0. A
    value that is no finite number is null: JSON has no other word for it.
    """
    points: dict[int, dict[str, Any]] = {}
    if base_loss is not None:
        points[0] = {"step": 0, "evalLoss": _number(base_loss)}
    for entry in history:
        found = {name: _number(entry[key]) for key, name in _NUMBERS.items() if key in entry}
        if found.keys() - {"epoch"}:
            point = points.setdefault(int(entry["step"]), {"step": int(entry["step"])})
            point.update(found)
            if TIME in entry:
                point[TIME] = entry[TIME]
    for step in sorted(points):
        yield json.dumps(points[step], allow_nan=False)


def write_curve(history: Sequence[Mapping[str, Any]], base_loss: float | None, path: Path) -> None:
    """Write them into `path`."""
    path.write_text("".join(f"{line}\n" for line in curve_lines(history, base_loss)), "utf-8")


def _number(value: float) -> float | None:
    return float(number_text(value)) if math.isfinite(value) else None


class _Thinned:
    """At most so many losses by step: when it is full, every second one goes; the latest always stays."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._stride = 1
        self._count = 0
        self._kept: list[tuple[int, str]] = []
        self._latest: tuple[int, str] | None = None

    def add(self, step: int, loss: float) -> None:
        """Add the loss after a step; one that is not finite is left out."""
        if not math.isfinite(loss):
            return
        self._latest = (step, number_text(loss))
        if self._count % self._stride == 0:
            self._kept.append(self._latest)
        self._count += 1
        if len(self._kept) >= self._most:
            self._kept = self._kept[::2]
            self._stride *= 2

    def losses(self) -> dict[int, str]:
        """Return the losses by step."""
        return dict([*self._kept, *([self._latest] if self._latest else [])])


class CurveSummary:
    """The losses of a run by step, at most MAX_CURVE_POINTS, in constant memory and time for each step."""

    def __init__(self) -> None:
        self._losses = _Thinned(MAX_CURVE_POINTS - _MAX_EVALUATED)
        self._evaluations = _Thinned(_MAX_EVALUATED)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of the Trainer's log."""
        if "loss" in entry:
            self._losses.add(int(entry["step"]), entry["loss"])
        if "eval_loss" in entry:
            self._evaluations.add(int(entry["step"]), entry["eval_loss"])

    def points(self) -> list[CurvePoint]:
        """Return the points by step."""
        losses, evaluations = self._losses.losses(), self._evaluations.losses()
        return [
            CurvePoint(step=step, loss=losses.get(step), eval_loss=evaluations.get(step))
            for step in sorted(losses.keys() | evaluations.keys())
        ]
