"""Count private wording and long sentences, and fail where a count is above its baseline.

    python -m tools.prose            compare with tools/prose_baseline.json
    python -m tools.prose --write    lower the baseline to today's counts
    python -m tools.prose --show RULE [FOLDER]

The rules are those of docs/contributing.md. A baseline never rises.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
BASELINE: Final = Path(__file__).with_name("prose_baseline.json")
FOLDERS: Final = ("docs", "crds", "operator", "trainer-image", "charts")

PRIVATE: Final = {
    r"\b(?:is|are|was|were) told\b": "is reported, is shown",
    r"\bgo(?:es)? on\b": "continues, resumes",
    r"\bdoors?\b": "gateway",
    r"\b(?:last words|the pod's word)\b": "termination message",
    r"\bmend(?:s|ed|able)?\b": "fix",
    r"\bstands? in (?:the|its|a job's|an object's) way\b": "blocks",
    r"\b[Ww]ho(?:ever)? (?:finds|asks|waits|takes|closes|publishes|has|is|was|may|runs)\b": "name the actor",
    r"\b(?:[Nn]obody|[Ss]omebody)\b": "name the actor",
    r"\banew\b": "again",
    r"\bbeside\b": "next to, compared with, in addition to",
    r"\bleaves? open|left open\b": "unset",
    r"\bserved on\b": "still served",
    r"\bis over\b": "has ended, has expired",
    r"\bhave .{0,20}looked at\b": "check",
    r"\bby itself\b": "automatically",
    r"\bbears? (?:the|its|another)\b": "has",
    r"\bhas not the\b": "does not have the",
    r"\bin the words of\b": "as X reports it",
}
"""Private words and the standard ones."""
_WITHOUT_NOUN: Final = re.compile(r"^(Those|Its|It |The same|They|Where it|These|Their|That )")
_WORDS_OF_A_SENTENCE: Final = {"docs": 26, "message": 26}


class Finding(NamedTuple):
    """One place that breaks a rule."""

    rule: str
    folder: str
    place: str
    text: str


def sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph that have more than two words."""
    return [each for each in re.split(r"(?<=[.!?])\s+(?=[A-Z`*])", text) if len(each.split()) > 2]


def paragraphs(page: str) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a Markdown page, and the cells of its tables; code blocks and headings left out."""
    page = re.sub(r"```.*?```|<!--.*?-->", "", page, flags=re.DOTALL)
    cells: list[str] = []
    lines: list[str] = []
    for line in page.split("\n"):
        if line.startswith("|"):
            cells += [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        lines.append("" if line.startswith(("|", "#")) else line)
    body = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    found = [" ".join(each.split()) for each in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", body)]
    return [each for each in found if len(each.split()) > 3], cells


def of_page(path: Path) -> Iterator[tuple[str, str]]:
    """Yield rule and text of what a page breaks."""
    texts, cells = paragraphs(path.read_text())
    for text in texts:
        if len(text.split()) > 75:
            yield "paragraph of more than 75 words", text
        yield from (
            ("sentence of more than 26 words", each)
            for each in sentences(text)
            if len(each.split()) > _WORDS_OF_A_SENTENCE["docs"]
        )
    yield from (("table cell of more than 25 words", each) for each in cells if len(each.split()) > 25)
    yield from (("private wording", each) for text in (*texts, *cells) for each in private(text))


def private(text: str) -> Iterator[str]:
    """Yield each private word of a text, with the standard one."""
    for pattern, standard in PRIVATE.items():
        yield from (f"{found[0]!r} -> {standard}: {text[:120]}" for found in re.finditer(pattern, text))


def of_module(path: Path) -> Iterator[tuple[str, str]]:
    """Yield rule and text of what the docstrings and messages of a module break."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        text = _text_of(node) if id(node) not in parts else None
        if text is None or len(text.split()) < 5:
            continue
        kind = "docstring" if id(node) in docstrings else "message"
        yield from ((f"private wording in a {kind}", each) for each in private(text))
        if kind == "message":
            longest = _WORDS_OF_A_SENTENCE["message"]
            yield from (
                ("message sentence of more than 26 words", each)
                for each in sentences(text)
                if len(each.split()) > longest
            )


def _text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        values = (value.value if isinstance(value, ast.Constant) else "X" for value in node.values)
        return "".join(map(str, values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def of_crd(path: Path) -> Iterator[tuple[str, str]]:
    """Yield rule and text of the descriptions of a CRD that do not stand alone."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("{{"))
    found = [version["schema"]["openAPIV3Schema"] for version in yaml.safe_load(text)["spec"]["versions"]]
    while found:
        schema = found.pop()
        description = schema.get("description", "")
        if _WITHOUT_NOUN.match(description):
            yield "description that does not stand alone", description
        if len(description.split()) > 40:
            yield "description of more than 40 words", description
        found += (schema.get("properties") or {}).values()
        found += [schema["items"]] if isinstance(schema.get("items"), dict) else []


def findings() -> Iterator[Finding]:
    """Yield every place of the repository that breaks a rule."""
    pages = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "api.md")]
    modules = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("**/src/**/*.py"))]
    crds = sorted((ROOT / "charts/tunery/files/crds").glob("*.yaml"))
    for paths, check in ((pages, of_page), (modules, of_module), (crds, of_crd)):
        for path in paths:
            place = path.relative_to(ROOT)
            folder = place.parts[0] if len(place.parts) > 1 else "docs"
            yield from (Finding(rule, folder, str(place), text) for rule, text in check(path))


def counted(found: list[Finding]) -> dict[str, int]:
    """Return how often each rule is broken, by folder and rule."""
    counts = Counter(f"{each.folder}: {each.rule}" for each in found)
    return dict(sorted(counts.items()))


def main() -> int:
    """Compare today's counts with the baseline; return 1 where one is above it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="lower the baseline to today's counts")
    parser.add_argument("--show", nargs="+", metavar=("RULE", "FOLDER"), help="print the places of a rule")
    options = parser.parse_args()
    found = list(findings())
    if options.show:
        rule, folder = options.show[0], (options.show[1:] or [""])[0]
        print("\n".join(f"{each.place}: {each.text}" for each in found if rule in each.rule and folder in each.folder))
        return 0
    today = counted(found)
    baseline: dict[str, int] = json.loads(BASELINE.read_text()) if BASELINE.exists() else today
    above = {key: count for key, count in today.items() if count > baseline.get(key, 0)}
    for key, count in above.items():
        rule = key.partition(": ")[2]
        print(f"{key}: {count}, the baseline is {baseline.get(key, 0)}: run python -m tools.prose --show '{rule}'")
    if options.write and not above:
        BASELINE.write_text(json.dumps(today, indent=2) + "\n")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
