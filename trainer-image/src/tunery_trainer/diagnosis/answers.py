"""Answers to held-out rows, compared with what the rows say: word for word, and by their longest common subsequence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

ANSWERS_FILE: Final = "answers.jsonl"
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""Words of any script; those without spaces between words go character by character."""


@dataclass(frozen=True)
class Answer:
    """One held-out row, and what the model says to it."""

    prompt: str
    expected: str
    before: str | None
    """Of the model before training: the base, or the adapter of continueFrom; None where nobody asked it then."""
    after: str
    """Of what is published."""


class _Words:
    """Splits a text into words, for rouge_score, whose own tokenizer knows Latin letters only."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case."""
        return _WORDS.findall(text.lower())


def exact_match(expected: Sequence[str], said: Sequence[str]) -> float:
    """Return the share of answers that are what was expected, but for white space around and between words."""
    equal = [" ".join(one.split()) == " ".join(other.split()) for one, other in zip(expected, said, strict=True)]
    return sum(equal) / len(equal)


def rouge_l(expected: Sequence[str], said: Sequence[str]) -> float:
    """Return the mean ROUGE-L (F1; Lin 2004, as Google's rouge_score computes it), from 0 to 1.

    An answer that is empty where an empty one is expected counts 1.
    """
    # A second that only those wait who ask for it.
    from rouge_score.rouge_scorer import RougeScorer

    scorer, words = RougeScorer(["rougeL"], tokenizer=_Words()), _Words()
    scores = [
        scorer.score(one, other)["rougeL"].fmeasure if words.tokenize(one) or words.tokenize(other) else 1.0
        for one, other in zip(expected, said, strict=True)
    ]
    return math.fsum(scores) / len(scores)


def answer_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """Return both measures by the names of the API, after training and, where it is known, before."""
    expected, after = [each.expected for each in answers], [each.after for each in answers]
    found = {"exactMatch": exact_match(expected, after), "rougeL": rouge_l(expected, after)}
    before = [each.before for each in answers if each.before is not None]
    if len(before) == len(answers):
        found |= {"baseExactMatch": exact_match(expected, before), "baseRougeL": rouge_l(expected, before)}
    return found


def write_answers(answers: Sequence[Answer], folder: Path) -> None:
    """Write all of them beside the adapter, one JSON object a line."""
    lines = (json.dumps(asdict(each), ensure_ascii=False) for each in answers)
    (folder / ANSWERS_FILE).write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_answers(folder: Path) -> list[Answer]:
    """Return what `write_answers` wrote into a folder, also another version of it; none where there is no such file."""
    names = [each.name for each in fields(Answer)]
    try:
        lines = (folder / ANSWERS_FILE).read_text("utf-8").split("\n")
    except FileNotFoundError:
        return []
    said = [json.loads(line) for line in lines if line]
    return [Answer(**{name: each.get(name) for name in names}) for each in said]
