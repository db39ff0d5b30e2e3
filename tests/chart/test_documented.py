"""docs/install.md names the chart's values: each that there is, and none that there is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from .rendering import CHART, Helm

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
PAGE = (CHART.parents[1] / "docs" / "install.md").read_text()


def documented() -> set[str]:
    """Return the names in the first column of the table of values."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    return {name.removesuffix(".*") for row in rows for name in re.findall(r"`([^`]+)`", row)}


def value(path: str) -> Any:
    """Return what values.yaml says at a path; raises KeyError where it has no such name."""
    found: Any = VALUES
    for part in path.split("."):
        found = found[part]
    return found


def test_every_documented_value_is_one() -> None:
    for path in documented():
        value(path)


def names() -> set[str]:
    """Return the values by the names that the page may speak of them: whole, or by their first two parts."""
    return {
        f"{top}.{name}" if name else top
        for top, below in VALUES.items()
        for name in (below if isinstance(below, dict) and below else [""])
    }


def test_every_value_is_documented() -> None:
    known = documented()
    told = known | {name for name in names() if name.partition(".")[0] in known}
    assert names() - told == set()


@pytest.mark.parametrize(
    "block",
    [block for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "kind:" not in block],
)
def test_every_block_of_values_renders(helm: Helm, block: str) -> None:
    values = yaml.safe_load(block)
    assert set(values) <= set(VALUES)
    assert helm.render(values=values).one("Deployment")
