"""The demo's data set: questions and answers of the package chatterbot-corpus, as JSON lines."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import yaml

PACKAGE_NAME = "chatterbot-corpus"
ENGLISH = "data/english"
_APART: Final = 97
"""Answers of questions that lie so far apart are of another topic."""


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


def write_preferences(path: Path) -> int:
    """Write rows of `prompt`, `chosen` (its answer) and `rejected` (another question's), and return their number."""
    return _write(path, ({"prompt": ask, "chosen": good, "rejected": bad} for ask, good, bad in preferences()))


def write_ratings(path: Path) -> int:
    """Write rows of `prompt`, `completion` and `label`, good and bad answers in turn, and return their number."""
    rows = (
        {"prompt": ask, "completion": bad if number % 2 else good, "label": number % 2 == 0}
        for number, (ask, good, bad) in enumerate(preferences())
    )
    return _write(path, rows)


def preferences() -> list[tuple[str, str, str]]:
    """Return each question with its answer and with one that was given to another question."""
    known = pairs()
    others = [answer for _, answer in known[_APART:] + known[:_APART]]
    return [
        (question, answer, other)
        for (question, answer), other in zip(known, others, strict=True)
        if answer.casefold() != other.casefold()
    ]


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
