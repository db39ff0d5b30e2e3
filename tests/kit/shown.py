"""What the docs show: fenced blocks with the comment before them, and the commands in those that are for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = {"sh", "bash", "console"}
PROMPT = "$ "
"""Of a console block: what follows is a command, all other lines are what it printed."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- (?P<word>needs|run by): (?P<what>[^>]+?) -->\n*\Z")
_INLINE = re.compile(r"(?<!`)`(?P<text>(?:kubectl|helm|make|python|tests/\.venv/bin/python) [^`]+)`(?!`)")
_HEREDOC = re.compile(r"<<-?\s*(?P<quote>['\"]?)(?P<word>\w+)(?P=quote)")
_ASSIGNMENT = re.compile(r"\w+=")
_LEADS = {"do", "then", "else", "if", "while", "!", "{", "exec", "time"}
"""Words behind which a command begins."""
_NO_COMMAND = {"for", "done", "fi", "}"}
_ENDS = {";", "&", "|", "&&", "||", "(", ")", "\n"}
_INTO = {">", ">>", "<", ">&", "&>"}
SUBSTITUTED = "SUBSTITUTED"
"""Stands for what a command in a command has printed."""


@dataclass(frozen=True)
class Command:
    """One program with its arguments, as the shell would start it."""

    line: int
    words: tuple[str, ...]
    stdin: str = ""
    """What a here-document gives it."""
    writes: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        return self.words[0]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    needs: str = ""
    run_by: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[Command]:
        text = shell_of_console(self.text) if self.language == "console" else self.text
        return [*commands(text, self.line + 1)]


def blocks(page: Path) -> Iterator[Block]:
    """Return the fenced blocks of a page, each with what the comment before it says."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        before = _NOTE.search(text[: match.start()])
        notes = {before["word"]: before["what"]} if before else {}
        line = text.count("\n", 0, match.start()) + 1
        indent = len(match["indent"])
        body = "".join(row[indent:] for row in match["text"].splitlines(keepends=True))
        yield Block(page, line, match["language"], body, notes.get("needs", ""), notes.get("run by", ""))


def inline(page: Path) -> Iterator[Command]:
    """Return the commands that stand whole in a sentence; one with an ellipsis is none."""
    text = page.read_text()
    bare = _FENCE.sub(lambda match: "\n" * match.group().count("\n"), text)
    for match in _INLINE.finditer(bare):
        line = bare.count("\n", 0, match.start()) + 1
        shown = " ".join(match["text"].split())
        if "…" not in shown and "..." not in shown:
            yield from commands(shown, line)


def shell_of_console(text: str) -> str:
    """Return a console block with its output left out, line for line."""
    lines: list[str] = []
    goes_on = False
    for line in text.splitlines():
        told = line.removeprefix(PROMPT) if line.startswith(PROMPT) else line if goes_on else ""
        goes_on = told.endswith("\\")
        lines.append(told)
    return "\n".join(lines) + "\n"


@dataclass
class _Shell:
    """Words become commands; what stands in $(…) is a text of its own."""

    found: list[Command] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    line: int = 0
    stdin: str = ""

    def take(self, word: str, line: int) -> None:
        if not self.words:
            self.line = line
        self.words.append(word)

    def end(self) -> None:
        words, stdin = self.words, self.stdin
        self.words, self.stdin = [], ""
        writes = [words[at + 1] for at, word in enumerate(words[:-1]) if word in (">", ">>")]
        kept = [w for at, w in enumerate(words) if w not in _INTO and not (at and words[at - 1] in _INTO)]
        while kept and (kept[0] in _LEADS or _ASSIGNMENT.match(kept[0]) or kept[0].isdigit()):
            kept = kept[1:]
        if kept and kept[0] not in _NO_COMMAND:
            self.found.append(Command(self.line, tuple(kept), stdin, tuple(writes)))


def commands(text: str, first_line: int) -> Iterator[Command]:
    """Return the commands of a shell script, those in $(…) too, each with its line."""
    text, documents = _without_documents(text)
    text, inner = _without_substitutions(text)
    shell = _Shell()
    for number, line in enumerate(_joined(text), first_line):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        lexer.commenters = ""
        for word in _uncommented(lexer):
            if word in _ENDS:
                shell.end()
            elif word == "<<":
                continue
            elif word.startswith("DOCUMENT_"):
                shell.stdin = documents[int(word.rpartition("_")[2])]
            else:
                shell.take(word, number)
        shell.end()
    yield from shell.found
    for line_of_it, script in inner:
        yield from commands(script, first_line + line_of_it)


def _uncommented(lexer: shlex.shlex) -> Iterator[str]:
    for word in lexer:
        if word.startswith("#"):
            return
        yield word


def _joined(text: str) -> Iterator[str]:
    """Return the lines; of those that a backslash or an open quote joins all but the first are empty."""
    held, rest = "", 0
    for line in text.splitlines():
        held += line
        if held.endswith("\\"):
            held, rest = held[:-1] + " ", rest + 1
            continue
        if _is_open(held):
            held, rest = held + "\n", rest + 1
            continue
        yield held
        yield from [""] * rest
        held, rest = "", 0
    if held:
        yield held


def _is_open(text: str) -> bool:
    bare = re.sub(r"(^|\s)#[^\n]*", " ", text)
    try:
        shlex.split(bare)
    except ValueError:
        return True
    return False


def _without_documents(text: str) -> tuple[str, list[str]]:
    """Take here-documents out: `<<YAML` becomes a word of its own, which names the document."""
    kept: list[str] = []
    documents: list[str] = []
    ends, body = "", [""]
    for line in text.splitlines():
        if ends and line.strip() == ends:
            documents.append("\n".join(body) + "\n")
            ends = ""
        elif ends:
            body.append(line)
        elif match := _HEREDOC.search(line):
            ends, body = match["word"], []
            kept.append(f"{line[: match.start()]} DOCUMENT_{len(documents)} {line[match.end() :]}")
            continue
        else:
            kept.append(line)
            continue
        kept.append("")
    return "\n".join(kept) + "\n", documents


def _without_substitutions(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Take the innermost whole `$(…)` out, each with its line."""
    inner: list[tuple[int, str]] = []
    while (start := text.find("$(")) >= 0:
        depth, end = 0, start + 1
        for end in range(start + 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        inner.append((text.count("\n", 0, start), text[start + 2 : end]))
        text = text[:start] + SUBSTITUTED + text[end + 1 :]
    return text, inner
