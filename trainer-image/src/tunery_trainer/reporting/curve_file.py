"""The curve of a run as a file that programs read: one JSON object a line, of each step that was logged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunery_api.measured import number_text
from tunery_api.names import METRICS

CURVE_FILE: Final = "curve.jsonl"
TOKENS_PER_SECOND: Final = "tokens_per_second"
TIME: Final = "time"
"""What a run adds to the Trainer's log entries for it."""
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
