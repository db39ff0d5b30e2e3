"""Record a program in a terminal as an SVG: `python -m tools.demo.recording ../docs/pictures/try.svg make try`."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tools.cluster.paths import REPOSITORY as ROOT

COLUMNS: Final = 110
_REPLACED: Final = re.compile(r"[^\n]*\r\x1b\[K")
"""What a live line shows before it is written again."""
_FONT_FACE: Final = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def record(command: list[str]) -> str:
    """Run a program in a terminal of its own and return what its last screen shows; raises SystemExit if it fails."""
    output = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        output.extend(data)
        return data

    os.environ["COLUMNS"] = str(COLUMNS)
    if code := os.waitstatus_to_exitcode(pty.spawn(command, read)):
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    text = output.decode().replace("\r\n", "\n")
    return _REPLACED.sub("", text)


def to_svg(command: list[str], text: str) -> str:
    """Return the command and its output as an SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(f"$ {' '.join(command)}\n{text}"))
    return _FONT_FACE.sub("", console.export_svg(title=" ".join(command), theme=MONOKAI))


def main(target: str, *command: str) -> None:
    """Write the recording of a command, which runs in the repository's root, to a file."""
    path = Path(target).resolve()
    os.chdir(ROOT)
    path.write_text(to_svg(list(command), record(list(command))))


if __name__ == "__main__":
    main(*sys.argv[1:])
