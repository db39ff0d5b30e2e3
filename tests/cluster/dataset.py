"""The demo's data set: questions and answers of the package chatterbot-corpus, as JSON lines."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

PACKAGE_NAME = "chatterbot-corpus"
ENGLISH = "data/english"


def pairs() -> list[tuple[str, str]]:
    """Return each question with its first answer, in the order of the corpus."""
    answers: dict[str, tuple[str, str]] = {}
    for file in sorted(_files()):
        for question, answer in _pairs_of(yaml.safe_load(file.read_text())):
            answers.setdefault(question.casefold(), (question, answer))
    return list(answers.values())


def write_messages(path: Path) -> int:
    """Write rows of `messages` and return their number."""
    return _write(path, (_messages(question, answer) for question, answer in pairs()))


def write_prompts(path: Path) -> int:
    """Write rows of `prompt` and `completion` and return their number."""
    return _write(path, ({"prompt": question, "completion": answer} for question, answer in pairs()))


def _messages(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _write(path: Path, rows: Iterable[dict[str, object]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def _files() -> list[Path]:
    files = importlib.metadata.files(PACKAGE_NAME) or []
    return [Path(str(file.locate())) for file in files if ENGLISH in str(file) and file.suffix == ".yml"]


def _pairs_of(document: dict[str, list[list[object]]]) -> Iterator[tuple[str, str]]:
    for conversation in document["conversations"]:
        # YAML reads a bare yes as a boolean and 42 as a number; neither is a sentence to learn.
        turns = [" ".join(turn.split()) for turn in conversation if isinstance(turn, str)]
        if len(turns) == len(conversation) and len(turns) > 1 and all(turns[:2]):
            yield turns[0], turns[1]
