"""Show the progress of an object in one cell of a notebook: a line, its curve, and what was reported."""

from __future__ import annotations

from html import escape
from typing import Any

from tunery.describe import Line, progress
from tunery.objects import View
from tunery_api.measured import parse_finite

WIDTH, HEIGHT, MARGIN = 480, 120, 6
_COLOURS = {"loss": "#888", "evalLoss": "#06c"}


class Cell:
    """One output of a cell that is replaced whenever something changes. Needs IPython."""

    def __init__(self) -> None:
        from IPython.display import display

        self._lines: list[Line] = []
        self._view: View | None = None
        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def tell(self, line: Line) -> None:
        """Add a line below the progress."""
        self._lines.append(line)
        self._show()

    def update(self, view: View) -> None:
        """Show the progress."""
        self._view = view
        self._show()

    def _show(self) -> None:
        head = (
            [] if self._view is None else ["  ".join([self._view.reference, self._view.phase, *progress(self._view)])]
        )
        text = "\n".join([*head, *(line.text for line in self._lines)])
        self._handle.update({"text/plain": text, "text/html": html(self._view, text)}, raw=True)


def html(view: View | None, text: str) -> str:
    """Return the text with the bar and the curve above it; everything of the cluster is escaped."""
    percent = None if view is None else view.at("status.progress.percent")
    bar = "" if percent is None else f'<progress max="100" value="{float(percent):.0f}"></progress>'
    curve = "" if view is None else svg(view.at("status.curve.points") or [])
    return f"{bar}{curve}<pre>{escape(text)}</pre>"


def svg(points: list[dict[str, Any]]) -> str:
    """Return the curves of the training loss (grey) and the held-out loss (blue); empty with fewer than two points."""
    series = {
        name: [(each["step"], value) for each in points if (value := parse_finite(each.get(name))) is not None]
        for name in _COLOURS
    }
    values = [value for line in series.values() for _, value in line]
    steps = [step for line in series.values() for step, _ in line]
    if len(set(steps)) < 2:
        return ""
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def position(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (step - first) / (last - first)
        y = MARGIN + (HEIGHT - 2 * MARGIN) * ((high - value) / (high - low) if high > low else 0.5)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{_COLOURS[name]}" stroke-width="1.5" '
        f'points="{" ".join(position(*point) for point in line)}"/>'
        for name, line in series.items()
        if len(line) > 1
    )
    label = f"loss {low:.4g} to {high:.4g}, steps {first} to {last}"
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>{lines}</svg>'
