"""The index of the decisions is complete, in order, and has their own titles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
ROW = re.compile(r"^\| (\d+) \| \[(.+)\]\((\S+)\) \| (\S.*) \|$", re.MULTILINE)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_has_a_title_with_its_number_and_a_date(record: Path) -> None:
    title = re.match(r"# (\d+)\. \S.*\n\n\d{4}-\d{2}-\d{2}\b", record.read_text())
    assert title, "begins with '# NUMBER. Title', an empty line and a date"
    assert record.name.startswith(f"{int(title[1]):04}-")


def test_no_number_is_given_twice() -> None:
    numbers = [record.name[:4] for record in RECORDS]
    assert len(numbers) == len(set(numbers))


def test_the_index_names_every_record_by_its_own_title() -> None:
    rows = [(number, title, name) for number, title, name, _ in ROW.findall((FOLDER / "README.md").read_text())]
    headings = [(record.read_text().splitlines()[0], record.name) for record in RECORDS]
    assert [(f"# {number}. {title}", name) for number, title, name in rows] == headings
