"""Text for terminals: no control characters, every encoding, tables that fit."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from tunery.text import Column, duration_text, print_table, printable


def test_printable_text_cannot_change_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9b31mc\r\n\td") == "a]0;titleb31mc\n\td"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (10_799, "179m"), (11_400, "3h10m"), (10_800, "3h"),
        (90_000, "25h"), (187_200, "2d4h"), (864_000, "10d"),
    ],
)  # fmt: skip
def test_durations_read_as_those_of_kubectl(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def shown(rows: list[list[str]], *, width: int = 80, terminal: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, soft_wrap=True, emoji=False)
    print_table(console, [Column("NAME"), Column("PHASE"), Column("REASON", optional=True)], rows, lambda phase: "red")
    return out.getvalue().splitlines()


def test_a_table_is_aligned_and_omits_empty_columns() -> None:
    assert shown([["a", "Failed", ""], ["longer", "Queued", ""]]) == [
        "NAME     PHASE",
        "a        Failed",
        "longer   Queued",
    ]


def test_wide_characters_take_two_columns() -> None:
    assert shown([["模型", "Failed", ""], ["abcd", "Queued", ""]])[1:] == ["模型   Failed", "abcd   Queued"]


@pytest.mark.parametrize(("terminal", "width", "has"), [(True, 24, False), (True, 80, True), (False, 24, True)])
def test_only_a_narrow_terminal_loses_optional_columns(terminal: bool, width: int, has: bool) -> None:
    lines = shown([["support", "Waiting", "QuotaExceeded"]], width=width, terminal=terminal)
    assert ("QuotaExceeded" in lines[1]) == has
    assert lines[1].startswith("support   Waiting")


def test_a_row_that_does_not_fit_is_a_block_of_lines() -> None:
    rows = [["support", "Waiting", ""], ["b", "Failed", "QuotaExceeded"]]
    assert shown(rows, width=16, terminal=True) == [
        "support", "  PHASE: Waiting", "b", "  PHASE: Failed", "  REASON: QuotaExceeded",
    ]  # fmt: skip


def test_a_cell_is_no_markup_and_no_second_line() -> None:
    assert shown([["[red]a[/red]\n:bug:", "Failed", ""]])[1] == "[red]a[/red] :bug:   Failed"


def test_an_encoding_without_a_character_gets_a_plain_one() -> None:
    program = (
        "from tunery.app import App\nfrom tunery.text import use_plain_characters\nuse_plain_characters()\n"
        "app = App({'output': 'text'})\napp.print('−30 % (± 1 %) … ✓ 模')\napp.print_json({'name': '模'})\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, timeout=60)
    assert done.stdout.decode("cp1252").split() == [
        "-30",
        "%",
        "(±",
        "1",
        "%)",
        "…",
        "ok",
        "?",
        '{"name":',
        '"\\u6a21"}',
    ]
